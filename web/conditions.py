"""Conditional requests (RFC 9110, section 13)."""

import re
from collections.abc import Iterator

from flask import Response, request

# RFC 9110, section 8.8.3. A tag without its quotes is also understood.
ENTITY_TAG = re.compile(r'(?:W/)?("[^"]*"|[^\s,"]+)')
# What Apache, Jetty and Flask-Compress add to the tag of a response that they compress.
COMPRESSION = re.compile(r"(?:--?|:)(?:br|deflate|gzip|zstd)\Z")


def not_modified_if_known(response: Response) -> Response:
    """Turn `response` into a 304 if If-None-Match names its ETag (RFC 9110, section 13.1.2).

    Without Cache-Control, a browser could show an old copy (RFC 9111, section 4.2.2).
    """
    response.headers["Cache-Control"] = "private, no-cache"
    is_any = request.headers.get("If-None-Match") == "*"
    if is_any or response.headers["ETag"].strip('"') in sent_tags("If-None-Match"):
        response.status_code = 304  # Werkzeug sends no body with it.
    return response


def sent_tags(header: str) -> Iterator[str]:
    """The entity tags in a header of the request, one by one. A weak tag is treated as strong."""
    for match in ENTITY_TAG.finditer(request.headers.get(header, "")):
        yield COMPRESSION.sub("", match[1].strip('"'))
