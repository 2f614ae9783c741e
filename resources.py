"""The shapes that the API takes and gives, and its operations."""

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
# `storable`, and with more than white space, to which Python counts more than ECMAScript does.
STORABLE = r"^[^\x00]*$"
NOT_BLANK = r"^[^\x00]*[^\s\x00\x1c-\x1f\x85][^\x00]*$"
# What a client is told about a value, in the words of this API.
NO_CURSOR = "Not a cursor of this list: take it from the Link header."
MESSAGES: ErrorMessages = {"required": "Must be sent.", "null": "Must not be null."}
TEXT_MESSAGES = MESSAGES | {"invalid": "Must be a string."}
BOOLEAN_MESSAGES = MESSAGES | {"invalid": "Must be true or false."}
NO_NUMBER = "Must be a whole number from {min:,} to {max:,}."
NO_CHOICE = "Must be one of: {choices}."
TOO_SHORT = "Shorter than minimum length {min}."
TOO_LONG = "Longer than maximum length {max}."
# The revision of no task.
NOWHERE = "00000000-0000-0000-0000-000000000000"


class UserIdConverter(BaseConverter):
    """Any text of 1 to 255 characters but `/` and the control characters."""

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


def storable(text: str) -> None:
    """What both databases can hold: valid UTF-8 without NUL. Raises ValidationError."""
    if "\0" in text:
        raise ma.ValidationError("Must not contain a NUL character.")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ma.ValidationError("Not valid UTF-8.")


class Text(ma.fields.String):
    """Any text."""

    default_error_messages = TEXT_MESSAGES


class Stripped(Text):
    """Text without the white space around it."""

    def _deserialize(self, value: Any, *arguments: Any, **options: Any) -> str:
        return super()._deserialize(value, *arguments, **options).strip()


class StrictBoolean(ma.fields.Boolean):
    """true or false, where marshmallow takes 0, 1 and "yes" as well."""

    default_error_messages = BOOLEAN_MESSAGES

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if value is not True and value is not False:
            raise self.make_error("invalid", input=value)
        return bool(value)


class Digits(ma.fields.Integer):
    """A number in decimal digits, where int() takes "1_000", " 5" and "٣" as well."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        words = NO_NUMBER.format(min=least, max=most)
        options["error_messages"] = {"invalid": words}
        super().__init__(validate=Range(least, most, error=words), **options)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not re.fullmatch("[0-9]{1,18}", value):
            raise self.make_error("invalid", input=value)
        return int(value)


def length(most: int, *, least: int = 0) -> list[Callable[[Any], Any]]:
    """What a text of so many characters has to pass."""
    shortest = [Length(min=least, error=TOO_SHORT)] if least else []
    return [storable, *shortest, Length(max=most, error=TOO_LONG)]


def one_of(*words: str) -> OneOf:
    return OneOf(words, error=NO_CHOICE)


class CursorField(ma.fields.String):
    """A cursor, as `next_page` writes it."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            sort, order, task_id, key = urlsafe_b64decode(f"{value}==").decode().split(" ", 3)
            cursor = Cursor(sort, order, key, task_id)
            if cursor.sort == "title":
                storable(cursor.key)
            elif TIMESTAMP.fullmatch(cursor.key):
                datetime.fromisoformat(cursor.key)
            else:
                raise ValueError("no time stamp")
            if not UUID.fullmatch(cursor.id):
                raise ValueError("no task id")
        except ValueError as error:
            raise ma.ValidationError(NO_CURSOR) from error
        return cursor


