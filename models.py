"""The task model, and the SQL statements for tasks. Those for lists are in `lists.py`.

A deleted task is in the trash; a removed one is gone for good.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from operator import attrgetter, methodcaller
from random import getrandbits
from time import sleep, time_ns
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

import orjson
from flask import current_app
from peewee import (
    SQL,
    BooleanField,
    CompositeKey,
    Field,
    Model,
    ModelUpdate,
    Node,
    Select,
    TextField,
    Tuple,
    UUIDField,
    fn,
)
from werkzeug.exceptions import NotFound, PreconditionFailed, UnprocessableEntity

from database import Parameter, Read, TaskDatabase, request_deadline, sql, statement

# How many tasks one statement removes, the pause after it, and how many statements in a row may
# remove nothing before removing ends.
MAX_BATCH, REMOVAL_PAUSE_S, MAX_EMPTY_BATCHES = 1000, 0.1, 20
# How many writes of a task are remembered: as many as a server has connections by default. The mark
# of a write is the last characters of its revision, which are 62 random bits.
REMEMBERED_WRITES, MARK_LENGTH = 32, 17
NO_SUCH_TASK = "There is no such task."
# The namespace of the ids that are made from an Idempotency-Key (RFC 9562, section 5.5).
KEY_NAMESPACE = UUID("6f1c6ac4-5b0c-4c86-9d2a-0a8a4e0b7c11")


def fold(text: str) -> str:
    """Make texts that differ only in case equal, in every script; İ and ı count as i."""
    return text.replace("İ", "i").replace("ı", "i").casefold()


def fold_tags(tags: str) -> str:
    """Fold the tags in a JSON array. Each is between two line breaks, which no tag contains."""
    return "".join(f"\n{fold(tag)}\n" for tag in orjson.loads(tags))


class Task(Model):
    """A row of the table. All statements but a purge name its owner, first in the primary key.

    Clients see the fields in this order, except HIDDEN ones. A field that a client omits in a new
    task gets its default, which is null unless it is given here. A new field also needs a
    migration, and a field in `schemas.py`.
    """

    id = UUIDField()
    user_id = TextField()
    title = TextField()
    description = TextField(null=True)
    completed = BooleanField(default=False)
    created_at = sql.TimestampField()
    updated_at = sql.TimestampField()
    priority = TextField(default="medium")
    due_date = TextField(null=True)
    tags = TextField(default="[]")  # A JSON array.
    completed_at = sql.TimestampField(null=True)
    # When the task was deleted. Only the trash, a restore and a repeated create see such a task.
    deleted_at = sql.TimestampField(null=True)
    # The first part of the ETag. All attempts of a write send the same new one.
    revision = UUIDField()
    # The marks of the last writes, the newest first. A write that finds its own in the row has
    # succeeded with an earlier attempt.
    recent_writes = TextField()
    title_lower = TextField()
    title_folded = TextField()
    description_folded = TextField(null=True)
    priority_folded = TextField()
    tags_folded = TextField()

    class Meta:
        primary_key = CompositeKey("user_id", "id")


FIELDS: dict[str, Field] = Task._meta.fields
# Fields for sorting and searching, each with its source field and function. Python computes them:
# lower() depends on the locale in PostgreSQL, and changes only ASCII letters in SQLite.
DERIVED: dict[str, tuple[str, Callable[[str], str]]] = {
    "title_lower": ("title", str.lower),
    "title_folded": ("title", fold),
    "description_folded": ("description", fold),
    "priority_folded": ("priority", fold),
    "tags_folded": ("tags", fold_tags),
}
HIDDEN = {"deleted_at", "revision", "recent_writes", *DERIVED}
SET_BY_SERVER = {"id", "user_id", "created_at", "updated_at", "completed_at"}
PUBLIC_FIELDS = [name for name in FIELDS if name not in HIDDEN]
TRASH_FIELDS = [*PUBLIC_FIELDS, "deleted_at"]
# Pairs the columns of a row with their names. An argument `strict` would make it a third slower.
pair_names = partial(zip, PUBLIC_FIELDS)
# The fields that a client can set, with the values that a new task gets if they are omitted.
DEFAULTS = {name: FIELDS[name].default for name in PUBLIC_FIELDS if name not in SET_BY_SERVER}
# Makes the SQL of a statement, for a database and what varies in it.
Query = Callable[..., str]
# The id of a task; None is the id of no task.
TaskId = str | None
# The revisions that a write expects, of which the task must have one; None expects any.
Expected = list[str] | None
# All rows, and the number of rows that a statement changed.
fetch_all: Read = methodcaller("fetchall")
count_rows: Read = attrgetter("rowcount")


class NotRemovable(Exception):
    """The database's user may see tasks, but not remove them."""


