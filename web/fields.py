"""Fields of bodies and queries. They are strict, and name what they expect in plain words."""

import re
from datetime import UTC, date, datetime
from typing import Any

import marshmallow as ma
from marshmallow.types import ErrorMessages
from marshmallow.validate import Length, Range

MAX_WORDS = 20  # In one parameter.
# Messages in place of marshmallow's own.
MESSAGES: ErrorMessages = {
    "required": "This field is required.",
    "null": "Must not be null.",
    "invalid": "Must be a string.",
}
NOT_A_DATE_OR_TIME = (
    "Must be a date or a time, such as 2026-01-31, 2026-01-31T09:30:00 or 2026-01-31T09:30:00Z."
)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
DATE_OR_TIME = re.compile(
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])"
    r"(?:[T ](?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d+)?)?"
    r"(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)?)?",
    re.ASCII,
)
# The rules of `to_word` and `DateOrTime` for clients, without the number of days in a month.
# PCRE in Unicode mode, Go and Rust understand them, too. Only one part of a pattern can match a run
# of spaces: otherwise, engines that backtrack would take minutes for some texts.
SPACES = r"[\s\x1c-\x1f\x85]*"
PRINTED = r"[^\s\x00-\x1f\x7f-\x9f]"
WORD = rf"^{SPACES}({PRINTED}([^\x00-\x1f\x7f-\x9f]*{PRINTED})?{SPACES})?$"
EMPTY_DATE_OR_TIME = f"^({DATE_OR_TIME.pattern})?$"


def check_storable(text: str) -> None:
    """Refuse what a database cannot store: NUL and invalid UTF-8. Raises ValidationError."""
    if "\0" in text:
        raise ma.ValidationError("Must not contain a NUL character.")
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise ma.ValidationError("Must be valid UTF-8.")


def check_word(text: str) -> None:
    """Refuse also control characters (Unicode's category Cc). Raises ValidationError."""
    check_storable(text)
    if re.search(r"[\x00-\x1f\x7f-\x9f]", text):
        raise ma.ValidationError("Must not contain control characters.")


def to_word(text: str, most: int) -> str:
    """Strip a word of at most `most` characters. Raises ValidationError."""
    word = text.strip()
    check_word(word)
    return Length(max=most)(word)


class Described(ma.fields.Field[Any]):
    """A field with a description for clients, and more `metadata` by the names of JSON Schema."""

    default_error_messages = MESSAGES

    def __init__(
        self, description: str, *, validate: Any = None, allow_none: bool = False, **metadata: Any
    ) -> None:
        metadata = {"description": description, **metadata}
        if "anyOf" in metadata:  # Postman ignores an example beside it.
            metadata["anyOf"][0]["example"] = metadata["example"]
        super().__init__(validate=validate, allow_none=allow_none, metadata=metadata)


class Text(Described, ma.fields.String):
    """A string of `least` to `most` characters."""

    def __init__(self, description: str, most: int, *, least: int = 0, **options: Any) -> None:
        shortest = [Length(min=least)] if least else []
        valid = [check_storable, *shortest, Length(max=most)]
        super().__init__(description, validate=valid, **options)


class StrippedText(Text):
    """A string, from which leading and trailing white space is removed."""

    def _deserialize(self, value: Any, *arguments: Any, **options: Any) -> str:
        return super()._deserialize(value, *arguments, **options).strip()


class StrictBoolean(Described, ma.fields.Boolean):
    """A JSON boolean. Marshmallow's own field also accepts 0, 1 and "yes"."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("Must be true or false.")
        return value


class DecimalInteger(Described, ma.fields.Integer):
    """A number in decimal digits. int() also accepts "1_000", " 5" and "٣"."""

    def __init__(self, description: str, least: int, most: int, **metadata: Any) -> None:
        self.message = f"Must be a whole number from {least:,} to {most:,}."
        valid = Range(least, most, error=self.message)
        super().__init__(description, validate=valid, **metadata)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> int:
        if not re.fullmatch("[0-9]{1,18}", value):
            raise ma.ValidationError(self.message)
        return int(value)


class Day(Described, ma.fields.Date):
    """A date as YYYY-MM-DD, which stays text. fromisoformat() also accepts 2026-W01-1."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        try:
            return date.fromisoformat(value if DAY.fullmatch(value) else "").isoformat()
        except ValueError as error:
            raise ma.ValidationError("Must be a date in the form YYYY-MM-DD.") from error


class DateOrTime(Described):
    """A date, a time, or a time in a zone, as text in the same form. None if it is empty."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> str | None:
        if value == "":
            return None
        if not (isinstance(value, str) and DATE_OR_TIME.fullmatch(value)):
            raise ma.ValidationError(NOT_A_DATE_OR_TIME)
        try:
            moment = datetime.fromisoformat(value).replace(microsecond=0)
            if DAY.fullmatch(value):
                return value
            text = (moment.astimezone(UTC) if moment.tzinfo else moment).isoformat()
            return text.replace("+00:00", "Z")
        except (ValueError, OverflowError) as error:
            raise ma.ValidationError(NOT_A_DATE_OR_TIME) from error


class Words(Described):
    """The words in all values of a query parameter: one in each, or several between commas.

    None if all of them are blank.
    """

    def __init__(self, description: str, *, commas: bool = False) -> None:
        word = {"type": "string", "pattern": WORD}
        super().__init__(description, type="array", items=word, maxItems=MAX_WORDS)
        self.commas = commas

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> list[str] | None:
        parts = ",".join(value).split(",") if self.commas else value
        words = [word for part in parts if (word := part.strip())]
        for word in words:
            check_word(word)
        if len(words) > MAX_WORDS:
            raise ma.ValidationError(f"Must have at most {MAX_WORDS} words.")
        return words or None
