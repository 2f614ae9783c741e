"""The API's operations, and the schemas of their requests and responses."""

import hashlib
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import quote, urlencode

import marshmallow as ma
import orjson
from flask import Response, jsonify, request
from flask.views import MethodView
from marshmallow.types import ErrorMessages
from werkzeug.exceptions import NotFound
from werkzeug.routing import BaseConverter

import auth
import models
from models import Cursor, Page, StoredTask
from web import Blueprint, BodySchema, Invalid, QuerySchema, fields

UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII)
IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")
# The rules of `check_storable` and of a title as regular expressions for clients. NOT_BLANK names
# the characters that are white space in Python but not in ECMAScript.
STORABLE = r"^[^\x00]*$"
NOT_BLANK = r"^[^\x00]*[^\s\x00\x1c-\x1f\x85][^\x00]*$"
TAG = {"type": "string", "maxLength": 50, "pattern": fields.WORD}
NAMED_TAG = {"type": "object", "properties": {"name": TAG}, "required": ["name"]}
TAGS_WITH_COMMAS = r"^(?!\s*\[)[^,\x00-\x1f\x7f-\x9f]{0,50}(,[^,\x00-\x1f\x7f-\x9f]{0,50}){0,19}$"
# The longest URL that can be requested with any method: Gunicorn takes a line of 8,190 bytes.
MAX_URL = 8190 - len("OPTIONS  HTTP/1.1")
PRIORITY_MESSAGES: ErrorMessages = {"invalid": "Must be a string or a whole number."}
TAGS_MESSAGES: ErrorMessages = {
    "invalid": "Must be an array of strings, or tags with commas between them."
}
NOT_A_CURSOR = "Not a cursor of this list: use the URL in the Link header."
STATUSES = {
    "all": None,
    **dict.fromkeys(("pending", "incomplete", "active", "open", "todo"), False),
    **dict.fromkeys(("completed", "complete", "done"), True),
}
SORTS = {
    "created": ("created_at", "created_date", "createdAt", "date"),
    "updated": ("updated_at", "updatedAt"),
    "title": ("alpha",),
    "due_date": ("due", "dueDate"),
    "priority": (),
}
# Each word for a sort, with the order that it names.
SORT_WORDS = {
    f"{word}{suffix}": (sort, suffix[1:])
    for sort, words in SORTS.items()
    for word in (sort, *words)
    for suffix in ("", "_asc", "_desc")
} | {"newest_first": ("created", "desc"), "oldest_first": ("created", "asc")}


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

    regex = "(?!deleted$)[^/]+"  # Which has a path of its own.
    schema: ClassVar = {"type": "string", "format": "uuid"}

    def to_python(self, value: str) -> str | None:
        return value.lower() if UUID.fullmatch(value.lower()) else None


class Priority(ma.fields.Field[str | None]):
    """A word, or None if it is blank. A whole number becomes its digits."""

    default_error_messages = PRIORITY_MESSAGES

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str | None:
        if type(value) not in {str, int}:
            raise self.make_error("invalid", input=value)
        return fields.to_word(str(value), 20) or None


class Tags(ma.fields.Field[str]):
    """Tags as a JSON array, without blank ones and without repetitions in another case."""

    default_error_messages = TAGS_MESSAGES

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        items = self._split(value.strip()) if isinstance(value, str) else value
        if not isinstance(items, list):
            raise self.make_error("invalid", input=value)
        tags: dict[str, str] = {}
        for item in items:
            tag = item.get("name") if isinstance(item, dict) else item
            if not isinstance(tag, str):
                raise self.make_error("invalid", input=value)
            if tag := fields.to_word(tag, 50):
                tags.setdefault(models.fold(tag), tag)
        if len(tags) > 20:
            raise ma.ValidationError("Must be at most 20 tags.")
        return orjson.dumps([*tags.values()]).decode()

    def _split(self, text: str) -> Any:
        """The items of a JSON array or, if it isn't one, of a text with commas between them."""
        if not text.startswith("["):
            return text.split(",")
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise self.make_error("invalid", input=text) from error