class StoredTask(NamedTuple):
    """A task as clients see it, and its revision."""

    fields: dict[str, Any]
    revision: str


def send(
    query: Query, *variant: Any, read: Read = fetch_all, has_retry: bool = False, **values: Any
) -> Any:
    """Send the statement that `query` builds for `variant`, with `values` for its parameters.

    If it `has_retry`, another statement is sent after a lost answer, built with `is_retry`. Raises
    ServiceUnavailable, as does every function that sends a statement.
    """
    database: TaskDatabase = current_app.extensions["database"]
    first = query(database, *variant)
    retry = query(database, *variant, True) if has_retry else first
    return database.send(first, values, read, retry)


def to_task(row: tuple[Any, ...], pair: Any = pair_names) -> dict[str, Any]:
    """Convert a row of PUBLIC_COLUMNS, which others may follow."""
    task = dict(pair(row))
    task["tags"] = to_tags(task["tags"])
    return task


def to_tags(text: str) -> list[Any]:
    """Read the column of tags. Another program's text that is no JSON array means no tags."""
    try:
        tags = orjson.loads(text)
    except orjson.JSONDecodeError:
        return []
    return tags if isinstance(tags, list) else []


def to_stored(row: tuple[Any, ...]) -> StoredTask:
    """Convert a row of COLUMNS."""
    return StoredTask(to_task(row), row[-1])


def to_columns(body: dict[str, Any]) -> dict[str, Any]:
    """Replace null in `body` by the field's default, and add the DERIVED fields."""
    changes = {name: DEFAULTS[name] if value is None else value for name, value in body.items()}
    derived = {
        name: changes[source] and derive(changes[source])
        for name, (source, derive) in DERIVED.items()
        if source in changes
    }
    return changes | derived


def new_revision() -> str:
    """Make a random UUID without a system call, during which another thread could take over.

    The time is in it because two copies of a virtual machine have one generator of random numbers:
    they would take each other's writes for their own.
    """
    return str(UUID(int=getrandbits(128) ^ time_ns(), version=4))


def as_public(field: Field) -> Node:
    """A field as clients see it, by its name alone: it may be one of a subquery."""
    value = sql.as_json(field)
    # A server of version 1.0, which can run during a deploy, does not change `completed_at`.
    return sql.when(SQL("completed"), value) if field is Task.completed_at else value


PUBLIC_COLUMNS = [as_public(FIELDS[name]) for name in PUBLIC_FIELDS]
COLUMNS = [*PUBLIC_COLUMNS, Task.revision]
NEW_REVISION = Parameter("revision")
IS_OWNED = Task.user_id == Parameter("user_id")
IS_THIS = IS_OWNED & (Task.id == Parameter("id"))
NOT_DELETED = Task.deleted_at.is_null()
# Whether a task is not deleted and has any revision, or an expected one.
IS_CURRENT = NOT_DELETED & (
    Parameter("expected").is_null() | sql.is_one_of(Task.revision, "expected")
)
# Whether an earlier attempt of this write has changed the task.
MARK = fn.substr(NEW_REVISION, 36 - MARK_LENGTH + 1)  # A revision has 36 characters.
HAS_MARK = sql.contains(Task.recent_writes, MARK)
NEW_MARKS = fn.substr(MARK.concat(Task.recent_writes), 1, REMEMBERED_WRITES * MARK_LENGTH)


@statement
def insert() -> Node:
    """If the id exists already, the statement returns its row unchanged."""
    row: dict[Field, Node] = {field: Parameter(name) for name, field in FIELDS.items()}
    completed_at = sql.when(Parameter("completed"), sql.NOW)
    row |= {Task.created_at: sql.NOW, Task.updated_at: sql.NOW, Task.completed_at: completed_at}
    row[Task.recent_writes] = MARK
    return (
        Task.insert(row)
        .on_conflict(conflict_target=[Task.user_id, Task.id], update={Task.id: Task.id})
        .returning(*COLUMNS, as_public(Task.deleted_at), HAS_MARK)
    )


