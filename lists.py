"""Lists of tasks: their filters, their order, and pages of a limited size."""

import sys
import threading
from functools import partial
from typing import Any, NamedTuple

import orjson
from peewee import SQL, Case, ColumnBase, Node, TextField, Tuple, Value, Window, fn

import models
from database import Parameter, request_deadline, sql, statement, take_turn
from models import FIELDS, IS_OWNED, PUBLIC_COLUMNS, PUBLIC_FIELDS, TRASH_FIELDS, Task

MAX_LIMIT = MAX_OFFSET = 10_000
# The approximate size at which a page ends, and the number of tasks serialized in one call.
MAX_PAGE_BYTES, TASKS_PER_CHUNK = 8_000_000, 64
# The database measures sizes only after this many tasks: a measured list takes PostgreSQL up to a
# tenth longer, and SQLite up to twice as long.
UNMEASURED_TASKS = 400
# How many lists of more tasks a process reads at once. Each takes about 20 MB meanwhile, and more
# lists at once would not be faster.
MAX_LONG_LISTS = 4
# The most that a task can take in a page, if every character is escaped.
LONGEST_TASK_BYTES = 40_000
# How long a thread may run before another one takes over: usually, and while it writes a list.
SWITCH_S, SHORT_SWITCH_S = sys.getswitchinterval(), 0.001
long_list_turns, serialize_lock = threading.BoundedSemaphore(MAX_LONG_LISTS), threading.Lock()
TEXTS = [FIELDS[name] for name in PUBLIC_FIELDS if isinstance(FIELDS[name], TextField)]
pair_names_and_deletion = partial(zip, TRASH_FIELDS)


class Sorting(NamedTuple):
    """The sort key of a list, one of SORT_TEXTS or the time `{sort}_at`, and "asc" or "desc"."""

    sort: str
    order: str


OLDEST_FIRST, LAST_DELETED_FIRST = Sorting("created", "asc"), Sorting("deleted", "desc")


class Cursor(NamedTuple):
    """Where a page ended: how the list is sorted, and the page's last task and its sort key."""

    sorting: Sorting
    id: str
    key: str


class Page(NamedTuple):
    """A page of tasks, or a part of one, as chunks of JSON, and the cursor if more tasks follow."""

    chunks: list[bytes]
    cursor: Cursor | None


DUE_DAY = fn.substr(Task.due_date, 1, 10)
# The filters of a list by the names of their parameters.
FILTERS: dict[str, Node] = {
    "completed": Task.completed == Parameter("completed"),
    "priority": sql.is_one_of(Task.priority_folded, "priority"),
    "tag": sql.has_lines(Task.tags_folded, "tag", every=True),
    "tags": sql.has_lines(Task.tags_folded, "tags", every=False),
    "due_date_from": Parameter("due_date_from") <= DUE_DAY,
    "due_date_to": Parameter("due_date_to") >= DUE_DAY,
    "search": sql.contains(Task.title_folded, Parameter("search"))
    | sql.contains(Task.description_folded, Parameter("search")),
}
# How urgent a task is, for sorting. Every other word is a 2.
PRIORITY_RANKS = {
    "none": "0",
    **dict.fromkeys(("low", "p4", "4"), "1"),
    **dict.fromkeys(("high", "p2", "2"), "3"),
    **dict.fromkeys(("urgent", "critical", "p1", "1"), "4"),
}
# Lists are sorted by this many characters of a title: a cursor contains them, and is in a URL.
TITLE_KEY_LENGTH = 100
# The sort keys that are texts. A date comes after the times on its day.
SORT_TEXTS = {
    "title": fn.substr(Task.title_lower, 1, TITLE_KEY_LENGTH),
    "due_date": sql.when(fn.length(Task.due_date) == 10, Task.due_date.concat("~"), Task.due_date),
    "priority": Case(Task.priority_folded, [*PRIORITY_RANKS.items()], "2"),
}
# The longest keys: a title's, of characters that take four bytes each; of any other sort, a time.
LONGEST_KEYS = {"title": "\U0010ffff" * TITLE_KEY_LENGTH}
LONGEST_TIME = "2026-01-01T00:00:00.000000+00:00"


def sort_key(sorting: Sorting) -> ColumnBase:
    if text := SORT_TEXTS.get(sorting.sort):
        # Null is the last in both orders; only a due date can be null.
        return fn.coalesce(text, "~" if sorting.order == "asc" else "")
    if sorting.sort == "deleted":
        # PostgreSQL would read the index of `deleted_at` itself, which has the trash of all users.
        return fn.coalesce(Task.deleted_at, Task.deleted_at)
    return FIELDS[f"{sorting.sort}_at"]


