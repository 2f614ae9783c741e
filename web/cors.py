"""Cross-origin resource sharing: https://fetch.spec.whatwg.org/#http-cors-protocol"""

import re

from flask import Flask, Response, request

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
# With cache: "no-cache" or "no-store", some browsers and libraries send Cache-Control and Pragma.
ALLOWED_HEADERS = (
    "Authorization, Cache-Control, Content-Type, Idempotency-Key, If-Match, If-None-Match, Pragma,"
    " X-Request-ID"
)
# Names of other headers. They are allowed, too, since libraries add some: axios its User-Agent,
# and tracers `traceparent` or `baggage`.
HEADER_NAMES = re.compile(r"[\w!#$%&'*+.^`|~, -]+", re.ASCII)
EXPOSED_HEADERS = "ETag, Idempotent-Replayed, Link, Location, Retry-After, X-Request-ID"
# In seconds: the longest time for which Chromium caches a preflight.
MAX_AGE_S = "7200"


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Let pages of these origins send any request and read its response, errors included.

    Their preflights succeed for every path, also for one that does not exist: if a preflight
    failed, the browser would not send the request, and the page could not read the 404.
    """
    anyone = origins == ("*",)

    @app.after_request
    def add_headers(response: Response) -> Response:
        origin = "*" if anyone else request.headers.get("Origin", "")
        if not anyone:  # Otherwise the response is the same for every origin.
            response.headers.add("Vary", "Origin")
        # An origin with a scheme of an app or an extension can have upper-case letters.
        if origin.lower() not in origins:
            return response
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        if not anyone:
            response.headers["Access-Control-Allow-Credentials"] = "true"
        # Not request.method, which is in upper case: `options` is a 405.
        if request.environ["REQUEST_METHOD"] == "OPTIONS":
            asked = request.headers.get("Access-Control-Request-Headers", "")
            others = f", {asked}" if HEADER_NAMES.fullmatch(asked) else ""
            response.headers["Access-Control-Allow-Methods"] = METHODS
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS + others
            response.headers["Access-Control-Max-Age"] = MAX_AGE_S
            response.headers.pop("Content-Type", None)
            response.status_code = 200
            response.data = b""
        return response
