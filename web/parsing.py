"""Strict parsing of request bodies and queries."""

import re
from collections.abc import Collection, Mapping
from typing import IO, Any, ClassVar, NoReturn
from urllib.parse import parse_qsl

import marshmallow as ma
import orjson
from flask import Request, request
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import BadRequest, RequestEntityTooLarge, UnsupportedMediaType

from settings import MAX_BODY
from web.fields import Words
from web.problems import Invalid

NOT_AN_OBJECT = "Expected a JSON object."
# PHP, Typhoeus and qs number the items of a list: `tag[0]`.
INDEX = re.compile(r"\[\d+\]\Z")
INCOMPLETE = "The body is incomplete."


class BodySchema(ma.Schema):
    """The schema of a JSON object. Unknown fields are ignored."""

    required_fields: ClassVar[Collection[str]] = ()
    # Whether a request may have no body, or null.
    optional: ClassVar[bool] = False

    class Meta:
        unknown = ma.EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: ma.fields.Field[Any]) -> None:
        if field_name in self.required_fields:
            field_obj.required = True


class QuerySchema(ma.Schema):
    """The schema of a query. Ignores unknown parameters, and empty ones without a `minLength`."""

    # The other name of a parameter, which counts if the parameter is absent or empty.
    aliases: ClassVar[Mapping[str, str]] = {}

    def pairs(self) -> list[tuple[str, Any]]:
        """The parameters of the request that have effect, with a text or a list of texts each."""
        return [*self._find_sent(query_values(request)).values()]

    def _find_sent(self, data: Mapping[str, list[str]]) -> dict[str, tuple[str, Any]]:
        """Each parameter that has effect, with its name as it was sent, and its value.

        Of several values, the last that is not empty counts, unless the field is a list.
        """
        sent = {}
        for name, field in self.fields.items():
            for spelling in (name, self.aliases.get(name, name)):
                given = data.get(spelling, [])
                values = [value for value in given if value]
                if "minLength" in field.metadata:
                    values = values or given
                if values:
                    sent[name] = spelling, values if isinstance(field, Words) else values[-1]
                    break
        return sent

    def load(self, data: Any, **options: Any) -> Any:
        """Load the values of each parameter. An error names the parameter as it was sent.

        Marshmallow would take 1 % of a short list's time for an empty query. Raises
        ValidationError.
        """
        if not data:
            return {}
        sent = self._find_sent(data)
        values = {name: value for name, (_, value) in sent.items()}
        try:
            return super().load(values, **options)
        except ma.ValidationError as error:
            errors = {sent[name][0]: words for name, words in error.messages_dict.items()}
            raise ma.ValidationError(errors) from error


class StrictParser(FlaskParser):
    """A parser that refuses a body that is not JSON; webargs itself treats such a body as empty."""

    def load_json(self, req: Request, schema: Any) -> Any:
        """Raises BadRequest, RequestEntityTooLarge or UnsupportedMediaType."""
        body = read_body(req)
        if not body:
            if schema.optional:
                return {}
            raise BadRequest("The body is missing: expected a JSON object.")
        encoding = req.headers.get("Content-Encoding", "").lower()
        if not req.is_json or encoding not in {"", "identity"}:
            raise UnsupportedMediaType
        try:
            data = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            place = f"line {error.lineno}, column {error.colno}"
            raise BadRequest(f"The body is not JSON in UTF-8: {place}.") from error
        # With a JSON Content-Type, axios's patch(url, null) sends `null` for no body.
        return {} if schema.optional and data is None else data

    def load_querystring(self, req: Request, schema: ma.Schema) -> dict[str, list[str]]:
        return query_values(req)

    def handle_error(self, error: ma.ValidationError, *_: Any, **__: Any) -> NoReturn:
        """Raises Invalid."""
        (errors,) = error.messages_dict.values()
        if ma.exceptions.SCHEMA in errors:
            raise Invalid({"body": [NOT_AN_OBJECT]}, NOT_AN_OBJECT) from error
        raise Invalid(errors) from error


def query_values(request: Request) -> dict[str, list[str]]:
    """The values of each parameter. Invalid UTF-8 becomes surrogates, which the fields refuse."""
    query = request.query_string.decode(errors="surrogateescape")
    pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape")
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(INDEX.sub("[]", name), []).append(value)
    return values


class StrictRequest(Request):
    """A request whose body is taken as the server has it, or through Werkzeug's checks."""

    @property
    def stream(self) -> IO[bytes]:
        """The body. Raises BadRequest if the server does not read chunks, or as Werkzeug does.

        Werkzeug's own stream costs more CPU than parsing the body.
        """
        given: IO[bytes] = self.environ["wsgi.input"]
        # Whole in memory or in a file, by our worker or by an adapter for ASGI.
        if hasattr(given, "seekable") and given.seekable():
            return given
        if "Transfer-Encoding" in self.headers and not self.environ.get("wsgi.input_terminated"):
            raise BadRequest(
                "The body must have a Content-Length: this server does not read chunks."
            )
        return super().stream


def refuse_partial_bodies() -> None:
    """Refuse a body that the server's event loop found cut, malformed or too large.

    Not every operation reads its body. Raises BadRequest or RequestEntityTooLarge.
    """
    if getattr(request.environ.get("gunicorn.socket"), "is_partial", False):
        read_body(request)
        raise BadRequest(INCOMPLETE)


def read_body(request: Request) -> bytes:
    """The whole body, which others may read before or after.

    Raises RequestEntityTooLarge, or BadRequest if the client sent less than it announced.
    """
    body, length = request.get_data(), request.content_length
    if len(body) > MAX_BODY or (length or 0) > MAX_BODY:
        raise RequestEntityTooLarge
    if length is not None and length != len(body):
        raise BadRequest(INCOMPLETE)
    return body