class TaskUpdateSchema(BodySchema):
    """The fields to change; the others keep their values."""

    title = Stripped(
        validate=length(500, least=1),
        metadata={
            "description": "White space around it is removed.",
            "pattern": NOT_BLANK,
            "example": "Buy milk",
        },
    )
    description = Text(
        allow_none=True,
        validate=length(5000),
        metadata={
            "description": "null if there is none.",
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
    required_fields = models.SHOWN

    class Meta:
        fields = models.SHOWN


class TaskCompletionSchema(BodySchema):
    """Nothing, to flip; or the value to set."""

    optional = True
    completed = StrictBoolean(metadata={"example": True})


class MessageSchema(ma.Schema):
    """What was done."""

    message = ma.fields.String(required=True, metadata={"example": "Task deleted successfully"})


class StatusSchema(ma.Schema):
    """All is well."""

    status = ma.fields.String(required=True, metadata={"example": "ok"})


class TaskQuerySchema(ma.Schema):
    """Which tasks to list, and in which order."""

    status = Text(
        validate=one_of("all", "pending", "completed"),
        metadata={
            "description": "Only the tasks still to do, or only those done.",
            "default": "all",
        },
    )
    search = Text(
        validate=length(200, least=1),
        metadata={
            "description": "Only tasks with this text in title or description, in upper or lower"
            " case. No character has a special meaning.",
            "pattern": STORABLE,
        },
    )
    sort = Text(
        validate=one_of("created", "updated", "title"),
        metadata={
            "description": "What to sort by: a time, or the first 100 characters of the title in"
            " lower case.",
            "default": "created",
        },
    )
    order = Text(
        validate=one_of("asc", "desc"),
        metadata={"description": "The smallest first, or the largest.", "default": "asc"},
    )
    limit = Digits(
        1,
        models.MAX_LIMIT,
        metadata={"description": "How many tasks at most.", "default": models.MAX_LIMIT},
    )
    cursor = CursorField(
        metadata={
            "description": "Where to go on, as the address in the header `Link` has it.",
            "minLength": 1,
        }
    )

    def load(self, data: Any, **options: Any) -> Any:
        """As marshmallow does, which takes its time even over an empty query."""
        return super().load(data, **options) if data else {}

    @ma.validates_schema
    def cursor_belongs_to_this_order(self, query: dict[str, Any], **_: Any) -> None:
        cursor, order = (
            query.get("cursor"),
            (query.get("sort", "created"), query.get("order", "asc")),
        )
        if cursor and (cursor.sort, cursor.order) != order:
            raise ma.ValidationError(NO_CURSOR, "cursor")


PATH_PARAMETERS = [
    {
        "in": "path",
        "name": "user_id",
        "description": "Whose tasks: any name or id without a slash or control character.",
        "example": "alice",
    }
]
TASK_ID = {
    "in": "path",
    "name": "task_id",
    "description": "The `id` that the task was given when it was created.",
    "example": "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d",
}
# Where a new task is found, for whoever follows OpenAPI links.
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
service = Blueprint("service", __name__, description="Is it there, and can it work?")


@tasks.before_request
def refuse_impossible_ids() -> None:
    """Raises NotFound for an id that no task can have, before the database is asked.

    A preflight passes all the same: without it, a browser would not show the error to the page.
    """
    if request.method == "OPTIONS" or not request.view_args:
        return
    if request.view_args.get("task_id", NOWHERE) is None:
        raise NotFound(models.NO_SUCH_TASK)


@tasks.route("")
class Tasks(MethodView):
    @tasks.operation("listTasks", "If-None-Match")
    @tasks.arguments(TaskQuerySchema(), location="query")
    @tasks.response(200, TaskSchema(many=True), headers={"ETag": "ETag", "Link": "Link"})
    def get(self, query: dict[str, Any], user_id: str) -> Response:
        """List a user's tasks

        In order of creation, unless another order is asked for. A page ends at its limit or at
        about 8 MB. When more follow, the header `Link` has the address of the next page; whoever
        follows it sees every task once, whatever is written meanwhile.
        """
        page = models.list_tasks(user_id, **query)
        response = Response(page.body, mimetype="application/json")
        state = hashlib.sha256(page.body)
        if page.cursor:
            link = f'<{next_page(query, page.cursor)}>; rel="next"'
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
        description="The key was used before: the task as it is now.",
        headers={"ETag": "ETag", "Idempotent-Replayed": "Idempotent-Replayed"},
    )
    def post(self, body: dict[str, Any], user_id: str) -> Response:
        """Create a task

        With an `Idempotency-Key` this can be repeated without harm.
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

        A task of another user is not found, as one that does not exist.
        """
        return not_modified_if_known(task_response(models.get_task(user_id, task_id)))

    @tasks.operation("updateTask", "If-Match")
    @tasks.arguments(TaskUpdateSchema())
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def put(self, body: dict[str, Any], user_id: str, task_id: str) -> Response:
        """Update a task

        Fields that are absent stay as they are, as with PATCH; `{}` changes nothing.
        """
        return task_response(models.update_task(user_id, task_id, body, expected=if_match()))

    @tasks.operation("patchTask", "If-Match")
    @tasks.doc(
        requestBody={"content": {"application/merge-patch+json": {"schema": TaskUpdateSchema}}}
    )
    @tasks.arguments(TaskUpdateSchema())
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def patch(self, body: dict[str, Any], user_id: str, task_id: str) -> Response:
        """Change some fields of a task

        A JSON merge patch (RFC 7396): `{"description": null}` removes the description.
        """
        return task_response(models.update_task(user_id, task_id, body, expected=if_match()))

    @tasks.operation("deleteTask", "If-Match")
    @tasks.response(200, MessageSchema)
    def delete(self, user_id: str, task_id: str) -> Response:
        """Delete a task

        A second time it is a 404.
        """
        models.delete_task(user_id, task_id, expected=if_match())
        return jsonify(message="Task deleted successfully")


@tasks.route("/<task_id:task_id>/complete", parameters=[TASK_ID])
class TaskCompletion(MethodView):
    @tasks.operation("completeTask", "If-Match")
    @tasks.arguments(TaskCompletionSchema(), required=False)
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def patch(self, body: dict[str, Any], user_id: str, task_id: str) -> Response:
        """Complete a task, or take that back

        Without a body, or with `{}`, this flips `completed`. `{"completed": true}` sets it, which
        can be repeated without harm.
        """
        changed = models.update_task(user_id, task_id, body, toggles=not body, expected=if_match())
        return task_response(changed)


def task_response(task: StoredTask) -> Response:
    """The answer that shows a task."""
    response = jsonify(task.fields)
    response.headers["ETag"] = f'"{task.revision}"'
    return response


def not_modified_if_known(response: Response) -> Response:
    """`response`, or a 304 if the client has the state that its tag names (RFC 9110, 13.1.2)."""
    tag = response.headers["ETag"].strip('"')
    if "If-None-Match" in request.headers and request.if_none_match.contains_weak(tag):
        response.status_code = 304
        response.data = b""
    return response


def if_match() -> list[str] | None:
    """The revisions that the client accepts, None for any. Weak tags count as strong ones."""
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    tags = request.if_match.as_set(include_weak=True)
    return [tag for tag in tags if tag and UUID.fullmatch(tag)]


def idempotency_key() -> str | None:
    """The request's key, or None. Raises Invalid."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise Invalid({"Idempotency-Key": ["Must be 1 to 255 printable ASCII characters."]})
    return key


def next_page(query: dict[str, Any], cursor: Cursor) -> str:
    """The same list from `cursor` on, relative to this address (RFC 8288, section 3.1)."""
    text = f"{cursor.sort} {cursor.order} {cursor.id} {cursor.key}"
    value = urlsafe_b64encode(text.encode()).decode().rstrip("=")
    return f"{quote(request.path)}?{urlencode({**query, 'cursor': value}, quote_via=quote)}"


@service.route("/health")
@service.operation("getHealth")
@service.response(200, StatusSchema)
def health() -> Response:
    """Is the server there?

    Never asks the database, so that one that sleeps is not woken.
    """
    return jsonify(status="ok")


@service.route("/ready")
@service.operation("getReadiness", errors=(503,))
@service.response(200, StatusSchema)
def ready() -> Response:
    """Is the database there, too?

    Asks it for a sign of life, and so wakes one that sleeps.
    """
    models.ping()
    return jsonify(status="ok")
