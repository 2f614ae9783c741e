"""The task model, and the SQL statements of every operation."""

from collections.abc import Callable, Iterator
from functools import partial
from random import getrandbits
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

import orjson
from flask import current_app
from peewee import (
    SQL,
    BooleanField,
    Case,
    ColumnBase,
    CompositeKey,
    Expression,
    Field,
    Model,
    Node,
    TextField,
    Tuple,
    UUIDField,
    Window,
    fn,
)
from werkzeug.exceptions import HTTPException, NotFound, PreconditionFailed, UnprocessableEntity

from database import (
    Dialect,
    Parameter,
    Read,
    Result,
    TaskDatabase,
    fetch_all,
    request_limit,
    statement,
)

MAX_LIMIT = 10_000
# The approximate size at which a page ends, and the number of tasks serialized in one call.
MAX_PAGE_BYTES, TASKS_PER_CHUNK = 8_000_000, 64
# Only after this many tasks does the database measure sizes, which takes a tenth of a list's time.
# The measured sizes are a little too small: so many extra bytes are requested to fill a page.
UNMEASURED_TASKS, MEASURING_ERROR_BYTES = 1000, 2_000_000
# A list is sorted by this many characters of a title, since a cursor has them in a URL.
TITLE_KEY_LENGTH = 100
NO_SUCH_TASK = "There is no such task."
# The namespace of the ids that are made from an Idempotency-Key (RFC 9562, section 5.5).
KEY_NAMESPACE = UUID("6f1c6ac4-5b0c-4c86-9d2a-0a8a4e0b7c11")


def fold(text: str) -> str:
    """Make texts that differ only in case equal, in every script; İ and ı count as i."""
    return text.replace("İ", "i").replace("ı", "i").casefold()


class TimestampField(Field):
    """A point in time to the microsecond; in SQLite, its RFC 3339 text."""

    field_type = "TIMESTAMPTZ"


class Task(Model):
    """A row of the table. The owner is part of the primary key: every statement must name it.

    Clients see the fields in this order, except HIDDEN ones. A new task has the default of a field
    that the client omits, or null.
    """

    id = UUIDField()
    user_id = TextField()
    title = TextField()
    description = TextField(null=True)
    completed = BooleanField(default=False)
    created_at = TimestampField()
    updated_at = TimestampField()
    # New with every write. It is the ETag, and shows a retried write that its first try succeeded.
    revision = UUIDField()
    title_lower = TextField()
    title_folded = TextField()
    description_folded = TextField(null=True)

    class Meta:
        primary_key = CompositeKey("user_id", "id")


FIELDS: dict[str, Field] = Task._meta.fields
# Fields for sorting and searching, each with its source field and function. Python computes them:
# lower() depends on the locale in PostgreSQL, and changes only ASCII letters in SQLite.
DERIVED: dict[str, tuple[str, Callable[[str], str]]] = {
    "title_lower": ("title", str.lower),
    "title_folded": ("title", fold),
    "description_folded": ("description", fold),
}
HIDDEN = {"revision", *DERIVED}
SET_BY_SERVER = {"id", "user_id", "created_at", "updated_at"}
PUBLIC_FIELDS = [name for name in FIELDS if name not in HIDDEN]
TEXTS = [FIELDS[name] for name in PUBLIC_FIELDS if isinstance(FIELDS[name], TextField)]
# Pairs the columns of a row with their names. An argument `strict` would double its cost.
with_names = partial(zip, PUBLIC_FIELDS)
# The fields that a client can set, with the values that a new task gets if they are omitted.
DEFAULTS = {name: FIELDS[name].default for name in PUBLIC_FIELDS if name not in SET_BY_SERVER}


class StoredTask(NamedTuple):
    """A task as clients see it, and its revision."""

    fields: dict[str, Any]
    revision: str


class Cursor(NamedTuple):
    """Where a page ended: the list's order, and the sort key and id of the page's last task."""

    sort: str
    order: str
    key: str
    id: str


class Page(NamedTuple):
    """A list of tasks as JSON, and the cursor of the next page, if there is one."""

    body: bytes
    cursor: Cursor | None


