"""The API's operations."""

import hashlib
import re
from typing import Any
from urllib.parse import quote, urlencode

from flask import Response, jsonify, request
from flask.views import MethodView
from werkzeug.routing import BaseConverter

import auth
import lists
import models
import schemas
from lists import Cursor, Page
from models import StoredTask, TaskId
from settings import MAX_REQUEST_LINE
from web import Blueprint, Invalid, QuerySchema, not_modified_if_known, sent_tags

IDEMPOTENCY_KEY = re.compile(r"[ -~]{1,255}")
# The longest URL that can be requested with any method.
MAX_URL = MAX_REQUEST_LINE - len("OPTIONS  HTTP/1.1")
# The end of a task's ETag. In a version with more fields, the same task has another ETag.
TAG_END = f".{len(models.PUBLIC_FIELDS)}"
PAGE_HEADERS = {"ETag": "ETag", "Link": "Link"}
LIST_QUERY, TRASH_QUERY = schemas.TaskQuerySchema(), schemas.TrashQuerySchema()


class UserIdConverter(BaseConverter):
    """A text of 1 to 255 characters, without `/` or control characters."""

    character = r"[^/\x00-\x1f\x7f-\x9f]"
    regex = character + "{1,255}"


class TaskIdConverter(BaseConverter):
    """A UUID in its text form (RFC 9562, section 4), or None, which is a 404.

    That 404 must come after a 401, a 403 and a 422, so it is not raised here.
    """

    regex = r"(?!deleted\Z)[^/]+"  # `/deleted` is the list of deleted tasks.

    def to_python(self, value: str) -> TaskId:
        return value.lower() if schemas.UUID_TEXT.fullmatch(value.lower()) else None


