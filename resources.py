"""The API's operations, and the schemas of their requests and responses."""

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import marshmallow as ma
from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow.types import ErrorMessages
from marshmallow.validate import Length, OneOf, Range
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter

import auth
import models
from models import Cursor, StoredTask
from web import Blueprint, BodySchema, Invalid

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")
# The rules of `check_storable` and of a title as regular expressions for clients. NOT_BLANK names
# the characters that are white space in Python but not in ECMAScript.
STORABLE = r"^[^\x00]*$"
NOT_BLANK = r"^[^\x00]*[^\s\x00\x1c-\x1f\x85][^\x00]*$"
# Validation messages, in place of the libraries' own.
NOT_A_CURSOR = "Not a cursor of this list: use the URL in the Link header."
MESSAGES: ErrorMessages = {"required": "Must be sent.", "null": "Must not be null."}
TEXT_MESSAGES = MESSAGES | {"invalid": "Must be a string."}
BOOLEAN_MESSAGES = MESSAGES | {"invalid": "Must be true or false."}
NOT_A_NUMBER = "Must be a whole number from {min:,} to {max:,}."
NOT_A_CHOICE = "Must be one of: {choices}."
TOO_SHORT = "Shorter than minimum length {min}."
TOO_LONG = "Longer than maximum length {max}."


class UserIdConverter(BaseConverter):
    """A text of 1 to 255 characters, without `/` and control characters."""

    regex = r"[^/\x00-\x1f\x7f-\x9f]{1,255}"
    schema: ClassVar = {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[^/\\x00-\\x1f\\x7f-\\x9f]+$",
    }


class TaskIdConverter(BaseConverter):
    """A UUID in its text form (RFC 9562, section 4), or None for any other text."""

    schema: ClassVar = {"type": "string", "format": "uuid"}

    def to_python(self, value: str) -> str | None:
        return value.lower() if UUID.fullmatch(value.lower()) else None


def check_storable(text: str) -> None:
    """Refuse what a database cannot store: NUL and invalid UTF-8. Raises ValidationError."""
    if "\0" in text:
        raise ma.ValidationError("Must not contain a NUL character.")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ma.ValidationError("Must be valid UTF-8.")


class Text(ma.fields.String):
    """Any string."""

    default_error_messages = TEXT_MESSAGES


class StrippedText(Text):
    """A string, from which leading and trailing white space is removed."""

    def _deserialize(self, value: Any, *arguments: Any, **options: Any) -> str:
        return super()._deserialize(value, *arguments, **options).strip()


class StrictBoolean(ma.fields.Boolean):
    """A JSON boolean. Marshmallow's own field also accepts 0, 1 and "yes"."""

    default_error_messages = BOOLEAN_MESSAGES

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if value is not True and value is not False:
            raise self.make_error("invalid", input=value)
        return bool(value)


class DecimalInteger(ma.fields.Integer):
    """A number in decimal digits. int() also accepts "1_000", " 5" and "٣"."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        words = NOT_A_NUMBER.format(min=least, max=most)
        options["error_messages"] = {"invalid": words}
        super().__init__(validate=Range(least, most, error=words), **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not re.fullmatch("[0-9]{1,18}", value):
            raise self.make_error("invalid", input=value)
        return int(value)


def length(most: int, *, least: int = 0) -> list[Callable[[Any], Any]]:
    """The validators of a string of `least` to `most` characters."""
    shortest = [Length(min=least, error=TOO_SHORT)] if least else []
    return [check_storable, *shortest, Length(max=most, error=TOO_LONG)]


def one_of(*words: str) -> OneOf:
    return OneOf(words, error=NOT_A_CHOICE)


class CursorField(ma.fields.String):
    """A cursor, as `next_page_url` writes it."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            sort, order, task_id, key = urlsafe_b64decode(f"{value}==").decode().split(" ", 3)
            cursor = Cursor(sort, order, key, task_id)
            if cursor.sort == "title":
                check_storable(cursor.key)
            elif TIMESTAMP.fullmatch(cursor.key):
                datetime.fromisoformat(cursor.key)
            else:
                raise ValueError("not a timestamp")
            if not UUID.fullmatch(cursor.id):
                raise ValueError("not a task id")
        except ValueError as error:
            raise ma.ValidationError(NOT_A_CURSOR) from error
        return cursor


class TaskUpdateSchema(BodySchema):
    """The fields to change; the others keep their values."""

    title = StrippedText(
        validate=length(500, least=1),
        metadata={
            "description": "Leading and trailing white space is removed.",
            "pattern": NOT_BLANK,
            "example": "Buy milk",
        },
    )
    description = Text(
        allow_none=True,
        validate=length(5000),
        metadata={
            "description": "null if the task has no description.",
            "pattern": STORABLE,
            "example": "Two bottles",
        },
    )
    completed = StrictBoolean(metadata={"example": False})


class TaskCreateSchema(TaskUpdateSchema):
    """A new task."""

    required_fields = ("title",)


