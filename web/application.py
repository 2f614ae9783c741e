"""Flask with the behavior that this API needs."""

from typing import Any

import orjson
from flask import Flask, Response, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import MethodNotAllowed, NotFound

from server import log_request


class Application(Flask):
    """Flask that ignores a trailing slash and logs every request."""

    def __init__(self) -> None:
        super().__init__(__name__)
        self.json = OrjsonProvider(self)
        self.config["SEND_FILE_MAX_AGE_DEFAULT"] = 3600
        self.url_map.merge_slashes = False
        self.before_request(refuse_other_spellings)

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        # No answer depends on the host, and Werkzeug refuses some.
        environ["HTTP_HOST"] = "localhost"
        path = environ["PATH_INFO"]
        if not path.startswith("/api/"):
            # For a file, Werkzeug would answer with a 412 that is no problem document.
            environ.pop("HTTP_IF_MATCH", None)
        if path.endswith("/") and path != "/":
            environ["PATH_INFO"] = path[:-1]
        return super().wsgi_app(environ, log_request(environ, start_response))

    def ensure_sync(self, func: Any) -> Any:
        """Return the view as it is: Flask would ask of each request whether it is a coroutine."""
        return func


class OrjsonProvider(DefaultJSONProvider):
    """Flask's JSON provider, which writes with orjson."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj).decode()

    def response(self, *args: Any, **kwargs: Any) -> Response:
        # With a line break at its end, so that a terminal shows its prompt on a new line.
        body = orjson.dumps(args[0] if args else kwargs, option=orjson.OPT_APPEND_NEWLINE)
        return Response(body, mimetype="application/json")


def refuse_other_spellings() -> None:
    """Refuse a request that Werkzeug would read as a different request.

    Raises NotFound for a path that is not UTF-8, because Werkzeug decodes two such paths to one
    user, or has an escaped slash, which the server decodes to a separator (RFC 3986, section 2.2).
    Raises MethodNotAllowed for a method in lower case (RFC 9110, section 9.1).
    """
    path, method = request.environ["PATH_INFO"], request.environ["REQUEST_METHOD"]
    if "%2f" in request.environ.get("RAW_URI", "").partition("?")[0].lower():
        raise NotFound
    if method != request.method and request.url_rule:
        raise MethodNotAllowed(sorted(request.url_rule.methods or ()))
    try:
        path.isascii() or path.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise NotFound from error
