"""The docs page."""

from pathlib import Path
from urllib.parse import urlsplit

import flask_swagger_ui
from flask import Blueprint, Response, redirect, render_template
from werkzeug.wrappers import Response as BaseResponse

from settings import Settings

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def create_docs(settings: Settings) -> Blueprint:
    """The page, which says who may call under these settings."""
    docs = Blueprint(
        "docs",
        __name__,
        static_folder=Path(flask_swagger_ui.__file__).parent / "dist",
        static_url_path="/docs/swagger-ui",
    )

    @docs.get("/")
    def index() -> BaseResponse:
        return redirect("/docs")

    @docs.get("/docs")
    def page() -> Response:
        key_set = urlsplit(settings.jwt_jwks_url)
        issuer = key_set.netloc and (settings.jwt_issuer or f"{key_set.scheme}://{key_set.netloc}")
        html = render_template("docs.html", issuer=issuer, has_secret=bool(settings.jwt_secret))
        return Response(html, headers={"Content-Security-Policy": DOCS_POLICY})

    return docs