class TaskSchema(TaskUpdateSchema):
    """A task, always with all of its fields."""

    id = ma.fields.UUID(metadata={"example": "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"})
    user_id = ma.fields.String(metadata={"example": "alice"})
    created_at = ma.fields.AwareDateTime(metadata={"example": "2026-01-31T09:30:00.000000Z"})
    updated_at = ma.fields.AwareDateTime(metadata={"example": "2026-01-31T09:30:00.000000Z"})
    required_fields = models.PUBLIC_FIELDS

    class Meta:
        fields = models.PUBLIC_FIELDS


class TaskCompletionSchema(BodySchema):
    """An empty body toggles; `completed` sets."""

    optional = True
    completed = StrictBoolean(metadata={"example": True})


class MessageSchema(ma.Schema):
    """What the server did."""

    message = ma.fields.String(required=True, metadata={"example": "Task deleted successfully"})


class StatusSchema(ma.Schema):
    """The server works."""

    status = ma.fields.String(required=True, metadata={"example": "ok"})


class TaskQuerySchema(ma.Schema):
    """The filters and the order of a list."""

    status = Text(
        validate=one_of("all", "pending", "completed"),
        metadata={
            "description": "`pending` or `completed` selects only those tasks.",
            "default": "all",
        },
    )
    search = Text(
        validate=length(200, least=1),
        metadata={
            "description": "Only tasks whose title or description contains this text. Case does not"
            " matter; there are no wildcards.",
            "pattern": STORABLE,
        },
    )
    sort = Text(
        validate=one_of(*models.SORT_KEYS),
        metadata={
            "description": "The sort key: the time of creation, of the last update, or the title"
            " (lower case, first 100 characters).",
            "default": "created",
        },
    )
    order = Text(
        validate=one_of("asc", "desc"),
        metadata={"description": "Ascending or descending.", "default": "asc"},
    )
    limit = DecimalInteger(
        1,
        models.MAX_LIMIT,
        metadata={"description": "The maximum number of tasks.", "default": models.MAX_LIMIT},
    )
    cursor = CursorField(
        metadata={
            "description": "The position to continue from, taken from the header `Link`.",
            "minLength": 1,
        }
    )

    def load(self, data: Any, **options: Any) -> Any:
        """Load a query. Marshmallow takes 8 µs for an empty one, 1 % of a short list."""
        return super().load(data, **options) if data else {}

    @ma.validates_schema
    def check_cursor_order(self, query: dict[str, Any], **_: Any) -> None:
        cursor, order = (
            query.get("cursor"),
            (query.get("sort", "created"), query.get("order", "asc")),
        )
        if cursor and (cursor.sort, cursor.order) != order:
            raise ma.ValidationError(NOT_A_CURSOR, "cursor")


PATH_PARAMETERS = [
    {
        "in": "path",
        "name": "user_id",
        "description": "The owner of the tasks: any text without slashes or control characters.",
        "example": "alice",
    }
]
TASK_ID = {
    "in": "path",
    "name": "task_id",
    "description": "The `id` of the task.",
    "example": "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d",
}
# OpenAPI links from a new task to the operations on it.
LINKS = {
    operation: {
        "operationId": operation,
        "parameters": {"user_id": "$response.body#/user_id", "task_id": "$response.body#/id"},
    }
    for operation in ("getTask", "updateTask", "patchTask", "deleteTask", "completeTask")
}
tasks = Blueprint(
    "tasks",
    __name__,
    url_prefix="/api/<user_id:user_id>/tasks",
    description="The tasks of one user.",
    guard=auth.authorize,
    errors=(404, 503),
)
service = Blueprint("service", __name__, description="Liveness and readiness.")


@tasks.before_request
def refuse_impossible_ids() -> None:
    """Raise NotFound for an id that no task can have, without asking the database.

    A preflight passes: if it failed, the browser would not let the page read the 404.
    """
    if request.method == "OPTIONS" or not request.view_args:
        return
    if request.view_args.get("task_id", "") is None:
        raise NotFound(models.NO_SUCH_TASK)


@tasks.route("")
class Tasks(MethodView):
    @tasks.operation("listTasks", "If-None-Match")
    @tasks.arguments(TaskQuerySchema(), location="query")
    @tasks.response(200, TaskSchema(many=True), headers={"ETag": "ETag", "Link": "Link"})
    def get(self, query: dict[str, Any], user_id: str) -> Response:
        """List a user's tasks

        Without parameters: all tasks, oldest first. A page ends at `limit` or at about 8 MB. If
        there are more tasks, the header `Link` has the URL of the next page. Following the links
        returns every task exactly once, even while tasks are created, changed or deleted.
        """
        page = models.list_tasks(user_id, **query)
        response = Response(page.body, mimetype="application/json")
        state = hashlib.sha256(page.body)
        if page.cursor:
            link = f'<{next_page_url(query, page.cursor)}>; rel="next"'
            state.update(link.encode())
            response.headers["Link"] = link
        response.headers["ETag"] = f'"{state.hexdigest()[:32]}"'
        return not_modified_if_known(response)

    @tasks.operation("createTask", "Idempotency-Key")
    @tasks.doc(responses={201: {"links": LINKS}})
    @tasks.arguments(TaskCreateSchema())
    @tasks.response(201, TaskSchema, headers={"ETag": "ETag", "Location": "Location"})
    @tasks.alt_response(
        200,
        schema=TaskSchema,
        description="The key was used before. The body is the task as it is now.",
        headers={"ETag": "ETag", "Idempotent-Replayed": "Idempotent-Replayed"},
    )
    def post(self, body: dict[str, Any], user_id: str) -> Response:
        """Create a task

        With an `Idempotency-Key` the request can be retried safely: it never creates a second task.
        """
        created, is_new = models.create_task(user_id, body, key=idempotency_key())
        response = task_response(created)
        if is_new:
            response.status_code = 201
            response.headers["Location"] = f"{quote(request.path)}/{created.fields['id']}"
        else:
            response.headers["Idempotent-Replayed"] = "true"
        return response


