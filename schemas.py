"""The schemas of requests and responses."""

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable
from datetime import datetime
from typing import Any, ClassVar

import marshmallow as ma
import orjson

import lists
import models
from lists import Cursor, Sorting
from web import BodySchema, QuerySchema, fields

UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# As the server writes times, or as other programs do in SQLite, such as its own datetime('now').
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|\+00:00)?", re.ASCII)
# The rules for any text, a title and tags, as regular expressions for clients. NOT_BLANK excludes
# what is white space only in Python, and allows the byte order mark, which is white space only in
# ECMAScript. A range around this mark stands for it, since a Go file must not contain the mark.
AROUND_BYTE_ORDER_MARK = "[\ufe6b-\uff01]"
STORABLE = r"^[^\x00]*$"
NOT_BLANK = rf"^{fields.SPACES}([^\s\x00\x1c-\x1f\x85]|{AROUND_BYTE_ORDER_MARK})[^\x00]*$"
TAG = {"type": "string", "maxLength": 50, "pattern": fields.WORD}
NAMED_TAG = {"type": "object", "properties": {"name": TAG}, "required": ["name"]}
TAGS_WITH_COMMAS = (
    r"^[^\S\x00-\x1f\x7f-\x9f]*"
    r"([^\s\[,\x00-\x1f\x7f-\x9f][^,\x00-\x1f\x7f-\x9f]{0,49})?"
    r"(,[^,\x00-\x1f\x7f-\x9f]{0,50}){0,19}$"
)
NOT_TAGS = "Must be an array of strings, or tags with commas between them."
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


class Choice(fields.Described):
    """A word in any case, which becomes its meaning. Messages list the `main` words, or all."""

    def __init__(
        self, description: str, meanings: dict[str, Any], main: Iterable[str] = (), **metadata: Any
    ) -> None:
        super().__init__(description, type="string", enum=[*(main or meanings)], **metadata)
        self.meanings = {models.fold(word): meaning for word, meaning in meanings.items()}

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        word = models.fold(value)
        if word not in self.meanings:
            raise ma.ValidationError(f"Must be one of: {', '.join(self.metadata['enum'])}.")
        return self.meanings[word]


class Priority(fields.Described):
    """A word, or None if it is blank. A whole number becomes its digits."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str | None:
        if type(value) not in {str, int}:
            raise ma.ValidationError("Must be a string or a whole number of up to 64 bits.")
        return fields.to_word(str(value), 20) or None


class Tags(fields.Described):
    """Tags as a JSON array, without blank ones and without repetitions in another case."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str:
        items = self._split(value.strip()) if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ma.ValidationError(NOT_TAGS)
        names: list[Any] = [item.get("name") if isinstance(item, dict) else item for item in items]
        if not all(isinstance(name, str) for name in names):
            raise ma.ValidationError(NOT_TAGS)
        tags: dict[str, str] = {}
        for name in dict.fromkeys(names):  # 128 KiB of commas would otherwise take 0.25 s.
            if tag := fields.to_word(name, 50):
                tags.setdefault(models.fold(tag), tag)
            if len(tags) > 20:
                raise ma.ValidationError("Must have at most 20 tags.")
        return orjson.dumps([*tags.values()]).decode()

    def _split(self, text: str) -> Any:
        """The items of a JSON array or, if it isn't one, of a text with commas between them."""
        if not text.startswith("["):
            return text.split(",")
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise ma.ValidationError(NOT_TAGS) from error