USER_ID = {
    "in": "path",
    "name": "user_id",
    "description": "The owner of the tasks: any text without slashes or control characters.",
    "schema": {"type": "string", "maxLength": 255, "pattern": f"^{UserIdConverter.character}+$"},
    "example": "alice",
}
TASK_ID = {
    "in": "path",
    "name": "task_id",
    "description": "The `id` of the task.",
    "schema": {"type": "string", "format": "uuid"},
    "example": "5f0c2b0e-6c1f-4b7e-9a53-0c6a3a1f2b4d",
}
# OpenAPI links from a new task to the operations on it.
LINKS = {
    name: {
        "operationId": name,
        "parameters": {"user_id": "$response.body#/user_id", "task_id": "$response.body#/id"},
    }
    for name in ("getTask", "updateTask", "patchTask", "deleteTask", "completeTask", "restoreTask")
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


@tasks.route("")
class Tasks(MethodView):
    @tasks.operation("listTasks", "If-None-Match")
    @tasks.arguments(LIST_QUERY, location="query")
    @tasks.response(200, schemas.TaskSchema(many=True), headers=PAGE_HEADERS)
    def get(self, query: dict[str, Any], user_id: str) -> Response:
        """List a user's tasks

        Without parameters: all tasks, oldest first. A page ends at `limit` or at about 8 MB. If
        there are more tasks, the header `Link` has the URL of the next page. Following the links
        returns every task exactly once, even while tasks change; only a task whose sort key changes
        may move.
        """
        return page_response(lists.list_tasks(user_id, **query), LIST_QUERY)

    @tasks.operation("createTask", "Idempotency-Key")
    @tasks.doc(responses={201: {"links": LINKS}})
    @tasks.arguments(schemas.TaskCreateSchema())
    @tasks.response(201, schemas.TaskSchema, headers={"ETag": "ETag", "Location": "Location"})
    @tasks.alt_response(
        200,
        schema=schemas.ReplayedTaskSchema,
        description="The key was used before. The body is the task as it is now, perhaps deleted.",
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
    @tasks.response(200, schemas.TaskSchema, headers={"ETag": "ETag"})
    def get(self, user_id: str, task_id: TaskId) -> Response:
        """Get a task

        The task of another user is a 404, like a task that does not exist.
        """
        return not_modified_if_known(task_response(models.get_task(user_id, task_id)))

    @tasks.operation("updateTask", "If-Match")
    @tasks.arguments(schemas.TaskUpdateSchema())
    @tasks.response(200, schemas.TaskSchema, headers={"ETag": "ETag"})
    def put(self, body: dict[str, Any], user_id: str, task_id: TaskId) -> Response:
        """Update a task

        Changes the fields in the body and keeps the others, like PATCH. `{}` changes nothing.
        """
        return task_response(models.update_task(user_id, task_id, body, if_match()))

    @tasks.operation("patchTask", "If-Match")
    @tasks.doc(
        requestBody={
            "content": {"application/merge-patch+json": {"schema": schemas.TaskUpdateSchema}}
        }
    )
    @tasks.arguments(schemas.TaskUpdateSchema())
    @tasks.response(200, schemas.TaskSchema, headers={"ETag": "ETag"})
    def patch(self, body: dict[str, Any], user_id: str, task_id: TaskId) -> Response:
        """Update some fields of a task

        A JSON merge patch (RFC 7396): `{"description": null}` removes the description.
        """
        return task_response(models.update_task(user_id, task_id, body, if_match()))

    @tasks.operation("deleteTask", "If-Match")
    @tasks.response(200, schemas.MessageSchema)
    def delete(self, user_id: str, task_id: TaskId) -> Response:
        """Delete a task

        The task goes to the trash, from which it can be restored. Deleting it again is a 404.
        """
        models.delete_task(user_id, task_id, if_match())
        return jsonify(message="Task deleted successfully")


@tasks.route("/deleted")
@tasks.operation("listDeletedTasks", "If-None-Match")
@tasks.arguments(TRASH_QUERY, location="query")
@tasks.response(200, schemas.DeletedTaskSchema(many=True), headers=PAGE_HEADERS)
def list_deleted_tasks(query: dict[str, Any], user_id: str) -> Response:
    """List deleted tasks

    The tasks in the trash, the last deleted first. The server removes them after a while, by
    default after 30 days.
    """
    page = lists.list_tasks(user_id, sorting=lists.LAST_DELETED_FIRST, **query)
    return page_response(page, TRASH_QUERY)


@tasks.route("/<task_id:task_id>/restore", methods=["POST"], parameters=[TASK_ID])
@tasks.operation("restoreTask")
@tasks.response(200, schemas.TaskSchema, headers={"ETag": "ETag"})
def restore_task(user_id: str, task_id: TaskId) -> Response:
    """Restore a deleted task

    All fields are as they were. A task that is not deleted stays unchanged. A body is ignored.
    """
    return task_response(models.restore_task(user_id, task_id))


@tasks.route("/completed/clear", methods=["DELETE"])
@tasks.operation("clearCompletedTasks")
@tasks.response(200, schemas.ClearedSchema)
def clear_completed_tasks(user_id: str) -> Response:
    """Delete all completed tasks

    Every completed task of the user goes to the trash, from which each can be restored.
    """
    number = models.delete_completed_tasks(user_id)
    return jsonify(message="Completed tasks deleted successfully", deleted=number)


@tasks.route("/<task_id:task_id>/complete", methods=["PATCH"], parameters=[TASK_ID])
@tasks.operation("completeTask", "If-Match")
@tasks.arguments(schemas.TaskCompletionSchema(), required=False)
@tasks.response(200, schemas.TaskSchema, headers={"ETag": "ETag"})
def complete_task(body: dict[str, Any], user_id: str, task_id: TaskId) -> Response:
    """Toggle or set completion

    Without a body, or with `{}`, toggles `completed`. `{"completed": true}` sets it, which can be
    retried safely.
    """
    if body:
        return task_response(models.update_task(user_id, task_id, body, if_match()))
    return task_response(models.toggle_task(user_id, task_id, if_match()))


def task_response(task: StoredTask) -> Response:
    """The response with a task and its ETag."""
    response = jsonify(task.fields)
    response.headers["ETag"] = f'"{task.revision}{TAG_END}"'
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


def if_match() -> models.Expected:
    """The revisions in If-Match, or None for any. An ETag of version 1.0 is a revision alone."""
    if request.headers.get("If-Match", "*") == "*":
        return None
    revisions = (tag.removesuffix(TAG_END) for tag in sent_tags("If-Match"))
    return [*filter(schemas.UUID_TEXT.fullmatch, revisions)]


def idempotency_key() -> str | None:
    """The Idempotency-Key, or None. Raises Invalid."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise Invalid({"Idempotency-Key": ["Must be 1 to 255 printable ASCII characters."]})
    return key


def next_page_url(cursor: Cursor, schema: QuerySchema) -> str:
    """The URL of the page after `cursor`, relative to this host (RFC 8288, section 3.1).

    Raises Invalid if the URL of this or a later page could be longer than the server accepts.
    """
    query = [pair for pair in schema.pairs() if pair[0] not in {"cursor", "offset"}]
    pairs = [*query, ("cursor", "")]
    url = f"{quote(request.path)}?{urlencode(pairs, doseq=True, quote_via=quote)}"
    # The cursor of a later page can be longer, and a walk must not end before its last page.
    key = lists.LONGEST_KEYS.get(cursor.sorting.sort, lists.LONGEST_TIME)
    longest_cursor = schemas.encode_cursor(Cursor(cursor.sorting, cursor.id, key))
    if len(url + longest_cursor) > MAX_URL:
        longest, _ = max(query, key=lambda pair: len(str(pair[1])))
        raise Invalid({longest: ["Too long: the URL of the next page would not be accepted."]})
    return url + schemas.encode_cursor(cursor)


@service.route("/health")
@service.operation("getHealth")
@service.response(200, schemas.StatusSchema)
def health() -> Response:
    """Check liveness

    Sends nothing to the database, so a suspended database stays suspended.
    """
    return status_response()


@service.route("/ready")
@service.operation("getReadiness")
@service.alt_response(503, "ServiceUnavailable")
@service.response(200, schemas.StatusSchema)
def ready() -> Response:
    """Check readiness

    Sends one statement to the database, which resumes a suspended database.
    """
    models.ping()
    return status_response()


def status_response() -> Response:
    """The response of a check. No cache may keep it: the server could be down by now."""
    response = jsonify(status="ok")
    response.headers["Cache-Control"] = "no-store"
    return response