class PagePart(NamedTuple):
    """Part of a page: its tasks as chunks of JSON, its last task, and whether more tasks follow."""

    chunks: list[bytes]
    last: dict[str, Any]
    has_more: bool


def send(query: Callable[..., str], *variant: Any, read: Read = fetch_all, **values: Any) -> Result:
    """Send the statement that `query` builds for `variant`, with `values` for its parameters."""
    database: TaskDatabase = current_app.extensions["database"]
    return database.send(query(database, *variant), values, read)


def to_stored(row: tuple[Any, ...]) -> StoredTask:
    """Convert a row of COLUMNS."""
    return StoredTask(dict(with_names(row)), row[-1])


def with_derived(changes: dict[str, Any]) -> dict[str, Any]:
    """Add to `changes` their DERIVED fields."""
    derived = {
        name: changes[source] and derive(changes[source])
        for name, (source, derive) in DERIVED.items()
        if source in changes
    }
    return changes | derived


def new_revision() -> str:
    """Make a random UUID without a system call, during which another thread could take over."""
    return str(UUID(int=getrandbits(128), version=4))


def as_public(field: Field) -> Node:
    """A column as clients see it.

    A timestamp is text in UTC, in every time zone of a session. SQLite has no booleans, but its
    driver converts a column whose name ends in a known type.
    """
    if isinstance(field, TimestampField):
        text = f"""to_char({field.name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
        return Dialect(postgres=SQL(text), sqlite=field)
    if isinstance(field, BooleanField):
        return Dialect(postgres=field, sqlite=SQL(f'{field.name} AS "{field.name} [boolean]"'))
    return field


def next_timestamp(previous: TimestampField) -> Dialect:
    """The current time, or just after `previous` if the clock was set back since."""
    return Dialect(
        postgres=fn.greatest(NOW, previous + SQL("interval '1 microsecond'")),
        sqlite=fn.next_timestamp(NOW, previous),
    )


def contains(text: Field, part: Parameter) -> Dialect:
    """Whether `part` is a literal substring of `text`: no wildcards."""
    return Dialect(
        postgres=fn.strpos(text, part) > SQL("0"), sqlite=fn.instr(text, part) > SQL("0")
    )


def size_of(text: Field) -> Dialect:
    """The length of a text in bytes."""
    return Dialect(
        postgres=fn.coalesce(fn.octet_length(text), SQL("0")),
        sqlite=fn.coalesce(fn.length(text.cast("BLOB")), SQL("0")),
    )


def this_task(conditional: bool = False) -> Iterator[Node]:
    """The conditions on owner, id and, if the write is conditional, revision."""
    yield Task.user_id == Parameter("user_id")
    yield Task.id == Parameter("id")
    if conditional:
        yield IS_EXPECTED


# The database's clock, which all servers share; for SQLite, this machine's.
NOW = Dialect(postgres=fn.now(), sqlite=Parameter("now"))
PUBLIC_COLUMNS = [as_public(FIELDS[name]) for name in PUBLIC_FIELDS]
COLUMNS = [*PUBLIC_COLUMNS, Task.revision]
# All expected revisions are one parameter, so one statement fits any number of them.
IS_EXPECTED = Dialect(
    postgres=SQL("revision = ANY(%(expected)s::uuid[])"),
    sqlite=SQL("revision IN (SELECT value FROM json_each(:expected))"),
)
SORT_KEYS = {
    "created": Task.created_at,
    "updated": Task.updated_at,
    "title": fn.substr(Task.title_lower, SQL("1"), SQL(f"{TITLE_KEY_LENGTH}")),
}


@statement
def select_page(
    filtered: bool, searched: bool, sort: str, order: str, continued: bool, measured: bool
) -> Node:
    """A measured page has only as many tasks as fit into `room_bytes`, perhaps none."""
    key = SORT_KEYS[sort]
    order_by = (key.asc(), Task.id.asc()) if order == "asc" else (key.desc(), Task.id.desc())
    where = [Task.user_id == Parameter("user_id")]
    if filtered:
        where.append(Task.completed == Parameter("completed"))
    if searched:
        words = Parameter("search")
        where.append(contains(Task.title_folded, words) | contains(Task.description_folded, words))
    if continued:
        last = Tuple(Parameter("key"), Parameter("id"))
        where.append(Expression(Tuple(key, Task.id), ">" if order == "asc" else "<", last))
    limit: Node = Parameter("limit")
    if measured:
        # The least that the other fields, all names and the punctuation take.
        size: ColumnBase = SQL("190")
        for text in TEXTS:
            size += size_of(text)
        so_far = fn.SUM(size).over(
            order_by=order_by, start=Window.preceding(), end=Window.CURRENT_ROW
        )
        sizes = Task.select(so_far.alias("size")).where(*where).order_by(*order_by).limit(limit)
        fits = Expression(SQL("size"), "<", Parameter("room_bytes"))
        limit = sizes.select_from(fn.COUNT(SQL("1"))).where(fits)
    return Task.select(*PUBLIC_COLUMNS).where(*where).order_by(*order_by).limit(limit)


def list_tasks(
    user_id: str,
    *,
    status: str = "all",
    search: str | None = None,
    sort: str = "created",
    order: str = "asc",
    limit: int = MAX_LIMIT,
    cursor: Cursor | None = None,
) -> Page:
    """Read a page of a user's tasks, which ends at `limit` or at about MAX_PAGE_BYTES.

    A second statement is sent only for more than UNMEASURED_TASKS.
    """

    def read_part(limit: int, room_bytes: int, *, measured: bool) -> PagePart:
        part: PagePart = send(
            select_page,
            status != "all",
            search is not None,
            sort,
            order,
            cursor is not None,
            measured,
            read=lambda rows: serialize(rows, limit, room_bytes),
            user_id=user_id,
            completed=status == "completed",
            search=search and fold(search),
            key=cursor and cursor.key,
            id=cursor and cursor.id,
            limit=limit + 1,
            room_bytes=room_bytes + MEASURING_ERROR_BYTES,
        ).rows
        return part

    with request_limit():
        first_limit = min(limit, UNMEASURED_TASKS)
        chunks, last, has_more = read_part(first_limit, MAX_PAGE_BYTES, measured=False)
        room_bytes = MAX_PAGE_BYTES - sum(map(len, chunks))
        if has_more and first_limit < limit and room_bytes > 0:
            cursor = cursor_after(last, sort, order)
            rest, last, has_more = read_part(limit - first_limit, room_bytes, measured=True)
            chunks += rest
    chunks[:1] = [b"["]  # Replaces the first comma.
    body = b"".join([*chunks, b"]\n"])
    return Page(body, cursor_after(last, sort, order) if has_more else None)


def serialize(rows: Any, limit: int, room_bytes: int) -> PagePart:
    """Write the rows of a driver's cursor as JSON, until `limit` tasks or `room_bytes` are used up.

    Only a few rows are in memory at a time: all of them would take many times the page's size.
    """
    chunks: list[bytes] = []
    last: dict[str, Any] = {}
    while limit and room_bytes > 0:
        chunk = rows.fetchmany(min(limit, TASKS_PER_CHUNK))
        tasks = [dict(with_names(row)) for row in chunk]
        if not tasks:
            break
        chunks += b",", orjson.dumps(tasks)[1:-1]
        last = tasks[-1]
        limit -= len(tasks)
        room_bytes -= len(chunks[-1])
    return PagePart(chunks, last, rows.fetchone() is not None)


def cursor_after(task: dict[str, Any], sort: str, order: str) -> Cursor:
    """Make the cursor with which a list in this order continues after `task`."""
    by_title = sort == "title"
    key = task["title"].lower()[:TITLE_KEY_LENGTH] if by_title else task[f"{sort}_at"]
    return Cursor(sort, order, key, task["id"])


@statement
def insert() -> Node:
    """If the id exists already, the statement returns its row unchanged."""
    row: dict[Field, Node] = {field: Parameter(name) for name, field in FIELDS.items()}
    return (
        Task.insert(row | {Task.created_at: NOW, Task.updated_at: NOW})
        .on_conflict(conflict_target=[Task.user_id, Task.id], update={Task.id: Task.id})
        .returning(*COLUMNS)
    )


def create_task(
    user_id: str, body: dict[str, Any], *, key: str | None = None
) -> tuple[StoredTask, bool]:
    """Create a task, or find the task that `key` created before. Returns True for a new task.

    Raises UnprocessableEntity if the found task never changed and its content is not `body`.
    """
    content = DEFAULTS | body
    task_id = str(uuid5(uuid5(KEY_NAMESPACE, user_id), key) if key else uuid4())
    revision = new_revision()
    values = with_derived(content) | {"user_id": user_id, "id": task_id, "revision": revision}
    created = to_stored(send(insert, **values).rows[0])
    fields = created.fields
    if created.revision == revision:
        return created, True
    if fields["created_at"] == fields["updated_at"] and not content.items() <= fields.items():
        raise UnprocessableEntity("Idempotency-Key: already used for a task with other content.")
    return created, False


@statement
def select_one() -> Node:
    return Task.select(*COLUMNS).where(*this_task())


def get_task(user_id: str, task_id: str) -> StoredTask:
    """Find a task. Raises NotFound."""
    for row in send(select_one, user_id=user_id, id=task_id).rows:
        return to_stored(row)
    raise NotFound(NO_SUCH_TASK)


@statement
def update(names: tuple[str, ...], toggles: bool, conditional: bool) -> Node:
    """If the row already has the new revision, an earlier try toggled it: a retry keeps it."""
    changes: dict[Field, Node] = {FIELDS[name]: Parameter(name) for name in names}
    changes[Task.updated_at] = next_timestamp(Task.updated_at)
    changes[Task.revision] = Parameter("revision")
    if toggles:
        is_retry = Task.revision == Parameter("revision")
        changes[Task.completed] = Case(None, [(is_retry, Task.completed)], ~Task.completed)
    return Task.update(changes).where(*this_task(conditional)).returning(*COLUMNS)


def update_task(
    user_id: str,
    task_id: str,
    body: dict[str, Any],
    *,
    toggles: bool = False,
    expected: list[str] | None = None,
) -> StoredTask:
    """Set the fields in `body`, or toggle `completed`, if the revision is one of the `expected`.

    None expects any revision. Raises NotFound or PreconditionFailed. A retry overwrites
    what another client wrote to the same fields between the two tries.
    """
    if not body and not toggles:
        found = get_task(user_id, task_id)
        if expected is not None and found.revision not in expected:
            raise PreconditionFailed()
        return found
    changes = with_derived(body)
    revision = new_revision()
    with request_limit():
        result = send(
            update,
            tuple(sorted(changes)),
            toggles,
            expected is not None,
            user_id=user_id,
            id=task_id,
            revision=revision,
            expected=[*(expected or ()), revision],  # Set by the earlier try of a retry.
            **changes,
        )
        for row in result.rows:
            return to_stored(row)
        raise not_found_or_conflict(user_id, task_id, expected)


@statement
def delete(conditional: bool) -> Node:
    return Task.delete().where(*this_task(conditional)).returning(SQL("1"))


def delete_task(user_id: str, task_id: str, *, expected: list[str] | None = None) -> None:
    """Delete a task if its revision is one of the `expected`. Raises as `update_task` does.

    A retried delete that finds no task counts as done: most likely its earlier try deleted it.
    """
    with request_limit():
        result = send(delete, expected is not None, user_id=user_id, id=task_id, expected=expected)
        if not result.rows:
            error = not_found_or_conflict(user_id, task_id, expected)
            if not (result.was_retried and isinstance(error, NotFound)):
                raise error


def not_found_or_conflict(user_id: str, task_id: str, expected: list[str] | None) -> HTTPException:
    """Make the error of a write that found no row. A conditional write needs a second statement."""
    if expected is not None and send(select_one, user_id=user_id, id=task_id).rows:
        return PreconditionFailed()
    return NotFound(NO_SUCH_TASK)


@statement
def select_nothing() -> Node:
    return SQL("SELECT 1")


def ping() -> None:
    """Send a statement that reads nothing. Raises ServiceUnavailable."""
    send(select_nothing)