class CursorField(fields.Described, ma.fields.String):
    """A cursor, as `encode_cursor` writes it."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            sort, order, task_id, key = urlsafe_b64decode(f"{value}==").decode().split(" ", 3)
            if not UUID_TEXT.fullmatch(task_id):
                raise ValueError("not a task id")
            if sort in lists.SORT_TEXTS:
                fields.check_storable(key)
            else:
                datetime.fromisoformat(key if TIMESTAMP.fullmatch(key) else "")
        except ValueError as error:
            raise ma.ValidationError(NOT_A_CURSOR) from error
        return Cursor(Sorting(sort, order), task_id, key)


def encode_cursor(cursor: Cursor) -> str:
    """`cursor` for a URL, without the padding of Base64 (RFC 4648, section 5)."""
    parts = *cursor.sorting, cursor.id, cursor.key
    return urlsafe_b64encode(" ".join(parts).encode()).decode().rstrip("=")


class TaskUpdateSchema(BodySchema):
    """The fields to change; the others keep their values."""

    title = fields.StrippedText(
        "Leading and trailing white space is removed.",
        most=500,
        least=1,
        pattern=NOT_BLANK,
        example="Buy milk",
    )
    description = fields.Text(
        "null if the task has no description.",
        most=5000,
        allow_none=True,
        pattern=STORABLE,
        example="Two bottles",
    )
    completed = fields.StrictBoolean("Whether the task is done.", example=False)
    priority: ma.fields.Field[Any] = Priority(
        "A word of your choice; `medium` if it is null or blank. A number is stored as its digits."
        " Lists sort `none`, `low`, `medium`, `high`, `urgent` and `p4` to `p1` by their meaning.",
        allow_none=True,
        anyOf=[
            {"type": "string", "maxLength": 20, "pattern": fields.WORD},
            # What every language can hold: some refuse a document with a larger bound.
            {"type": "integer", "minimum": 1 - 2**53, "maximum": 2**53 - 1},
            {"type": "null"},
        ],
        example="high",
    )
    due_date: ma.fields.Field[Any] = fields.DateOrTime(
        "A date, a time without a zone, or a time in a zone, which is converted to UTC. null if the"
        " task has no due date.",
        allow_none=True,
        type="string",
        pattern=fields.EMPTY_DATE_OR_TIME,
        example="2026-01-31",
    )
    tags: ma.fields.Field[Any] = Tags(
        "At most 20 tags. Blank tags are dropped, and so is a tag that differs only in case from an"
        " earlier one. In a string, commas separate the tags.",
        allow_none=True,
        anyOf=[
            {"type": "array", "maxItems": 20, "items": {"anyOf": [TAG, NAMED_TAG]}},
            {"type": "string", "pattern": TAGS_WITH_COMMAS},
            {"type": "null"},
        ],
        example=["home", "work"],
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
            "description": "`2026-01-31`, `2026-01-31T09:30:00` or `2026-01-31T09:30:00Z`, in the"
            " form it was sent, with an offset converted to UTC. null if the task has no due date.",
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

    def on_bind_field(self, field_name: str, field_obj: ma.fields.Field[Any]) -> None:
        """Drop the limits of texts: some clients count the characters of a response differently."""
        super().on_bind_field(field_name, field_obj)
        field_obj.validators = []
        field_obj.metadata = {
            name: value for name, value in field_obj.metadata.items() if name != "pattern"
        }


class ReplayedTaskSchema(TaskSchema):
    """A task that was created before. It has `deleted_at` if it is in the trash."""

    deleted_at = ma.fields.AwareDateTime(metadata={"example": "2026-01-31T09:30:00.000000Z"})

    class Meta:
        fields = models.TRASH_FIELDS


class DeletedTaskSchema(ReplayedTaskSchema):
    """A task in the trash."""

    required_fields = models.TRASH_FIELDS


class TaskCompletionSchema(BodySchema):
    """An empty body toggles; `completed` sets."""

    optional = True
    completed = fields.StrictBoolean(
        "The state to set. Without it, `completed` is toggled.", example=True
    )


class MessageSchema(ma.Schema):
    """What the server did."""

    message = ma.fields.String(required=True, metadata={"example": "Task deleted successfully"})


class ClearedSchema(ma.Schema):
    """How many tasks the server deleted."""

    message = ma.fields.String(
        required=True, metadata={"example": "Completed tasks deleted successfully"}
    )
    deleted = ma.fields.Integer(required=True, metadata={"minimum": 0, "example": 3})


class StatusSchema(ma.Schema):
    """The server works."""

    status = ma.fields.String(required=True, metadata={"example": "ok"})


# Where a page of any list begins and ends.
LIMIT = fields.DecimalInteger(
    "The maximum number of tasks.", 1, lists.MAX_LIMIT, default=lists.MAX_LIMIT
)
# No default: a client that always sends defaults could not send `cursor`.
OFFSET = fields.DecimalInteger(
    "The number of tasks to skip. Not allowed together with `cursor`.", 0, lists.MAX_OFFSET
)
CURSOR = CursorField("The position to continue from, taken from the header `Link`.", minLength=1)


class TrashQuerySchema(QuerySchema):
    """Which part of the list of deleted tasks to return."""

    limit, offset, cursor = LIMIT, OFFSET, CURSOR

    @ma.validates_schema
    def check(self, query: dict[str, Any], **_: Any) -> None:
        check_position(query, lists.LAST_DELETED_FIRST)


def check_position(query: dict[str, Any], sorting: Sorting) -> None:
    """Raise ValidationError unless a list with this `sorting` can begin where `query` says."""
    cursor = query.get("cursor")
    if cursor and cursor.sorting != sorting:
        raise ma.ValidationError(NOT_A_CURSOR, "cursor")
    if cursor and "offset" in query:
        raise ma.ValidationError("Must not be sent together with cursor.", "offset")


class TaskQuerySchema(QuerySchema):
    """The filters and the order of a list."""

    status = Choice(
        "`pending` or `completed` selects only those tasks.",
        STATUSES,
        ("all", "pending", "completed"),
        default="all",
    )
    completed = Choice(
        "Like `status`. A `status` other than `all` overrides it.", {"true": True, "false": False}
    )
    priority = fields.Words(
        "Only tasks with one of these priorities, in any case. Repeat the parameter, or separate"
        " the words by commas; `all` selects every task.",
        commas=True,
    )
    tag = fields.Words("Only tasks with this tag, in any case. Repeat the parameter for more tags.")
    tags = fields.Words("Only tasks with one of these tags, separated by commas.", commas=True)
    due_date_from = fields.Day("Only tasks that are due on this day or later (also `due_from`).")
    due_date_to = fields.Day("Only tasks that are due on this day or before (also `due_to`).")
    search = fields.Text(
        "Only tasks whose title or description contains this text (also `q`). Case does not matter;"
        " there are no wildcards.",
        most=200,
        pattern=STORABLE,
    )
    sort = Choice(
        "The sort key (also `sort_by`): the time of creation, of the last update, the title (lower"
        " case, first 100 characters), the due date, or the priority.",
        SORT_WORDS,
        SORTS,
        default="created",
    )
    order = Choice(
        "Ascending or descending (also `sort_order`). The default is `asc`; for `priority` it is"
        " `desc`, the most urgent first. Tasks without a due date are last in both orders.",
        {"asc": "asc", "desc": "desc"},
    )
    limit, offset, cursor = LIMIT, OFFSET, CURSOR
    aliases: ClassVar = {
        # Lists as axios sends them.
        "priority": "priority[]",
        "tag": "tag[]",
        "tags": "tags[]",
        "due_date_from": "due_from",
        "due_date_to": "due_to",
        "search": "q",
        "sort": "sort_by",
        "order": "sort_order",
    }

    @ma.post_load
    def to_arguments(self, query: dict[str, Any], **_: Any) -> dict[str, Any]:
        """The arguments of `list_tasks`."""
        status = query.pop("status", None)
        if status is not None:
            query["completed"] = status
        if "all" in map(models.fold, query.get("priority") or ()):
            query["priority"] = None
        sort, order_in_word = query.pop("sort", ("created", ""))
        default = "desc" if sort == "priority" else "asc"
        order = query.pop("order", default)
        query["sorting"] = Sorting(sort, order_in_word or order)
        check_position(query, query["sorting"])
        return query
