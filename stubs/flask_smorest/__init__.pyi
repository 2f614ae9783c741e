# The part of flask-smorest that is used here; it has no types of its own.
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import flask
from apispec import APISpec
from marshmallow import Schema
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException

T = TypeVar("T")
Decorator = Callable[[T], T]

class Blueprint(flask.Blueprint):
    ARGUMENTS_PARSER: FlaskParser
    _prepare_doc_cbks: list[Callable[..., dict[str, Any]]]

    def __init__(
        self, name: str, import_name: str, *, url_prefix: str = ..., description: str = ...
    ) -> None: ...
    def route(
        self, rule: str, *, parameters: Sequence[Mapping[str, Any]] = ..., **options: Any
    ) -> Decorator[Any]: ...
    def arguments(
        self, schema: Schema, *, location: str = ..., required: bool = ...
    ) -> Decorator[Any]: ...
    def response(
        self,
        status_code: int,
        schema: Schema | type[Schema],
        *,
        headers: Mapping[str, str] = ...,
    ) -> Decorator[Any]: ...
    def alt_response(
        self,
        status_code: int,
        response: str | None = ...,
        *,
        schema: Schema | type[Schema] = ...,
        description: str = ...,
        headers: Mapping[str, str] = ...,
    ) -> Decorator[Any]: ...
    def doc(self, **parts: Any) -> Decorator[Any]: ...

class Api:
    DEFAULT_ERROR_RESPONSE_NAME: str | None
    spec: APISpec

    def __init__(self, app: flask.Flask, *, spec_kwargs: Mapping[str, Any] = ...) -> None: ...
    def register_blueprint(
        self, blp: Blueprint, *, parameters: Sequence[Mapping[str, Any]] = ...
    ) -> None: ...
    def handle_http_exception(self, error: HTTPException) -> flask.Response: ...
