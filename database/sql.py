"""Columns and expressions that PostgreSQL and SQLite spell differently."""

from peewee import SQL, BooleanField, Field, Node, fn

from database.compile import Dialect, Parameter

# The database's clock, which all servers share; for SQLite, this machine's.
NOW = Dialect(postgres=fn.now(), sqlite=Parameter("now"))


class TimestampField(Field):
    """A point in time to the microsecond; in SQLite, its RFC 3339 text."""

    field_type = "TIMESTAMPTZ"


def as_rfc3339(field: TimestampField) -> Dialect:
    """A time as text in UTC, in every time zone of a session."""
    text = f"""to_char({field.name} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')"""
    return Dialect(postgres=SQL(text), sqlite=field)


def as_boolean(field: BooleanField) -> Dialect:
    """SQLite has no booleans, but its driver converts a column whose name ends in a known type."""
    return Dialect(postgres=field, sqlite=SQL(f'{field.name} AS "{field.name} [boolean]"'))


def next_timestamp(previous: TimestampField) -> Dialect:
    """The current time, or just after `previous` if the clock was set back since."""
    return Dialect(
        postgres=fn.greatest(NOW, previous + SQL("interval '1 microsecond'")),
        sqlite=fn.next_timestamp(NOW, previous),
    )


def days_ago(days: str) -> Dialect:
    """The time that is a parameter's number of days before now, by the clock of NOW."""
    return Dialect(
        postgres=SQL(f"now() - %({days})s * interval '1 day'"),
        sqlite=SQL(f"strftime('%Y-%m-%dT%H:%M:%fZ', :now, '-' || :{days} || ' days')"),
    )


def contains(text: Field, part: Node) -> Dialect:
    """Whether `part` is a literal substring of `text`: no wildcards."""
    return Dialect(postgres=fn.strpos(text, part) > 0, sqlite=fn.instr(text, part) > 0)


def is_one_of(field: Field, values: str, kind: str = "text") -> Dialect:
    """Whether `field` is among a parameter's values. One statement fits any number of them."""
    return Dialect(
        postgres=SQL(f"{field.name} = ANY(%({values})s::{kind}[])"),
        sqlite=SQL(f"{field.name} IN (SELECT value FROM json_each(:{values}))"),
    )


def has_lines(text: Field, values: str, *, every: bool) -> Dialect:
    """Whether every one of a parameter's values, or at least one, is a line of `text`."""
    exists, condition = ("NOT EXISTS", "= 0") if every else ("EXISTS", "> 0")
    return Dialect(
        postgres=SQL(
            f"{exists} (SELECT 1 FROM unnest(%({values})s::text[]) AS t(line)"
            f" WHERE strpos({text.name}, E'\\n' || line || E'\\n') {condition})"
        ),
        sqlite=SQL(
            f"{exists} (SELECT 1 FROM json_each(:{values})"
            f" WHERE instr({text.name}, char(10) || value || char(10)) {condition})"
        ),
    )


def size_of(text: Field) -> Dialect:
    """The length of a text in bytes, 0 for null."""
    return Dialect(
        postgres=fn.coalesce(fn.octet_length(text), 0),
        sqlite=fn.coalesce(fn.length(text.cast("BLOB")), 0),
    )
