"""Which pages may call from a browser: cross-origin resource sharing (Fetch standard, 3.2)."""

from flask import Flask, Response, request

from web.openapi import REQUEST_HEADERS

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
SENT = ", ".join(["Authorization", "Content-Type", *REQUEST_HEADERS])
EXPOSED = "ETag, Idempotent-Replayed, Link, Location, Retry-After, X-Request-ID"
# For how many seconds a browser need not ask again; Chromium remembers no longer.
MAX_AGE = "7200"


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Let the pages of these origins call the API and read its answers, errors included."""
    anyone = origins == ("*",)
    answer = {"Access-Control-Expose-Headers": EXPOSED}
    if not anyone:
        answer["Access-Control-Allow-Credentials"] = "true"
    preflight = answer | {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": SENT,
        "Access-Control-Max-Age": MAX_AGE,
    }

    @app.after_request
    def share(response: Response) -> Response:
        if not request.path.startswith("/api/"):
            return response
        if not anyone:
            response.headers.add("Vary", "Origin")
        # Where it is anyone, also without an origin: the answer does not depend on it.
        origin = "*" if anyone else request.headers.get("Origin")
        if origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers.extend(preflight if request.method == "OPTIONS" else answer)
        return response