def create_task(
    user_id: str, body: dict[str, Any], *, key: str | None = None
) -> tuple[StoredTask, bool]:
    """Create a task, or find the task that `key` created before. Returns True for a new task.

    A found task that is in the trash stays there, and has `deleted_at`. Raises UnprocessableEntity
    if the found task never changed and its content is not `body`.
    """
    content = to_columns(DEFAULTS | body)
    task_id = str(uuid5(uuid5(KEY_NAMESPACE, user_id), key) if key else uuid4())
    values = content | {"user_id": user_id, "id": task_id, "revision": new_revision()}
    ((*row, deleted_at, is_new),) = send(insert, **values, deleted_at=None)
    created = to_stored(row)
    if is_new:
        return created, True
    if deleted_at:
        created.fields["deleted_at"] = deleted_at
    found = dict(pair_names(row))
    if found["created_at"] == found["updated_at"] and any(content[n] != found[n] for n in DEFAULTS):
        raise UnprocessableEntity("Idempotency-Key: already used for a task with other content.")
    return created, False


@statement
def select_one() -> Node:
    return Task.select(*COLUMNS).where(IS_THIS, NOT_DELETED)


def get_task(user_id: str, task_id: TaskId) -> StoredTask:
    """Find a task. Raises NotFound."""
    rows = send(select_one, user_id=user_id, id=task_id) if task_id else []
    if not rows:
        raise NotFound(NO_SUCH_TASK)
    return to_stored(rows[0])


def write_once(
    changes: dict[Field, Node], owned: Node, condition: Node, *, stays: Node = HAS_MARK
) -> ModelUpdate:
    """Change the `owned` tasks that fit the `condition`.

    A task for which `stays` is true gets only the mark of this write. By default, that is a task
    which an earlier attempt has changed, whatever others have written since.
    """
    changes = changes | {Task.revision: NEW_REVISION}
    once = {field: sql.when(stays, field, value) for field, value in changes.items()}
    once[Task.recent_writes] = sql.when(HAS_MARK, Task.recent_writes, NEW_MARKS)
    return Task.update(once).where(owned, condition | HAS_MARK)


@statement
def update(names: tuple[str, ...], is_retry: bool = False) -> Node:
    """Set the fields in `names`, and what follows from them. Without names, toggle `completed`.

    The first attempt has no case for each field, which takes 5 % less CPU. If it runs after its own
    retry, it changes nothing.
    """
    changes: dict[Field, Node] = {FIELDS[name]: Parameter(name) for name in names}
    changes[Task.updated_at] = sql.next_timestamp(Task.updated_at)
    toggles = not names
    if toggles:
        changes[Task.completed] = ~Task.completed
    if Task.completed in changes:
        completed_at = sql.when(Task.completed, Task.completed_at, changes[Task.updated_at])
        changes[Task.completed_at] = sql.when(changes[Task.completed], completed_at)
    if is_retry:
        return write_once(changes, IS_THIS, IS_CURRENT).returning(*COLUMNS)
    changes |= {Task.revision: NEW_REVISION, Task.recent_writes: NEW_MARKS}
    return Task.update(changes).where(IS_THIS, IS_CURRENT, ~HAS_MARK).returning(*COLUMNS)


def update_task(
    user_id: str, task_id: TaskId, body: dict[str, Any], expected: Expected
) -> StoredTask:
    """Set the fields in `body`, if the task has an expected revision. Without fields, only read it.

    Raises NotFound or PreconditionFailed.
    """
    if not body:
        found = get_task(user_id, task_id)
        if expected is not None and found.revision not in expected:
            raise PreconditionFailed
        return found
    changes = to_columns(body)
    row = write_task(update, user_id, task_id, expected, tuple(changes), has_retry=True, **changes)
    return to_stored(row)


def toggle_task(user_id: str, task_id: TaskId, expected: Expected) -> StoredTask:
    """Toggle `completed`, if the task has an expected revision.

    Raises NotFound or PreconditionFailed.
    """
    return to_stored(write_task(update, user_id, task_id, expected, (), has_retry=True))


def write_task(
    query: Query, user_id: str, task_id: TaskId, expected: Expected, *variant: Any, **options: Any
) -> Any:
    """Send a write of one task with the `options` of `send`, and return its row.

    Only a conditional write that finds no row needs a second statement. Raises NotFound or
    PreconditionFailed.
    """
    values = options | {"user_id": user_id, "id": task_id, "expected": expected}
    values["revision"] = new_revision()
    with request_deadline():
        rows = send(query, *variant, **values) if task_id else []
        if rows:
            return rows[0]
        if expected is not None:
            get_task(user_id, task_id)
            raise PreconditionFailed
    raise NotFound(NO_SUCH_TASK)


@statement
def delete() -> Node:
    return write_once({Task.deleted_at: sql.NOW}, IS_THIS, IS_CURRENT).returning(1)


