"""Cross-origin resource sharing (Fetch standard, section 3.2)."""

from flask import Flask, Response, request

from web.openapi import REQUEST_HEADERS

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS = ", ".join(["Authorization", "Content-Type", *REQUEST_HEADERS])
EXPOSED_HEADERS = "ETag, Idempotent-Replayed, Link, Location, Retry-After, X-Request-ID"
# In seconds: the longest time for which Chromium caches a preflight.
MAX_AGE_S = "7200"


def allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Let pages of these origins call the API and read its responses, errors included."""
    anyone = origins == ("*",)
    answer = {"Access-Control-Expose-Headers": EXPOSED_HEADERS}
    if not anyone:
        answer["Access-Control-Allow-Credentials"] = "true"
    preflight = answer | {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Allow-Headers": ALLOWED_HEADERS,
        "Access-Control-Max-Age": MAX_AGE_S,
    }

    @app.after_request
    def add_headers(response: Response) -> Response:
        if not request.path.startswith("/api/"):
            return response
        if not anyone:
            response.headers.add("Vary", "Origin")
        # If every origin is allowed, the response is the same for each: it needs no `Vary`.
        origin = "*" if anyone else request.headers.get("Origin")
        if origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers.extend(preflight if request.method == "OPTIONS" else answer)
        return response
