"""flask-smorest with a complete OpenAPI document."""

from collections.abc import Callable
from typing import Any, TypeVar

import flask_smorest
from apispec import BasePlugin
from flask import Flask, Response
from werkzeug.exceptions import HTTPException

from web import problems
from web.parsing import StrictParser, refuse_partial_bodies

View = TypeVar("View", bound=Callable[..., Any])


def header(description: str, **schema: Any) -> dict[str, Any]:
    """A header, whose value is a string unless `schema` has another type."""
    return {"description": description, "schema": {"type": "string", **schema}}


REQUEST_HEADERS = {
    "Idempotency-Key": header(
        "A unique key for this request: 1 to 255 printable ASCII characters. A retry with the same"
        " key returns the same task and creates nothing.",
        minLength=1,
        maxLength=255,
        pattern="^[ -~]+$",
    ),
    "If-Match": header("The ETag that the task must still have, or `*`; otherwise 412."),
    "If-None-Match": header("The ETag of your copy: 304 if it is still current."),
}
RESPONSE_HEADERS = {
    "ETag": header("The version of the content, for If-None-Match; of a task, also for If-Match."),
    "Idempotent-Replayed": header("The key was used before: nothing was created.", enum=["true"]),
    "Link": header('The next page, if there is one: `<…>; rel="next"` (RFC 8288).'),
    "Location": header("The path of the new task."),
    "Retry-After": header(
        "The number of seconds to wait before a retry.", type="integer", minimum=0
    ),
    "WWW-Authenticate": header("How to authenticate (RFC 6750)."),
    "X-Request-ID": header("The id of the request in the log."),
}
STATUS_HEADERS = {304: ["ETag"], 401: ["WWW-Authenticate"], 503: ["Retry-After"]}


class Blueprint(flask_smorest.Blueprint):
    """A blueprint that also documents the headers and the errors of its operations."""

    ARGUMENTS_PARSER = StrictParser()

    def __init__(
        self,
        *arguments: Any,
        guard: Callable[[], None] | None = None,
        errors: tuple[int, ...] = (),
        **options: Any,
    ) -> None:
        """Make a blueprint. Each of its operations can return these `errors`.

        `guard` runs before every operation, and refuses a caller without permission.
        """
        super().__init__(*arguments, **options)
        self._errors = errors
        self._guarded = guard is not None
        if guard:
            self.before_request(guard)
        self.before_request(refuse_partial_bodies)
        self._prepare_doc_cbks.append(self._prepare_operation_doc)

    def operation(self, name: str, *headers: str) -> Callable[[View], View]:
        """Document an operation: its name, and the request headers it reads.

        `_prepare_operation_doc` adds the errors that follow from a guard, headers and arguments.
        """

        def document(view: View) -> View:
            view.__dict__.setdefault("_apidoc", {})["operation"] = (name, headers)
            return view

        return document

    def _prepare_operation_doc(
        self, doc: dict[str, Any], doc_info: dict[str, Any], *, app: Flask, **_: Any
    ) -> dict[str, Any]:
        doc["operationId"], headers = doc_info["operation"]
        doc.setdefault("parameters", []).extend(headers)
        is_guarded = self._guarded and bool(app.extensions["auth"])
        possible = {
            401: is_guarded,
            403: is_guarded,
            304: "If-None-Match" in headers,
            412: "If-Match" in headers,
            415: "requestBody" in doc,
            422: 422 in doc["responses"],  # `arguments` added it, under smorest's own name.
        }
        doc["security"] = [{"bearer": []}] if is_guarded else []
        statuses = {status for status, is_possible in possible.items() if is_possible}
        for status in sorted(statuses | {400, 413, 500, *self._errors}):
            doc["responses"][status] = response_name(status)
        for response in doc["responses"].values():
            if isinstance(response, dict):
                response.setdefault("headers", {})["X-Request-ID"] = "X-Request-ID"
        return doc


def response_name(status: int) -> str:
    return problems.title(status).replace(" ", "")


class Docstrings(BasePlugin):
    """Describes a schema by its docstring, which `python -OO` removes."""

    def schema_helper(self, name: str, definition: Any, **options: Any) -> dict[str, Any]:
        docstring = options["schema"].__doc__
        return {"description": docstring} if docstring else {}


class Api(flask_smorest.Api):
    """Returns and documents every error as a problem document."""

    DEFAULT_ERROR_RESPONSE_NAME = None

    def __init__(self, app: Flask) -> None:
        super().__init__(app, spec_kwargs={"extra_plugins": [Docstrings()]})
        app.register_error_handler(MemoryError, problems.out_of_memory)
        components, details = self.spec.components, problems.DETAILS.copy()
        components.schemas.clear()  # Smorest's own errors and pages are not ours.
        if app.extensions["auth"]:
            scheme = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
            scheme["description"] = "A JWT whose `sub` is the `user_id` in the path."
            components.security_scheme("bearer", scheme)
        else:
            del details[401]
        for name, response_header in RESPONSE_HEADERS.items():
            components.header(name, {"required": name != "Link", **response_header}, lazy=True)
        for name, request_header in REQUEST_HEADERS.items():
            components.parameter(name, "header", request_header, lazy=True)
        for status, detail in ({304: "Your copy is current."} | details).items():
            headers = {name: name for name in (*STATUS_HEADERS.get(status, ()), "X-Request-ID")}
            response: dict[str, Any] = {"description": detail, "headers": headers}
            if status >= 400:
                content: dict[str, Any] = {"schema": problems.ProblemSchema}
                if status != 422:  # The example of ProblemSchema is a 422.
                    content["example"] = problems.problem(status, detail, "9f2c1d5e7a")
                response["content"] = {problems.CONTENT_TYPE: content}
            components.response(response_name(status), response, lazy=True)

    def handle_http_exception(self, error: HTTPException) -> Response:
        return problems.to_response(error)
