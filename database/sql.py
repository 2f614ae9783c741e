"""Columns and expressions that PostgreSQL and SQLite spell differently."""

from peewee import SQL, BooleanField, Case, Field, Node, fn

from database.compile import Dialect, Parameter

# The database's clock, which all servers share; for SQLite, this machine's.
NOW = Dialect(postgres=fn.now(), sqlite=Parameter("now"))


class TimestampField(Field):
    """A point in time to the microsecond; in SQLite, its RFC 3339 text."""

    field_type = "TIMESTAMPTZ"


def when(condition: Node, value: Node, otherwise: Node | None = None) -> Node:
    """`value` if the condition is true, else `otherwise`, or null."""
    return Case(None, [(condition, value)], otherwise)


def as_json(field: Field) -> Node:
    """A field as JSON has it: a boolean, a time in UTC as RFC 3339 text, or any other value."""
    name = SQL(field.name)
    if isinstance(field, TimestampField):
        # The text is the same in every session, whatever its time zone.
        form = """'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'"""
        text = SQL(f"to_char({field.name} AT TIME ZONE 'UTC', {form})")
        return Dialect(postgres=text, sqlite=name)
    if isinstance(field, BooleanField):
        # SQLite has no booleans, but its driver converts a column whose name ends in a known type.
        typed = SQL(f'{field.name} AS "{field.name} [boolean]"')
        return Dialect(postgres=name, sqlite=typed)
    return name


def next_timestamp(previous: TimestampField) -> Dialect:
    """The current time, or just after `previous` if the clock was set back since."""
    return Dialect(
        postgres=fn.greatest(NOW, previous + SQL("interval '1 microsecond'")),
        sqlite=fn.next_timestamp(NOW, previous),
    )


def days_ago(days: str) -> Dialect:
    """The time that is a parameter's number of days before now, by the clock of NOW.

    In PostgreSQL, '1 day' has 23 hours when the session's time zone changes to summer time. In
    SQLite, the time is cut to its second: a text without a fraction comes before the others.
    """
    return Dialect(
        postgres=SQL(f"now() - %({days})s * interval '24 hours'"),
        sqlite=SQL(
            f"strftime('%Y-%m-%dT%H:%M:%S', substr(:now, 1, 19), '-' || :{days} || ' days')"
        ),
    )


def contains(text: Field, part: Node) -> Dialect:
    """Whether `part` is a literal substring of `text`: no wildcards."""
    return Dialect(postgres=fn.strpos(text, part) > 0, sqlite=fn.instr(text, part) > 0)


def holds_lock(name: str) -> Dialect:
    """True, once the transaction has the lock that a parameter's text names.

    PostgreSQL releases it at the transaction's end. SQLite has one writer at a time anyway.
    https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS
    """
    lock = SQL(f"(SELECT pg_advisory_xact_lock(hashtextextended(%({name})s, 0))) IS NOT NULL")
    return Dialect(postgres=lock, sqlite=SQL("TRUE"))


def is_one_of(field: Field, values: str) -> Dialect:
    """Whether `field` is among a parameter's values. One statement fits any number of them."""
    return Dialect(
        postgres=SQL(f"{field.name} = ANY(%({values})s::{field.field_type.lower()}[])"),
        sqlite=SQL(f"{field.name} IN (SELECT value FROM json_each(:{values}))"),
    )


def has_lines(text: Field, values: str, *, every: bool) -> Dialect:
    """Whether every one of a parameter's values, or at least one, is a line of `text`."""
    operator, exists, condition = ("@>", "NOT EXISTS", "=") if every else ("&&", "EXISTS", ">")
    return Dialect(
        postgres=SQL(f"string_to_array({text.name}, E'\\n') {operator} %({values})s::text[]"),
        sqlite=SQL(
            f"{exists} (SELECT 1 FROM json_each(:{values})"
            f" WHERE instr({text.name}, char(10) || value || char(10)) {condition} 0)"
        ),
    )


def size_of(text: Field) -> Dialect:
    """The length of a text in bytes, 0 for null."""
    name = f"coalesce({text.name}, '')" if text.null else text.name
    return Dialect(
        postgres=SQL(f"octet_length({name})"), sqlite=SQL(f"length(CAST({name} AS BLOB))")
    )
