"""What is no failure, although Schemathesis takes it for one. Its own process imports this."""

import json
from datetime import UTC, datetime
from typing import Any

import jsonschema_rs
import schemathesis
from schemathesis import Case, HookContext
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.core.transport import Response
from schemathesis.openapi.checks import RejectedPositiveData, UseAfterFree

from models import fold
from schemas import NOT_A_CURSOR

LISTS = {"priority", "tag", "tags"}
# What no schema can say: it depends on what was there before, or on another parameter.
REFUSED_BY_STATE = {
    f"cursor: {NOT_A_CURSOR}",
    "offset: Must not be sent together with cursor.",
    "Idempotency-Key: already used for a task with other content.",
}


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case, response: Response) -> bool:
    """Tell whether this failure is one.

    Its checks expect that whatever fits the schema is accepted and all else is refused:
    https://schemathesis.readthedocs.io/en/stable/reference/checks/
    """
    if isinstance(failure, RejectedPositiveData) and response.status_code == 412:
        return (case.headers or {}).get("If-Match") in {None, "*"}
    if isinstance(failure, RejectedPositiveData):
        problem = response.json()
        errors = problem.get("errors", {"": problem["detail"]})
        is_beyond = all(is_beyond_schema(case, name) for name in errors)
        return problem["detail"] not in REFUSED_BY_STATE and not is_beyond
    if isinstance(failure, AcceptedNegativeData):
        # `null` toggles, too. With it in the document, some generators' clients need a body.
        is_toggle = case.body is None and case.operation.path.endswith("/complete")
        return not (is_toggle or fits_as_it_is_taken(case) or fits_without_empty_values(case))
    # A restore makes a deleted task available again; test_trash.py proves that nothing else does.
    return not isinstance(failure, UseAfterFree)


def is_beyond_schema(case: Case, name: str) -> bool:
    """Whether the field `name` of the body was refused, but is right by the schema."""
    if name == "priority":
        return isinstance(case.body[name], float)  # Such as 1.0, an integer to a schema.
    return name == "due_date" and not is_in_calendar(case.body[name])


def is_in_calendar(due_date: str) -> bool:
    """Whether its month has such a day, its minute such a second, and UTC such a year."""
    try:
        datetime.fromisoformat(due_date).astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return True


def fits_as_it_is_taken(case: Case) -> bool:
    """Whether only what does not count makes the body too long.

    That is white space around texts, and tags that are blank or repeated. A priority is taken as
    its digits: the document has a bound only because not every language has larger numbers.
    """
    if not isinstance(case.body, dict):
        return False
    schema = case.operation.get_body_for_media_type(case.media_type).optimized_schema
    fits = jsonschema_rs.validator_for(schema, validate_formats=True).is_valid
    body = strip(case.body)
    if type(body.get("priority")) is int:
        body["priority"] = str(body["priority"])
    tags = body.get("tags")
    if isinstance(tags, str):
        tags = strip(tags.split(","))
    if isinstance(tags, list):
        body["tags"] = [*{fold(name_of(tag)): tag for tag in tags if name_of(tag)}.values()]
    return fits(body) and not fits(case.body)


def name_of(tag: Any) -> str:
    name = tag.get("name") if isinstance(tag, dict) else tag
    return name if isinstance(name, str) else repr(tag)


def strip(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: strip(each) for name, each in value.items()}
    if isinstance(value, list):
        return [strip(each) for each in value]
    return value.strip() if isinstance(value, str) else value


def fits_without_empty_values(case: Case) -> bool:
    """Whether only values that count as none are wrong: empty ones, blank words and objects.

    An object is sent as other parameters or as an empty one; one word for a list, as a list.
    """
    query = case.query or {}
    sent = {}
    for name, value in query.items():
        if name in LISTS:
            words = value if isinstance(value, list) else [value]
            texts = [word if isinstance(word, str) else json.dumps(word) for word in words]
            value = [text for text in texts if text.strip()]
        if value not in ("", []) and not isinstance(value, dict):
            sent[name] = value
    parameters = case.operation.get_parameter_set(ParameterLocation.QUERY)
    return sent != query and parameters.get_strict_validator().is_valid(sent)