class CursorField(ma.fields.String):
    """A cursor, as `next_page_url` writes it."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            sort, order, task_id, key = urlsafe_b64decode(f"{value}==").decode().split(" ", 3)
            cursor = Cursor(sort, order, key, task_id)
            if cursor.sort not in models.SORT_TIMES:
                fields.check_storable(cursor.key)
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

    title = fields.StrippedText(
        validate=fields.length(500, least=1),
        metadata={
            "description": "Leading and trailing white space is removed.",
            "pattern": NOT_BLANK,
            "example": "Buy milk",
        },
    )
    description = fields.Text(
        allow_none=True,
        validate=fields.length(5000),
        metadata={
            "description": "null if the task has no description.",
            "pattern": STORABLE,
            "example": "Two bottles",
        },
    )
    completed = fields.StrictBoolean(metadata={"example": False})
    priority: ma.fields.Field[Any] = Priority(
        allow_none=True,
        metadata={
            "description": "A word of your choice; `medium` if it is null or blank. A number is"
            " stored as its digits. Lists sort `none`, `low`, `medium`, `high`, `urgent` and `p4`"
            " to `p1` by their meaning.",
            "anyOf": [
                {"type": "string", "maxLength": 20, "pattern": fields.WORD},
                {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1},
                {"type": "null"},
            ],
            "example": "high",
        },
    )
    due_date: ma.fields.Field[Any] = fields.DateOrTime(
        allow_none=True,
        metadata={
            "description": "A date, a time without a zone, or a time in a zone, which is converted"
            " to UTC. null if the task has no due date.",
            "anyOf": [
                {"type": "string", "format": "date"},
                {"type": "string", "format": "date-time"},
                {"type": "string", "pattern": fields.LOCAL_TIME},
                {"type": "null"},
            ],
            "example": "2026-01-31",
        },
    )
    tags: ma.fields.Field[Any] = Tags(
        allow_none=True,
        metadata={
            "description": "At most 20 tags. Blank ones are left out, and those that differ only in"
            " case from one before. A string has commas between the tags, or is a JSON array.",
            "anyOf": [
                {"type": "array", "maxItems": 20, "items": {"anyOf": [TAG, NAMED_TAG]}},
                {"type": "string", "pattern": TAGS_WITH_COMMAS},
                {"type": "null"},
            ],
            "example": ["home", "work"],
        },
    )


class TaskCreateSchema(TaskUpdateSchema):
    """A new task."""

    required_fields = ("title",)


class TaskSchema(TaskUpdateSchema):
    """A task, always with all of its fields."""

    id = ma.fields.UUID(metadata={"example": "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d"})
    user_id = ma.fields.String(metadata={"example": "alice"})
    created_at = ma.fields.AwareDateTime(metadata={"example": "2026-01-31T09:30:00.000000Z"})
    updated_at = ma.fields.AwareDateTime(metadata={"example": "2026-01-31T09:30:00.000000Z"})
    priority = ma.fields.String(metadata={"example": "high"})
    due_date = ma.fields.String(
        allow_none=True,
        metadata={
            "description": "`2026-01-31`, `2026-01-31T09:30:00` or `2026-01-31T09:30:00Z`, as it"
            " was sent. null if the task has no due date.",
            "example": "2026-01-31",
        },
    )
    tags = ma.fields.List(ma.fields.String(), metadata={"example": ["home", "work"]})
    completed_at = ma.fields.AwareDateTime(
        allow_none=True,
        metadata={"description": "null if the task is not completed.", "example": None},
    )
    required_fields = models.PUBLIC_FIELDS

    class Meta:
        fields = models.PUBLIC_FIELDS


class DeletedTaskSchema(TaskSchema):
    """A task in the trash."""

    deleted_at = ma.fields.AwareDateTime(metadata={"example": "2026-01-31T09:30:00.000000Z"})
    required_fields = models.DELETED_FIELDS

    class Meta:
        fields = models.DELETED_FIELDS


class TaskCompletionSchema(BodySchema):
    """An empty body toggles; `completed` sets."""

    optional = True
    completed = fields.StrictBoolean(metadata={"example": True})


class MessageSchema(ma.Schema):
    """What the server did."""

    message = ma.fields.String(required=True, metadata={"example": "Task deleted successfully"})


class ClearedSchema(MessageSchema):
    """How many tasks the server deleted."""

    deleted = ma.fields.Integer(required=True, metadata={"minimum": 0, "example": 3})


class StatusSchema(ma.Schema):
    """The server works."""

    status = ma.fields.String(required=True, metadata={"example": "ok"})


# The position in any list.
LIMIT = fields.DecimalInteger(
    1,
    models.MAX_LIMIT,
    metadata={"description": "The maximum number of tasks.", "default": models.MAX_LIMIT},
)
OFFSET = fields.DecimalInteger(
    0,
    models.MAX_OFFSET,
    # No default: a client that always sends defaults could not send `cursor`.
    metadata={"description": "The number of tasks to skip, without `cursor`."},
)
CURSOR = CursorField(
    metadata={
        "description": "The position to continue from, taken from the header `Link`.",
        "minLength": 1,
    }
)


class TrashQuerySchema(QuerySchema):
    """The part of a list of deleted tasks."""

    limit, offset, cursor = LIMIT, OFFSET, CURSOR
    never_empty = ("cursor",)

    @ma.post_load
    def to_arguments(self, query: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The arguments of `list_deleted_tasks`."""
        check_position(query, "deleted", "desc")
        return query