def delete_task(user_id: str, task_id: TaskId, expected: Expected) -> None:
    """Put a task with an expected revision into the trash. Raises NotFound, PreconditionFailed."""
    write_task(delete, user_id, task_id, expected)


@statement
def delete_completed() -> Node:
    """If an earlier attempt has deleted tasks, only count these.

    Clears of one user wait for each other: two that lock rows in different orders would deadlock.
    """
    other = Task.alias("other")
    has_mark = sql.contains(other.recent_writes, MARK)
    marked = other.select(1).where(other.user_id == Parameter("user_id"), has_mark)
    condition = Task.completed & NOT_DELETED & ~fn.EXISTS(marked)
    owned = sql.holds_lock("user_id") & IS_OWNED
    return write_once({Task.deleted_at: sql.NOW}, owned, condition)


def delete_completed_tasks(user_id: str) -> int:
    """Put all completed tasks of a user into the trash. Returns their number."""
    revision = new_revision()
    return int(send(delete_completed, read=count_rows, user_id=user_id, revision=revision))


@statement
def restore() -> Node:
    changes: dict[Field, Node] = {Task.deleted_at: SQL("NULL")}
    restored = write_once(changes, IS_THIS, SQL("TRUE"), stays=HAS_MARK | NOT_DELETED)
    return restored.returning(*COLUMNS)


def restore_task(user_id: str, task_id: TaskId) -> StoredTask:
    """Take a task out of the trash; one that is not in it stays unchanged. Raises NotFound."""
    return to_stored(write_task(restore, user_id, task_id, None))


def is_removable(of_user: bool, task: Any = Task) -> Any:
    """Whether to remove a task: one of this user, or one of anyone that was deleted long ago."""
    if of_user:
        return (task.user_id == Parameter("user_id")) & (task.created_at <= Parameter("newest"))
    # A server of version 1.0 changes tasks in the trash as if they were not deleted.
    long_ago = sql.days_ago("days")
    return (task.deleted_at < long_ago) & (task.updated_at < long_ago)


def find_removable(of_user: bool) -> Select:
    """The tasks to remove. If no index gave their order, PostgreSQL might read the whole table."""
    found = Task.alias("found")
    order = found.created_at if of_user else found.deleted_at
    return found.select(found.user_id, found.id).where(is_removable(of_user, found)).order_by(order)


@statement
def select_removable(of_user: bool) -> Node:
    return find_removable(of_user).limit(1)


@statement
def remove(of_user: bool) -> Node:
    batch = find_removable(of_user).limit(MAX_BATCH)
    # The condition is repeated for a task that is restored after its row was found. If PostgreSQL
    # read by it and expected a single row, it would search the whole batch for each row.
    condition = fn.coalesce(is_removable(of_user), SQL("FALSE"))
    return Task.delete().where(condition, Tuple(Task.user_id, Task.id).in_(batch))


@statement
def select_count_and_newest() -> Node:
    return Task.select(fn.COUNT(1), fn.MAX(Task.created_at)).where(IS_OWNED)


def forget(user_id: str) -> int:
    """Remove all tasks that a user has now, also those in the trash. Returns their number.

    Tasks that the user creates meanwhile stay: otherwise, it might never end. Raises NotRemovable.
    """
    ((number, newest),) = send(select_count_and_newest, user_id=user_id)
    for _ in remove_batches(of_user=True, user_id=user_id, newest=newest):
        pass
    return int(number)


def purge(days: int) -> int:
    """Remove the tasks that have been in the trash for more than `days`. Returns their number."""
    total = 0
    with suppress(NotRemovable):  # Perhaps another server has removed each batch.
        for number in remove_batches(of_user=False, days=days):
            total += number
    return total


def remove_batches(*, of_user: bool, **values: Any) -> Iterator[int]:
    """Remove tasks in batches, with pauses in which other statements run. Yields each number.

    An empty batch is not the last one: another server may have removed its tasks. Raises
    NotRemovable after MAX_EMPTY_BATCHES in a row.
    """
    empty_batches = 0
    while send(select_removable, of_user, **values):
        if empty_batches == MAX_EMPTY_BATCHES:
            raise NotRemovable("the user in DATABASE_URL may see the tasks, but not remove them")
        number = send(remove, of_user, read=count_rows, **values)
        empty_batches = 0 if number else empty_batches + 1
        yield number
        sleep(REMOVAL_PAUSE_S)


def ping() -> None:
    """Send a statement that reads nothing. Raises ServiceUnavailable."""
    send(lambda _: "SELECT 1")
