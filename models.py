"""The task, and every statement that is ever sent."""

from collections.abc import Callable, Iterator
from random import getrandbits
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

import orjson
from flask import current_app
from peewee import (
    SQL,
    BooleanField,
    Case,
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

from database import Answer, Dialect, Parameter, Read, TaskDatabase, fetch_all, statement

MAX_PAGE = 10_000
# About where a page ends, how many tasks are written at once, and their size in UTF-8 at most.
MAX_BYTES, PIECE, SPARE = 8_000_000, 64, 2_000_000
# So many rows are asked for without a look at their size, which costs a tenth of a short list.
FEW = 1000
# How many characters of a title decide its place in a list: a cursor, which is part of an address,
# holds no more of it.
KEY_LENGTH = 100
NO_SUCH_TASK = "There is no such task."
# The root of the ids that are made from an Idempotency-Key (RFC 9562, section 5.5).
KEYS = UUID("6f1c6ac4-5b0c-4c86-9d2a-0a8a4e0b7c11")


class TimestampField(Field):
    """A point in time to the microsecond; in SQLite, its RFC 3339 text."""

    field_type = "TIMESTAMPTZ"


class Task(Model):
    """One row. The owner is part of the key, so that no statement can forget it.

    `revision` changes with every write: it is the entity tag, and how a write that is sent twice
    knows itself again. The last three are made of `title` and `description` in Python, since what
    lower() knows depends on the locale in PostgreSQL, and is ASCII in SQLite.
    """

    user_id = TextField()
    id = UUIDField()
    title = TextField()
    description = TextField(null=True)
    completed = BooleanField()
    created_at = TimestampField()
    updated_at = TimestampField()
    revision = UUIDField()
    title_lower = TextField()
    title_folded = TextField()
    description_folded = TextField(null=True)

    class Meta:
        primary_key = CompositeKey("user_id", "id")


class Tagged(NamedTuple):
    """A task, with the seven fields that the API shows, and its revision."""

    task: dict[str, Any]
    revision: str


class Cursor(NamedTuple):
    """Where a page ended: the list's order, and the sort key and id of the page's last task."""

    sort: str
    order: str
    key: str
    id: str


class Page(NamedTuple):
    """A list of tasks as JSON, and where it goes on if there are more."""

    body: bytes
    cursor: Cursor | None


class Part(NamedTuple):
    """Tasks as pieces of JSON, the last one, and whether more follow."""

    written: list[bytes]
    last: dict[str, Any]
    follows: bool


def list_tasks(
    user_id: str,
    *,
    status: str = "all",
    search: str | None = None,
    sort: str = "created",
    order: str = "asc",
    limit: int = MAX_PAGE,
    cursor: Cursor | None = None,
) -> Page:
    """A page of a user's tasks, which ends at `limit` or at about MAX_BYTES.

    A second statement is sent only if there are more than FEW tasks.
    """

    def part(limit: int, room: int, *, bounded: bool) -> Part:
        found: Part = send(
            select_page,
            status != "all",
            search is not None,
            sort,
            order,
            cursor is not None,
            bounded,
            read=lambda rows: read_part(rows, user_id, limit, room),
            user_id=user_id,
            completed=status == "completed",
            part=search and fold(search),
            key=cursor and cursor.key,
            id=cursor and cursor.id,
            limit=limit + 1,
            room=room + SPARE,
        ).rows
        return found

    few = min(limit, FEW)
    written, last, follows = part(few, MAX_BYTES, bounded=False)
    room = MAX_BYTES - sum(map(len, written))
    if follows and few < limit and room > 0:
        cursor = cursor_at(sort, order, last)
        rest, last, follows = part(limit - few, room, bounded=True)
        written += rest
    written[:1] = [b"["]
    return Page(b"".join([*written, b"]\n"]), cursor_at(sort, order, last) if follows else None)


def read_part(rows: Any, user_id: str, limit: int, room: int) -> Part:
    """Write what the driver's cursor has, and release it, until `limit` or `room` is used up."""
    written: list[bytes] = []
    last: dict[str, Any] = {}
    while limit and room > 0:
        piece = [shown(user_id, row) for row in rows.fetchmany(min(limit, PIECE))]
        if not piece:
            break
        written += b",", orjson.dumps(piece)[1:-1]
        last = piece[-1]
        limit -= len(piece)
        room -= len(written[-1])
    return Part(written, last, rows.fetchone() is not None)


def create_task(
    user_id: str,
    title: str,
    description: str | None = None,
    completed: bool = False,
    *,
    key: str | None = None,
) -> tuple[Tagged, bool]:
    """Create a task, or find the one that `key` created before. The flag tells which: True, new.

    Raises UnprocessableEntity if that one is untouched and differs from what is asked for.
    """
    content = {"title": title, "description": description, "completed": completed}
    revision = new_revision()
    created = tagged(
        user_id,
        send(
            insert,
            user_id=user_id,
            id=str(uuid5(uuid5(KEYS, user_id), key) if key else uuid4()),
            **with_folded(content),
            revision=revision,
        ).rows[0],
    )
    task = created.task
    if created.revision == revision:
        return created, True
    if task["created_at"] == task["updated_at"] and not content.items() <= task.items():
        raise UnprocessableEntity("Idempotency-Key: it belongs to a task with other content.")
    return created, False


def get_task(user_id: str, task_id: str) -> Tagged:
    """Find a task. Raises NotFound."""
    for row in send(select_one, user_id=user_id, id=task_id).rows:
        return tagged(user_id, row)
    raise NotFound(NO_SUCH_TASK)


def update_task(
    user_id: str,
    task_id: str,
    changes: dict[str, Any],
    *,
    flips: bool = False,
    expected: list[str] | None = None,
) -> Tagged:
    """Set the fields in `changes`, or flip `completed`, if the revision is one of the `expected`.

    None expects any revision. Raises NotFound or PreconditionFailed. A set that is sent twice
    overwrites what another client set these fields to in the instant between.
    """
    if not changes and not flips:
        found = get_task(user_id, task_id)
        if expected is not None and found.revision not in expected:
            raise PreconditionFailed()
        return found
    revision = new_revision()
    answer = send(
        update,
        tuple(sorted(changes)),
        flips,
        expected is not None,
        user_id=user_id,
        id=task_id,
        revision=revision,
        # Its own too: a write that is sent twice knows itself again.
        expected=[*(expected or ()), revision],
        **with_folded(changes),
    )
    for row in answer.rows:
        return tagged(user_id, row)
    raise missed(user_id, task_id, expected)


def delete_task(user_id: str, task_id: str, *, expected: list[str] | None = None) -> None:
    """Delete a task, under the same conditions.

    A delete whose first answer was lost and that finds nothing has most likely done it: it counts.
    """
    answer = send(delete, expected is not None, user_id=user_id, id=task_id, expected=expected)
    if not answer.rows:
        miss = missed(user_id, task_id, expected)
        if not (answer.resent and isinstance(miss, NotFound)):
            raise miss


def cursor_at(sort: str, order: str, task: dict[str, Any]) -> Cursor:
    """Where a list in this order goes on behind `task`."""
    key = task["title"].lower()[:KEY_LENGTH] if sort == "title" else task[f"{sort}_at"]
    return Cursor(sort, order, key, task["id"])


def ping() -> None:
    """Ask the database for a sign of life."""
    send(select_nothing)


def send(query: Callable[..., str], *variant: Any, read: Read = fetch_all, **values: Any) -> Answer:
    """Send a variant of one of the statements below, with its values."""
    database: TaskDatabase = current_app.extensions["database"]
    return database.send(query(database, *variant), values, read)


def shown(user_id: str, row: tuple[Any, ...]) -> dict[str, Any]:
    """A row of SHOWN, or of COLUMNS, as the API shows it."""
    return {
        "id": row[0],
        "user_id": user_id,
        "title": row[1],
        "description": row[2],
        "completed": bool(row[3]),
        "created_at": row[4],
        "updated_at": row[5],
    }


def tagged(user_id: str, row: tuple[Any, ...]) -> Tagged:
    """A row of COLUMNS as a task and its revision."""
    return Tagged(shown(user_id, row), row[6])


def new_revision() -> str:
    """A random UUID, but not from the kernel: asking it lets another thread take over."""
    return str(UUID(int=getrandbits(128), version=4))


def with_folded(changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` and what follows from them for sorting and searching."""
    values = dict(changes)
    if "title" in changes:
        values["title_lower"] = changes["title"].lower()
        values["title_folded"] = fold(changes["title"])
    if "description" in changes:
        values["description_folded"] = changes["description"] and fold(changes["description"])
    return values


def fold(text: str) -> str:
    """`text` without the difference of upper and lower case, for every language at once.

    İ and ı count as i: Turkish has them as its other cases of i and I.
    """
    return text.replace("İ", "i").replace("ı", "i").casefold()


def missed(user_id: str, task_id: str, expected: list[str] | None) -> HTTPException:
    """Why a write met no row: the only question that takes a second statement."""
    if expected is not None and send(select_one, user_id=user_id, id=task_id).rows:
        return PreconditionFailed()
    return NotFound(NO_SUCH_TASK)


def text_of(field: TimestampField) -> Dialect:
    """The text of a time stamp, in UTC whatever time zone the server's session is in."""
    text = f"""to_char({field.name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    return Dialect(postgres=SQL(text), sqlite=field)


def later(before: TimestampField) -> Dialect:
    """Now, but always after `before`: who comes second may have looked at the clock first."""
    return Dialect(
        postgres=fn.greatest(NOW, before + SQL("interval '1 microsecond'")),
        sqlite=fn.later(NOW, before),
    )


def contains(text: TextField, part: Parameter) -> Dialect:
    """Whether `part` occurs in `text`; no character in it means anything but itself."""
    return Dialect(
        postgres=fn.strpos(text, part) > SQL("0"), sqlite=fn.instr(text, part) > SQL("0")
    )


# The database's clock, which all instances share.
NOW = Dialect(postgres=fn.now(), sqlite=Parameter("now"))
# Without the owner, whom every statement names.
SHOWN = (
    Task.id,
    Task.title,
    Task.description,
    Task.completed,
    text_of(Task.created_at),
    text_of(Task.updated_at),
)
COLUMNS = (*SHOWN, Task.revision)
# Of a task in JSON, in bytes, at least.
SIZE = Dialect(
    postgres=SQL("octet_length(title) + coalesce(octet_length(description), 0) + 190"),
    sqlite=SQL(
        "length(CAST(title AS BLOB)) + coalesce(length(CAST(description AS BLOB)), 0) + 190"
    ),
)
# Any number of them is one parameter.
IS_EXPECTED = Dialect(
    postgres=SQL("revision = ANY(%(expected)s::uuid[])"),
    sqlite=SQL("revision IN (SELECT value FROM json_each(:expected))"),
)
SORTS = {
    "created": Task.created_at,
    "updated": Task.updated_at,
    "title": fn.substr(Task.title_lower, SQL("1"), SQL(f"{KEY_LENGTH}")),
}


@statement
def select_nothing() -> Node:
    return SQL("SELECT 1")


@statement
def select_one() -> Node:
    return Task.select(*COLUMNS).where(*this_task())


@statement
def select_page(
    filtered: bool, searched: bool, sort: str, order: str, continued: bool, bounded: bool
) -> Node:
    key = SORTS[sort]
    by = (key.asc(), Task.id.asc()) if order == "asc" else (key.desc(), Task.id.desc())
    wanted = [Task.user_id == Parameter("user_id")]
    if filtered:
        wanted.append(Task.completed == Parameter("completed"))
    if searched:
        part = Parameter("part")
        wanted.append(contains(Task.title_folded, part) | contains(Task.description_folded, part))
    if continued:
        last = Tuple(Parameter("key"), Parameter("id"))
        wanted.append(Expression(Tuple(key, Task.id), ">" if order == "asc" else "<", last))
    limit: Node = Parameter("limit")
    if bounded:
        size = fn.SUM(SIZE).over(order_by=by, start=Window.preceding(), end=Window.CURRENT_ROW)
        sizes = Task.select(size.alias("size")).where(*wanted).order_by(*by).limit(limit)
        limit = sizes.select_from(fn.COUNT(SQL("1"))).where(
            Expression(SQL("size"), "<", Parameter("room"))
        )
    return Task.select(*SHOWN).where(*wanted).order_by(*by).limit(limit)


@statement
def insert() -> Node:
    """If the id is taken, the row that has it comes back as it is."""
    row: dict[Field, Node] = {field: Parameter(field.name) for field in Task._meta.sorted_fields}
    return (
        Task.insert(row | {Task.created_at: NOW, Task.updated_at: NOW})
        .on_conflict(conflict_target=[Task.user_id, Task.id], update={Task.id: Task.id})
        .returning(*COLUMNS)
    )


@statement
def update(names: tuple[str, ...], flips: bool, conditional: bool) -> Node:
    """If the row has the new revision already, this has been here before: no second flip."""
    fields = with_folded(dict.fromkeys(names, ""))
    changes: dict[Field, Node] = {Task._meta.fields[name]: Parameter(name) for name in fields}
    changes[Task.updated_at] = later(Task.updated_at)
    changes[Task.revision] = Parameter("revision")
    if flips:
        mine = Task.revision == Parameter("revision")
        changes[Task.completed] = Case(None, [(mine, Task.completed)], ~Task.completed)
    return Task.update(changes).where(*this_task(conditional)).returning(*COLUMNS)


@statement
def delete(conditional: bool) -> Node:
    return Task.delete().where(*this_task(conditional)).returning(SQL("1"))


def this_task(conditional: bool = False) -> Iterator[Node]:
    """The conditions on owner, id and, if it is conditional, revision."""
    yield Task.user_id == Parameter("user_id")
    yield Task.id == Parameter("id")
    if conditional:
        yield IS_EXPECTED
