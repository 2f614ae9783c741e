"""Flask with the behavior that this API needs."""

from typing import Any
from urllib.parse import quote, unquote_to_bytes

import orjson
from flask import Flask, request
from flask.json.provider import DefaultJSONProvider
from werkzeug.exceptions import MethodNotAllowed, NotFound, ServiceUnavailable

from server import log_request
from settings import MAX_BODY
from web.parsing import StrictRequest

BUSY = "The server is busy. Nothing has changed. Try again soon."
# Ignored for files: Werkzeug would answer If-Match with a 412 that is no problem document, a range
# with a 206 or a 416, and a year or a day of many digits with a 500. If-None-Match works. Without a
# range, Werkzeug reads no If-Range, and it never reads If-Unmodified-Since.
FILE_CONDITIONS = ("IF_MATCH", "IF_MODIFIED_SINCE", "RANGE")
REPLACEMENT = quote("\ufffd")  # Stands for what is not UTF-8.


class Application(Flask):
    """Flask that logs every request, and refuses one that would be misread or has waited too long.

    It ignores the host, a trailing slash, and repeated slashes at the start of the path.
    """

    request_class = StrictRequest

    def __init__(self) -> None:
        super().__init__(__name__)
        self.json = OrjsonProvider(self)
        # Werkzeug cuts a chunked body there without an error: `read_body` refuses what is longer.
        self.config["MAX_CONTENT_LENGTH"] = MAX_BODY + 1
        self.url_map.merge_slashes = False
        self.before_request(refuse_in_overload)
        self.before_request(refuse_other_spellings)

    def wsgi_app(self, environ: Any, start_response: Any) -> Any:
        # No answer depends on the host, and Werkzeug refuses some hosts, and each WebSocket.
        environ["HTTP_HOST"] = "localhost"
        environ.pop("HTTP_UPGRADE", None)
        path = "/" + environ["PATH_INFO"].lstrip("/")
        if not path.startswith("/api/"):
            for name in FILE_CONDITIONS:
                environ.pop(f"HTTP_{name}", None)
        environ["PATH_INFO"] = path.removesuffix("/") or "/"
        return super().wsgi_app(environ, log_request(environ, start_response))

    def ensure_sync(self, func: Any) -> Any:
        """Return the view as it is. Flask would look for coroutines, which takes 2 % of a GET."""
        return func


class OrjsonProvider(DefaultJSONProvider):
    """Flask's JSON provider, which writes with orjson."""

    def dumps(self, obj: Any, **_: Any) -> str:
        return orjson.dumps(obj).decode()


def refuse_in_overload() -> None:
    """Raise ServiceUnavailable if the server says that the request waits for too long."""
    if getattr(request.environ.get("gunicorn.socket"), "is_refused", False):
        raise ServiceUnavailable(BUSY, retry_after=1)


def refuse_other_spellings() -> None:
    """Refuse a request that Werkzeug would read as a different request.

    Raises NotFound for a path that is not UTF-8: Werkzeug decodes two such paths to one user, and
    so does an adapter for ASGI, before this is called. Also for an escaped slash, which the server
    decodes to a separator (RFC 3986, section 2.2).
    Raises MethodNotAllowed for a method in lower case (RFC 9110, section 9.1).
    """
    environ, method = request.environ, request.environ["REQUEST_METHOD"]
    # The path as it was sent: Gunicorn's name for it, and that of other servers, if they have one.
    sent = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    path = (sent or quote(environ["PATH_INFO"], encoding="latin-1")).partition("?")[0]
    if "%2f" in path.lower() or (not sent and REPLACEMENT in path):
        raise NotFound
    if method != request.method and request.url_rule:
        raise MethodNotAllowed(request.url_rule.methods)
    try:
        unquote_to_bytes(path.encode("latin-1")).decode()
    except UnicodeError as error:
        raise NotFound from error