def check_position(query: dict[str, Any], sort: str, order: str) -> None:
    """Raise ValidationError unless a list in this order can begin where `query` says."""
    cursor = query.get("cursor")
    if cursor and (cursor.sort, cursor.order) != (sort, order):
        raise ma.ValidationError(NOT_A_CURSOR, "cursor")
    if cursor and "offset" in query:
        raise ma.ValidationError("Must not be sent together with cursor.", "offset")


class TaskQuerySchema(QuerySchema):
    """The filters and the order of a list."""

    status = fields.Choice(
        STATUSES,
        ("all", "pending", "completed"),
        metadata={
            "description": "`pending` (also `incomplete`, `active`, `open`, `todo`) or `completed`"
            " (also `complete`, `done`) selects only those tasks.",
            "default": "all",
        },
    )
    completed = fields.Choice(
        {"true": True, "false": False},
        ("true", "false"),
        metadata={"description": "Like `status`, which overrides it unless it is `all`."},
    )
    priority = fields.Words(
        20,
        commas=True,
        metadata={
            "description": "Only tasks with one of these priorities, in any case. Several are"
            " repeated or separated by commas; `all` selects every task."
        },
    )
    tag = fields.Words(
        20,
        commas=False,
        metadata={"description": "Only tasks with this tag, in any case; repeated: with all."},
    )
    tags = fields.Words(
        20,
        commas=True,
        metadata={"description": "Only tasks with one of these tags, separated by commas."},
    )
    due_date_from = fields.Day(
        metadata={"description": "Only tasks that are due on this day or later (also `due_from`)."}
    )
    due_date_to = fields.Day(
        metadata={"description": "Only tasks that are due on this day or before (also `due_to`)."}
    )
    search = fields.Text(
        validate=fields.length(200),
        metadata={
            "description": "Only tasks whose title or description contains this text (also `q`)."
            " Case does not matter; there are no wildcards.",
            "pattern": STORABLE,
        },
    )
    sort = fields.Choice(
        SORT_WORDS,
        SORTS,
        metadata={
            "description": "The sort key (also `sort_by`): the time of creation, of the last"
            " update, the title (lower case, first 100 characters), the due date, or the priority."
            " With `_asc` or `_desc` behind it, it names the order, too.",
            "default": "created",
        },
    )
    order = fields.Choice(
        {"asc": "asc", "desc": "desc"},
        ("asc", "desc"),
        metadata={
            "description": "Ascending or descending (also `sort_order`). The default is `asc`; for"
            " `priority` it is `desc`, the most urgent first. Tasks without a due date are the last"
            " in both orders.",
        },
    )
    limit, offset, cursor = LIMIT, OFFSET, CURSOR
    never_empty = ("cursor",)
    aliases: ClassVar = {
        "due_date_from": ("due_from",),
        "due_date_to": ("due_to",),
        "search": ("q",),
        "sort": ("sort_by",),
        "order": ("sort_order",),
    }

    @ma.post_load
    def to_arguments(self, query: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The arguments of `list_tasks`."""
        status = query.pop("status", None)
        if status is not None:
            query["completed"] = status
        if "all" in map(models.fold, query.get("priority") or ()):
            query["priority"] = None
        sort, order = query.pop("sort", ("created", ""))
        order = order or query.get("order") or ("desc" if sort == "priority" else "asc")
        check_position(query, sort, order)
        return query | {"sort": sort, "order": order}


LIST_QUERY, TRASH_QUERY = TaskQuerySchema(), TrashQuerySchema()
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
    for operation in (
        "getTask",
        "updateTask",
        "patchTask",
        "deleteTask",
        "completeTask",
        "restoreTask",
    )
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
    @tasks.arguments(LIST_QUERY, location="query")
    @tasks.response(200, TaskSchema(many=True), headers={"ETag": "ETag", "Link": "Link"})
    def get(self, query: dict[str, Any], user_id: str) -> Response:
        """List a user's tasks

        Without parameters: all tasks, oldest first. A page ends at `limit` or at about 8 MB. If
        there are more tasks, the header `Link` has the URL of the next page. Following the links
        returns every task exactly once, even while tasks are created, changed or deleted.
        """
        return page_response(models.list_tasks(user_id, **query), LIST_QUERY)

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

        The task goes to the trash, from which it can be restored. Deleting it again is a 404.
        """
        models.delete_task(user_id, task_id, expected=if_match())
        return jsonify(message="Task deleted successfully")


@tasks.route("/deleted")
class DeletedTasks(MethodView):
    @tasks.operation("listDeletedTasks", "If-None-Match")
    @tasks.arguments(TRASH_QUERY, location="query")
    @tasks.response(200, DeletedTaskSchema(many=True), headers={"ETag": "ETag", "Link": "Link"})
    def get(self, query: dict[str, Any], user_id: str) -> Response:
        """List deleted tasks

        The tasks in the trash, the last deleted first. The server removes them after a while, by
        default after 30 days.
        """
        return page_response(models.list_deleted_tasks(user_id, **query), TRASH_QUERY)


@tasks.route("/<task_id:task_id>/restore", parameters=[TASK_ID])
class TaskRestoration(MethodView):
    @tasks.operation("restoreTask")
    @tasks.response(200, TaskSchema, headers={"ETag": "ETag"})
    def post(self, user_id: str, task_id: str) -> Response:
        """Restore a deleted task

        All fields are as they were. A task that is not deleted stays unchanged. A body is ignored.
        """
        return task_response(models.restore_task(user_id, task_id))


@tasks.route("/completed/clear")
class CompletedTasks(MethodView):
    @tasks.operation("clearCompletedTasks")
    @tasks.response(200, ClearedSchema)
    def delete(self, user_id: str) -> Response:
        """Delete all completed tasks

        They go to the trash.
        """
        number = models.delete_completed_tasks(user_id)
        return jsonify(message="Completed tasks deleted successfully", deleted=number)


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


def page_response(page: Page, schema: QuerySchema) -> Response:
    """The response with a page of tasks, its ETag and the link to the next. Raises Invalid."""
    response = Response(page.chunks, mimetype="application/json")
    state = hashlib.sha256()
    for chunk in page.chunks:
        state.update(chunk)
    if page.cursor:
        link = f'<{next_page_url(page.cursor, schema)}>; rel="next"'
        state.update(link.encode())
        response.headers["Link"] = link
    response.headers["ETag"] = f'"{state.hexdigest()[:32]}"'
    return not_modified_if_known(response)


def not_modified_if_known(response: Response) -> Response:
    """Turn `response` into a 304 if If-None-Match names its ETag (RFC 9110, section 13.1.2).

    Without Cache-Control, a browser could show an old copy (RFC 9111, section 4.2.2).
    """
    response.headers["Cache-Control"] = "private, no-cache"
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


def next_page_url(cursor: Cursor, schema: QuerySchema) -> str:
    """The URL of the page after `cursor`, relative to this host (RFC 8288, section 3.1).

    Raises Invalid if it is longer than the server accepts.
    """
    text = f"{cursor.sort} {cursor.order} {cursor.id} {cursor.key}"
    value = urlsafe_b64encode(text.encode()).decode().rstrip("=")
    query = [pair for pair in schema.pairs(request) if pair[0] not in {"cursor", "offset"}]
    url = f"{quote(request.path)}?{urlencode([*query, ('cursor', value)], quote_via=quote)}"
    if len(url) > MAX_URL:
        longest = max(query, key=lambda pair: len(pair[1]))
        raise Invalid({longest[0]: ["Too long: the URL of the next page would not be accepted."]})
    return url


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