@tasks.route("/<task_id:task_id>", parameters=[TASK_ID])
class TaskById(MethodView):
    @tasks.operation("getTask", "If-None-Match")
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def get(self, user_id: str, task_id: str) -> Response:
        """Get a task

        The task of another user is a 404, like a task that does not exist.
        """
        return not_modified_if_known(task_response(models.get_task(user_id, task_id)))

    @tasks.operation("updateTask", "If-Match")
    @tasks.arguments(TaskUpdateSchema())
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def put(self, body: dict[str, Any], user_id: str, task_id: str) -> Response:
        """Update a task

        Changes the fields in the body and keeps the others, like PATCH. `{}` changes nothing.
        """
        return task_response(models.update_task(user_id, task_id, body, expected=if_match()))

    @tasks.operation("patchTask", "If-Match")
    @tasks.doc(
        requestBody={"content": {"application/merge-patch+json": {"schema": TaskUpdateSchema}}}
    )
    @tasks.arguments(TaskUpdateSchema())
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def patch(self, body: dict[str, Any], user_id: str, task_id: str) -> Response:
        """Update some fields of a task

        A JSON merge patch (RFC 7396): `{"description": null}` removes the description.
        """
        return task_response(models.update_task(user_id, task_id, body, expected=if_match()))

    @tasks.operation("deleteTask", "If-Match")
    @tasks.response(200, MessageSchema)
    def delete(self, user_id: str, task_id: str) -> Response:
        """Delete a task

        Deleting it again is a 404.
        """
        models.delete_task(user_id, task_id, expected=if_match())
        return jsonify(message="Task deleted successfully")


@tasks.route("/<task_id:task_id>/complete", parameters=[TASK_ID])
class TaskCompletion(MethodView):
    @tasks.operation("completeTask", "If-Match")
    @tasks.arguments(TaskCompletionSchema(), required=False)
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def patch(self, body: dict[str, Any], user_id: str, task_id: str) -> Response:
        """Toggle or set completion

        Without a body, or with `{}`, toggles `completed`. `{"completed": true}` sets it, which can
        be retried safely.
        """
        changed = models.update_task(user_id, task_id, body, toggles=not body, expected=if_match())
        return task_response(changed)


def task_response(task: StoredTask) -> Response:
    """The response with a task and its ETag."""
    response = jsonify(task.fields)
    response.headers["ETag"] = f'"{task.revision}"'
    return response


def not_modified_if_known(response: Response) -> Response:
    """Turn `response` into a 304 if If-None-Match names its ETag (RFC 9110, section 13.1.2)."""
    tag = response.headers["ETag"].strip('"')
    if "If-None-Match" in request.headers and request.if_none_match.contains_weak(tag):
        response.status_code = 304
        response.data = b""
    return response


def if_match() -> list[str] | None:
    """The revisions in If-Match, or None for any. A weak tag is treated as strong."""
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    tags = request.if_match.as_set(include_weak=True)
    return [tag for tag in tags if tag and UUID.fullmatch(tag)]


def idempotency_key() -> str | None:
    """The Idempotency-Key, or None. Raises Invalid."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise Invalid({"Idempotency-Key": ["Must be 1 to 255 printable ASCII characters."]})
    return key


def next_page_url(query: dict[str, Any], cursor: Cursor) -> str:
    """The URL of the page after `cursor`, relative to this host (RFC 8288, section 3.1)."""
    text = f"{cursor.sort} {cursor.order} {cursor.id} {cursor.key}"
    value = urlsafe_b64encode(text.encode()).decode().rstrip("=")
    return f"{quote(request.path)}?{urlencode({**query, 'cursor': value}, quote_via=quote)}"


@service.route("/health")
@service.operation("getHealth")
@service.response(200, StatusSchema)
def health() -> Response:
    """Check liveness

    Sends nothing to the database, so a suspended database stays suspended.
    """
    return jsonify(status="ok")


@service.route("/ready")
@service.operation("getReadiness", errors=(503,))
@service.response(200, StatusSchema)
def ready() -> Response:
    """Check readiness

    Sends one statement to the database, which resumes a suspended database.
    """
    models.ping()
    return jsonify(status="ok")
