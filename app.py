"""The application: its parts, wired. Served by `gunicorn 'app:create_app()'`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import flask_swagger_ui
import orjson
from flask import Blueprint, Flask, Response, jsonify, redirect, render_template, request
from flask.json.provider import JSONProvider
from werkzeug.exceptions import MethodNotAllowed, NotFound, ServiceUnavailable
from werkzeug.wrappers import Response as BaseResponse

import api
import auth
import cors
import logs
import models
import resources
from database import ForeignTable, TaskDatabase
from postgres import Postgres
from settings import VERSION, Settings, read_settings
from sqlite import Sqlite

DESCRIPTION = """\
Every user has a list of tasks. The path names the user, who sees these tasks and no others.

Nothing is made twice and no change is lost: a create with an `Idempotency-Key` can be sent again,
and a write with the task's `ETag` as `If-Match` overwrites nobody else's.

A request that fails is answered with `application/problem+json` (RFC 9457), whose `detail` is for
people.
"""
DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# A hundred years: far from the end of what a token or a clock can name.
MAX_DAYS = 36_500
# A terminal shows the prompt behind it on a line of its own.
NEWLINE = orjson.OPT_APPEND_NEWLINE

log = logging.getLogger("tasks.app")
docs = Blueprint(
    "docs",
    __name__,
    static_folder=Path(flask_swagger_ui.__file__).parent / "dist",
    static_url_path="/docs/swagger-ui",
)
service = api.Blueprint("service", __name__, description="Is it there, and can it work?")


class Application(Flask):
    """Flask, to which a slash at the end of a path is nothing, and which logs every request."""

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.endswith("/") and path != "/":
            environ["PATH_INFO"] = path[:-1]
        return super().wsgi_app(environ, logs.logged(environ, start_response))

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """All of them are; Flask would find that out a dozen times a request."""
        return func


class OrjsonProvider(JSONProvider):
    """Flask's JSON by orjson."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj).decode()

    def loads(self, s: str | bytes, **_: Any) -> Any:
        return orjson.loads(s)

    def response(self, *args: Any, **kwargs: Any) -> Response:
        body = orjson.dumps(args[0] if args else kwargs, option=NEWLINE)
        return Response(body, mimetype="application/json")


def create_app(settings: Settings | None = None) -> Flask:
    """Build the application from `settings`, or from the environment.

    It starts without its database, too. Raises InvalidSetting.
    """
    settings = settings or read_settings()
    logs.configure(settings.log_level)
    app = Application(__name__)
    app.json = OrjsonProvider(app)
    app.config.update(
        SEND_FILE_MAX_AGE_DEFAULT=3600,
        API_TITLE="Task API",
        API_VERSION=VERSION,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
        API_SPEC_OPTIONS={
            "info": {
                "description": DESCRIPTION,
                "contact": {"name": "the maintainers"},
                "license": {"name": "MIT", "url": "https://spdx.org/licenses/MIT.html"},
            },
            "servers": [{"url": "/"}],
        },
    )
    app.extensions["auth"] = auth.verifier(settings)
    app.url_map.merge_slashes = False
    app.url_map.converters["user_id"] = resources.UserIdConverter
    app.url_map.converters["task_id"] = resources.TaskIdConverter
    app.before_request(refuse_other_spellings)
    register_api(app)
    app.register_blueprint(docs)
    cors.allow_origins(app, settings.cors_origins)
    database = app.extensions["database"] = connect(settings)
    add_commands(app, settings, database)
    return app


def register_api(app: Flask) -> None:
    """The operations and their OpenAPI document."""
    smorest = api.Api(app)
    for converter in (resources.UserIdConverter, resources.TaskIdConverter):
        smorest.register_converter(converter, lambda converter: converter.schema)
    smorest.register_blueprint(resources.tasks, parameters=resources.PATH_PARAMETERS)
    smorest.register_blueprint(service)


def connect(settings: Settings) -> TaskDatabase:
    """The database, and its schema brought up to date if it is there.

    Not for a command: few need a database. `flask run` does it with the first request.
    """
    database: TaskDatabase
    if settings.database_url.startswith("sqlite:///"):
        database = Sqlite(settings.database_url.removeprefix("sqlite:///"), settings.threads)
    else:
        database = Postgres(settings.database_url, settings.database_schema, settings.threads)
    if not click.get_current_context(silent=True):
        try:
            database.await_schema()
        except ServiceUnavailable:
            log.warning("started without the database; its schema is made as soon as it is there")
        except ForeignTable as error:
            database.refusal = str(error)
    return database


def add_commands(app: Flask, settings: Settings, database: TaskDatabase) -> None:
    """What `flask --app app` can do besides serving."""

    @app.cli.command("token")
    @click.argument("user")
    @click.option("--days", type=float, default=1.0, help="How long it is valid.")
    def token(user: str, days: float) -> None:
        """Print a token with which USER may call, signed with JWT_SECRET."""
        if not 0 <= days <= MAX_DAYS:
            raise click.ClickException(f"--days: expected a number from 0 to {MAX_DAYS}")
        try:
            click.echo(auth.issue_token(settings, user, days))
        except ValueError as error:
            raise click.ClickException(str(error)) from error

    @app.cli.command("migrate")
    def migrate() -> None:
        """Bring the database's schema up to date, as the server does when it starts."""
        logs.configure("ERROR")  # The one line below says it all.
        try:
            names = database.migrate()
        except ServiceUnavailable as error:
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            raise click.ClickException(f"database unavailable: {reason}") from error
        except ForeignTable as error:
            raise click.ClickException(str(error)) from error
        click.echo("\n".join(f"applied {name}" for name in names) or "nothing to do")


def refuse_other_spellings() -> None:
    """Keep apart what Werkzeug takes for the same.

    Raises NotFound for a path that is not UTF-8, since two of them would be one user, and
    MethodNotAllowed for a method in lower case (RFC 9110, section 9.1).
    """
    path, method = request.environ["PATH_INFO"], request.environ["REQUEST_METHOD"]
    if method != request.method and request.url_rule:
        raise MethodNotAllowed(sorted(request.url_rule.methods or ()))
    try:
        path.isascii() or path.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise NotFound from error


@service.route("/health")
@service.operation("getHealth")
@service.response(200, resources.StatusSchema)
def health() -> Response:
    """Is the server there?

    Never asks the database, so that one that sleeps is not woken.
    """
    return jsonify(status="ok")


@service.route("/ready")
@service.operation("getReadiness", also=(503,))
@service.response(200, resources.StatusSchema)
def ready() -> Response:
    """Is the database there, too?

    Asks it for a sign of life, and so wakes one that sleeps.
    """
    models.ping()
    return jsonify(status="ok")


@docs.get("/")
def index() -> BaseResponse:
    return redirect("/docs")


@docs.get("/docs")
def page() -> Response:
    response = Response(render_template("docs.html"))
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response
