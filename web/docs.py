"""The docs page."""

from pathlib import Path

import flask_swagger_ui
from flask import Blueprint, Response, redirect, render_template
from werkzeug.wrappers import Response as BaseResponse

DOCS_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
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
    response = Response(render_template("docs.html"))
    response.headers["Content-Security-Policy"] = DOCS_POLICY
    return response