@statement
def select_page(
    filters: tuple[str, ...], sorting: Sorting, continued: bool, measured: bool
) -> Node:
    """If `measured`, the database sends tasks until one exceeds `sent_bytes`.

    The last column is then their size so far, which can be too large: JSON that another program
    wrote into `tags` can be longer than ours.
    """
    sort, order = sorting
    key = sort_key(sorting)
    order_by = (key.asc(), Task.id.asc()) if order == "asc" else (key.desc(), Task.id.desc())
    where: list[Node] = [IS_OWNED, Task.deleted_at.is_null(sort != "deleted")]
    # PostgreSQL underestimates how many tasks pass a filter, and would read and sort all tasks of a
    # user. It expects that half of them pass a `coalesce`: it reads in order up to the limit.
    where += [fn.coalesce(FILTERS[name], SQL("FALSE")) for name in filters]
    if continued:
        place, last = Tuple(key, Task.id), Tuple(Parameter("key"), Parameter("id"))
        where.append(place > last if order == "asc" else place < last)
    found = Task.select().where(*where).order_by(*order_by).limit(Parameter("limit"))
    if not measured:
        found = found.offset(Parameter("offset"))
        if sort == "created":  # An index has this order.
            return found.select(*PUBLIC_COLUMNS)
    # The outer query converts only the tasks of the page; PostgreSQL would convert all that it
    # sorts. The rows stay in order. A cursor needs the sort key.
    found = found.select(*(FIELDS[name] for name in TRASH_FIELDS), key.alias("sort_key"))
    columns = [*PUBLIC_COLUMNS]
    if sort == "deleted":
        columns.append(models.as_public(Task.deleted_at))
    elif sort in SORT_TEXTS:
        columns.append(SQL("sort_key"))
    if not measured:
        return found.select_from(*columns)
    # The other fields, all names and the punctuation take at least 240 bytes.
    size = sum(map(sql.size_of, TEXTS), Value(240))
    so_far = fn.SUM(size).over(order_by=order_by, start=Window.preceding(), end=Window.CURRENT_ROW)
    page = found.select_extend(so_far.alias("so_far")).select_from(*columns, SQL("so_far"))
    return page.where(SQL("so_far") - size < Parameter("sent_bytes"))


def list_tasks(
    user_id: str,
    *,
    sorting: Sorting = OLDEST_FIRST,
    limit: int = MAX_LIMIT,
    offset: int = 0,
    cursor: Cursor | None = None,
    **filters: Any,
) -> Page:
    """Read a page of a user's tasks, which ends at `limit` or at about MAX_PAGE_BYTES.

    If sorted by `deleted`, it has the tasks in the trash, with `deleted_at`. `filters` are values
    for FILTERS; None selects all tasks. A second statement is sent only for more than
    UNMEASURED_TASKS.
    """
    values = {name: fold_all(value) for name, value in filters.items() if value is not None}

    def read_part(after: Cursor | None, most: int, room_bytes: int, measured: bool = False) -> Page:
        variant = tuple(sorted(values)), sorting, after is not None, measured
        # Enough for the task that fills the page, and one more, which shows that others follow.
        sent_bytes = room_bytes + 2 * LONGEST_TASK_BYTES if measured else None
        part: Page = models.send(
            select_page,
            *variant,
            read=lambda rows: serialize(rows, sorting, most, room_bytes, sent_bytes),
            user_id=user_id,
            key=after and after.key,
            id=after and after.id,
            limit=most + 1,
            offset=offset,
            sent_bytes=sent_bytes,
            **values,
        )
        return part

    with request_deadline():
        first_limit = min(limit, UNMEASURED_TASKS)
        chunks, end = read_part(cursor, first_limit, MAX_PAGE_BYTES)
        room_left = MAX_PAGE_BYTES - sum(map(len, chunks))
        if end and first_limit < limit and room_left > 0:
            with take_turn(long_list_turns, "too many long lists at once"):
                # A measured statement has no offset: its sum would include the skipped tasks.
                if sorting.sort != "created" and not offset:
                    # A task that moves between two statements would be in both parts, or neither.
                    chunks, end = read_part(cursor, limit, MAX_PAGE_BYTES, measured=True)
                else:
                    rest, end = read_part(end, limit - first_limit, room_left, measured=True)
                    chunks += rest
    chunks[:1] = [b"["]  # Replaces the first comma.
    chunks.append(b"]\n")
    return Page(chunks, end)


def fold_all(value: Any) -> Any:
    """Fold a text, or each text in a list."""
    if isinstance(value, list):
        return [models.fold(text) for text in value]
    return models.fold(value) if isinstance(value, str) else value


def serialize(
    rows: Any, sorting: Sorting, limit: int, room_bytes: int, sent_bytes: int | None
) -> Page:
    """Write the rows of a driver's cursor as JSON, until `limit` tasks or `room_bytes` are used up.

    If the database measured, it has sent rows until one exceeded `sent_bytes`. Only a few rows at a
    time become Python objects: all of them would take many times the page's size.
    """
    chunks: list[bytes] = []
    pair = pair_names_and_deletion if sorting.sort == "deleted" else models.pair_names
    while limit and room_bytes > 0:
        # As many as fit if each is the longest: a page exceeds its size by one task at most.
        fits = 1 + room_bytes // LONGEST_TASK_BYTES
        part = rows.fetchmany(min(limit, fits, TASKS_PER_CHUNK))  # SQLite searches only here.
        if not part:
            break
        # One thread at a time writes a list: all at once would be no faster. It gives way often, so
        # that `/health` is answered; short turns of all requests would cost a GET a tenth more CPU.
        with serialize_lock:
            sys.setswitchinterval(SHORT_SWITCH_S)
            try:
                chunks += b",", orjson.dumps([models.to_task(row, pair) for row in part])[1:-1]
            finally:
                sys.setswitchinterval(SWITCH_S)
        last = part[-1]
        limit -= len(part)
        room_bytes -= len(chunks[-1])
    was_cut = chunks and sent_bytes and last[-1] >= sent_bytes
    if not (rows.fetchone() or was_cut):
        return Page(chunks, None)
    # The sort key is one of the public columns, or the column after them.
    key = models.to_task(last).get(f"{sorting.sort}_at") or last[len(PUBLIC_FIELDS)]
    return Page(chunks, Cursor(sorting, last[0], key))
