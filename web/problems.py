"""Every error response is a problem document (RFC 9457)."""

import logging
from http import HTTPStatus
from typing import Any

import marshmallow as ma
from flask import Response, jsonify, request
from werkzeug.exceptions import (
    HTTPException,
    MethodNotAllowed,
    ServiceUnavailable,
    UnprocessableEntity,
)

from server import request_id

CONTENT_TYPE = "application/problem+json"
# The names in RFC 9110, section 15.5; Python has them since 3.13.
TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}
DETAILS = {
    400: "The body is missing, incomplete or not JSON.",
    401: "A valid bearer token is required.",
    403: "The token belongs to another user.",
    404: "There is nothing at this path.",
    405: "This path does not support this method.",
    412: "The task has changed: If-Match does not have its current ETag.",
    413: "The body is larger than 128 KiB.",
    415: "The body must be JSON, uncompressed, with the header Content-Type: application/json.",
    422: "A field, a parameter or a header is not valid.",
    500: "The server failed. Its log has the cause: search for the request id.",
    503: "The service is unavailable for now. Try again soon.",
}
NO_MEMORY = "The server has no memory left."
NOTHING_CHANGED = f"{NO_MEMORY} Nothing has changed. Try again soon."
MAYBE_CHANGED = (
    f"{NO_MEMORY} The change may or may not have been made, at most once."
    " Check whether it was made before you try again."
)

log = logging.getLogger("tasks.web")


class ProblemSchema(ma.Schema):
    """An error (RFC 9457, section 3)."""

    type = ma.fields.String(required=True, metadata={"example": "about:blank"})
    title = ma.fields.String(required=True, metadata={"example": TITLES[422]})
    status = ma.fields.Integer(required=True, metadata={"example": 422})
    detail = ma.fields.String(
        required=True,
        metadata={
            "description": "An explanation for people.",
            "example": "title: Shorter than minimum length 1.",
        },
    )
    errors = ma.fields.Dict(
        keys=ma.fields.String(),
        values=ma.fields.List(ma.fields.String()),
        metadata={
            "description": "Only for invalid input: messages by field, parameter or header.",
            "example": {"title": ["Shorter than minimum length 1."]},
        },
    )
    request_id = ma.fields.String(
        required=True,
        metadata={"description": "The id of the request in the log.", "example": "9f2c1d5e7a"},
    )


class Invalid(UnprocessableEntity):
    """A 422 with messages for each field."""

    def __init__(self, errors: dict[str, list[str]], detail: str | None = None) -> None:
        each = (f"{name}: {' '.join(words)}" for name, words in errors.items())
        super().__init__(detail or "; ".join(each))
        self.errors = errors


def title(status: int) -> str:
    return TITLES.get(status) or HTTPStatus(status).phrase


def problem(status: int, detail: str | None, request_id: str, **errors: Any) -> dict[str, Any]:
    """The body of an error response, with `errors` for invalid input."""
    known = {"type": "about:blank", "title": title(status), "status": status, "detail": detail}
    return {**known, **errors, "request_id": request_id}


def to_response(error: HTTPException) -> Response:
    """The problem document for `error`, with the headers of the error, such as `Allow`."""
    status = error.code or 500
    has_own_detail = error.description != type(error).description
    detail = error.description if has_own_detail else DETAILS.get(status, title(status))
    errors = {"errors": error.errors} if isinstance(error, Invalid) else {}
    response = jsonify(problem(status, detail, request_id(), **errors))
    response.status_code = status
    response.headers.extend(error.get_headers())
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
    response.headers["Content-Type"] = CONTENT_TYPE
    # Without it, a cache may keep a 404 (RFC 9110, section 15.1) past the creation or a restore.
    response.headers["Cache-Control"] = "no-store"
    return response


def out_of_memory(error: MemoryError) -> Response:
    """A 503. A write may have been made before the error, or may run for 4 more seconds."""
    log.warning("out of memory", exc_info=error)
    reads = request.method in {"GET", "HEAD"}
    detail, retry_after = (NOTHING_CHANGED, 1) if reads else (MAYBE_CHANGED, 4)
    return to_response(ServiceUnavailable(detail, retry_after=retry_after))
