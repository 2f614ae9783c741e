"""HTTP: parsing, conditions, errors, CORS and the documentation. Only its texts mention tasks."""

from web.application import Application
from web.conditions import not_modified_if_known, sent_tags
from web.cors import allow_origins
from web.docs import create_docs
from web.openapi import Api, Blueprint
from web.parsing import BodySchema, QuerySchema
from web.problems import Invalid

__all__ = [
    "Api",
    "Application",
    "Blueprint",
    "BodySchema",
    "Invalid",
    "QuerySchema",
    "allow_origins",
    "create_docs",
    "not_modified_if_known",
    "sent_tags",
]
