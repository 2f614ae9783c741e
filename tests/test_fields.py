"""priority, due_date, tags and completed_at, however a task comes to have them."""

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import requests
from support.server import (
    FIELDS,
    Server,
    User,
    change_by_hand,
    insert_by_hand,
    make_schema_of,
    refusal,
)

SMILE = "\U0001f600"
TWENTY = [f"tag {number}" for number in range(20)]
OLD = {"title": "Old", "priority": "Old", "due_date": "1999-12-31", "tags": ["Old"]}

PRIORITIES: list[tuple[Any, str]] = [
    *((word, word) for word in ("high", "High", "HIGH", "x", "x" * 20, SMILE * 20, "紧急", "a b")),
    *((word, word) for word in ("très élevée", "a,b", "[", '"', "\u200b", "e\u0301", "a\u2028b")),
    *((" high\t", "high"), (" " * 100 + "x" * 20, "x" * 20), ("\u3000x\u2003", "x")),
    # str.strip() removes these control characters.
    *(("\x1chigh\x1f", "high"), ("\n\x85high\x85\r", "high")),
    *((blank, "medium") for blank in (None, "", "  ", "\x1c\x85")),
    *((1, "1"), (0, "0"), (-1, "-1"), (2**63, "9223372036854775808"), (2**64 - 1, f"{2**64 - 1}")),
    (-(2**63), "-9223372036854775808"),
]
DUE_DATES: list[tuple[str | None, str | None]] = [
    *((None, None), ("", None)),
    *((day, day) for day in ("2026-03-01", "0001-01-01", "9999-12-31", "2024-02-29", "2000-02-29")),
    *((text, text) for text in ("2026-03-01T00:00:00", "2026-03-01T23:59:59")),
    *((text, text) for text in ("0001-01-01T00:00:00", "9999-12-31T23:59:59")),
    *((text, text) for text in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z")),
    ("2026-03-01T09:00", "2026-03-01T09:00:00"),
    ("2026-03-01 09:00", "2026-03-01T09:00:00"),
    ("2026-03-01 09:00:01", "2026-03-01T09:00:01"),
    ("2026-03-01T09:00Z", "2026-03-01T09:00:00Z"),
    ("2026-03-01 09:00Z", "2026-03-01T09:00:00Z"),
    ("2026-03-01 09:00+01:00", "2026-03-01T08:00:00Z"),
    ("2026-03-01T09:00:00.5", "2026-03-01T09:00:00"),
    ("2026-03-01T23:59:59.999999999999", "2026-03-01T23:59:59"),
    ("2026-03-01T09:00:00.000Z", "2026-03-01T09:00:00Z"),
    ("2026-03-01 09:00:00.123456+05:30", "2026-03-01T03:30:00Z"),
    *(("2026-03-01T09:00:00" + zero, "2026-03-01T09:00:00Z") for zero in ("+00:00", "-00:00")),
    ("2026-03-01T00:30:00+01:00", "2026-02-28T23:30:00Z"),
    ("2025-12-31T23:30:00-01:00", "2026-01-01T00:30:00Z"),
    ("2026-01-01T00:00:00+14:00", "2025-12-31T10:00:00Z"),
    ("2026-03-01T12:00:00+23:59", "2026-02-28T12:01:00Z"),
    ("2026-03-01T12:00:00-23:59", "2026-03-02T11:59:00Z"),
    ("0001-01-01T00:01:00+00:01", "0001-01-01T00:00:00Z"),
    ("9999-12-31T23:58:59-00:01", "9999-12-31T23:59:59Z"),
    ("0099-03-01T00:00:00-01:00", "0099-03-01T01:00:00Z"),
]
TAGS: list[tuple[Any, list[str]]] = [
    *((nothing, []) for nothing in (None, "", [], "  ", ",", " , ,", "[]", [""], [" ", "\x1c"])),
    (["home"], ["home"]),
    (["b", "a", "c"], ["b", "a", "c"]),
    ([" home\n", "", "\x85work\x1f"], ["home", "work"]),
    (["a, b", "c,"], ["a, b", "c,"]),
    (["[", '"', "\\", "'", "%", "null", "\u200b"], ["[", '"', "\\", "'", "%", "null", "\u200b"]),
    (["紧急", "дом", SMILE * 50, "x" * 50], ["紧急", "дом", SMILE * 50, "x" * 50]),
    ([" " * 100 + "x" * 50], ["x" * 50]),
    (["ß" * 50, "ΐ" * 50], ["ß" * 50, "ΐ" * 50]),
    # Duplicates, as the search folds them.
    (["Home", "work", "HOME", "home "], ["Home", "work"]),
    (["straße", "STRASSE"], ["straße"]),
    (["İ", "I", "ı", "i"], ["İ"]),
    (["ı", "İ"], ["ı"]),
    (["i\u0307", "İ"], ["i\u0307", "İ"]),
    (["ς", "Σ", "𐐨", "𐐀"], ["ς", "𐐨"]),
    (["é", "e\u0301"], ["é", "e\u0301"]),
    # Counted when blanks and duplicates are gone.
    (TWENTY, TWENTY),
    ([*TWENTY, *(tag.upper() for tag in TWENTY), "", " "], TWENTY),
    (["x"] * 5000, ["x"]),
    (",".join([*TWENTY, "", "TAG 0"]), TWENTY),
    # Texts.
    ("home", ["home"]),
    (" home , Work,,HOME,", ["home", "Work"]),
    ("x" * 50 + "," + SMILE * 50, ["x" * 50, SMILE * 50]),
    ("home]", ["home]"]),
    ('{"name": "x"}', ['{"name": "x"}']),
    ('["home", "a, b", " ", "HOME"]', ["home", "a, b"]),
    (' ["home"]\n', ["home"]),
    ('["\\ud83d\\ude00"]', [SMILE]),
    # Objects.
    ([{"name": "home"}, {"id": 1, "name": " Work ", "color": None}, "HOME"], ["home", "Work"]),
    ([{"name": "a, b"}, {"name": " "}], ["a, b"]),
    ('[{"name": "home"}, "work"]', ["home", "work"]),
]
TAKEN = [
    *(("priority", *row) for row in PRIORITIES),
    *(("due_date", *row) for row in DUE_DATES),
    *(("tags", *row) for row in TAGS),
]
# Unicode's Cc, but for those that str.strip() removes and those that JSON text can't have.
CONTROL = ["\0", "\x01", "\x1b", "\x7f", "\x80", "\x9f"]
INSIDE = [f"a{character}b" for character in [*CONTROL, "\t", "\n", "\x1c", "\x85"]]
# Days that there are not, and years that Python has not. Only a calendar tells.
NEVER = ["2026-02-30", "2026-02-29", "1900-02-29", "2026-04-31", "0000-01-01"]
NEVER += ["0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "0000-12-31T23:59:59-00:01"]
REFUSED: list[tuple[str, Any]] = [
    *(("priority", "x" * 21), ("priority", SMILE * 21), ("priority", "x" * 100_000)),
    *(("priority", value) for value in (True, False, 1.0, 0.5, 1e3, [], ["high"], {}, {"a": 1})),
    *(("priority", value) for value in (10**20, -(10**19) * 2)),
    *(("priority", text) for text in (*CONTROL, *INSIDE, "high\0", "\x7fhigh")),
    *(
        ("due_date", value)
        for value in (0, 1, 1772355600, 1.5, True, False, [], {}, ["2026-03-01"])
    ),
    *(("due_date", text) for text in ("tomorrow", " ", "null", "0", "1772355600", "T", "Z")),
    *(("due_date", day) for day in NEVER),
    # Other days that there are not, and other ways to write one.
    *(("due_date", day) for day in ("2026-13-01", "2026-00-01", "2026-01-00", "2026-01-32")),
    *(("due_date", day) for day in ("10000-01-01", "+002026-03-01", "-2026-03-01")),
    *(("due_date", day) for day in ("20260301", "2026-3-1", "2026-03", "2026", "26-03-01")),
    *(("due_date", day) for day in ("2026-W01-1", "2026-060", "01/03/2026", "2026/03/01")),
    *(("due_date", day) for day in ("2026-03-01\n", " 2026-03-01", "2026-03-01 ", "2026-03-01\0")),
    *(("due_date", day) for day in ("\u0662026-03-01", "\uff12026-03-01", "2026\u221203\u221201")),
    *(
        ("due_date", day)
        for day in ("2026-03-01Z", "2026-03-01+01:00", "2026-03-01T", "2026-03-01t")
    ),
    # Times that there are not, and other ways to write one.
    *(
        ("due_date", "2026-03-01" + time)
        for time in [
            *("T24:00:00", "T24:00", "T24:00:00Z", "T23:59:60", "T23:59:60Z", "T23:60:00"),
            *("T09", "T9:00", "T0900", "T090000", "T09:0", "T09:00:0", "T09:00:", "T-9:00"),
            *("t09:00:00", "_09:00:00", "  09:00:00", "\t09:00:00", "\n09:00:00", "T 09:00:00"),
            "T09:00:00.",
            "T09:00:00.Z",
            "T09:00:00,5",
            "T09:00.5",
            "T09:00:00.5.5",
            "T\u06609:00",
            *("T09:00:00\n", "T09:00:00Z\n", "T09:00:00 ", "T09:00:00\0", "T09:00:00.5\n"),
            *("T09:00:00z", "T09:00:00 Z", "T09:00:00ZZ", "T09:00:00UTC", "T09:00:00 UTC"),
            *("T09:00:00+0200", "T09:00:00+02", "T09:00:00+2:00", "T09:00:00+02:0"),
            *("T09:00:00 +02:00", "T09:00:00+02:00:00", "T09:00:00+02:00Z", "T09:00:00Z+02:00"),
            *("T09:00:00+24:00", "T09:00:00-24:00", "T09:00:00+02:60", "T09:00:00+99:99"),
            *("T09:00:00\u221202:00", "T09:00:00[Europe/Berlin]", "T09:00:00+02:00[Europe/Berlin]"),
            "T09:00:00 (CET)",
        ]
    ),
    ("due_date", "Sun, 01 Mar 2026 09:00:00 GMT"),
    ("due_date", "2026-03-01T09:00:00." + "1" * 5000 + "x"),
    *(("tags", value) for value in (0, 1, 1.5, True, False, {}, {"name": "home"}, {"0": "home"})),
    *(("tags", ["home", value]) for value in (None, 1, 0, 1.5, True, [], ["work"], {}, {"id": 1})),
    *(("tags", [{"name": value}]) for value in (None, 1, True, [], {}, ["home"], {"name": "home"})),
    *(("tags", [{"Name": "home"}]), ("tags", [{"label": "home"}])),
    ("tags", ["x" * 51]),
    ("tags", [SMILE * 51]),
    ("tags", "x" * 51),
    ("tags", "home," + "x" * 51),
    ("tags", [{"name": "x" * 51}]),
    *(("tags", [*TWENTY, "one more"]), ("tags", ",".join([*TWENTY, "one more"]))),
    ("tags", [f"{number}" for number in range(10_000)]),
    *(("tags", ["home", text]) for text in (*CONTROL, *INSIDE)),
    *(("tags", text) for text in INSIDE),
    *(("tags", [{"name": "a\nb"}]), ("tags", '["a\\u0000b"]'), ("tags", '["a\\nb"]')),
    # Texts that begin like an array and are none.
    *(("tags", text) for text in ("[", "[home]", '["home"', '["home",]', "['home']", "[NaN]")),
    *(("tags", text) for text in ('["home"] x', '["home"]["work"]', "[1e999]", '["\\ud800"]')),
    *(
        ("tags", text)
        for text in ("[1]", "[null]", "[true]", '[["home"]]', '[{"name": 1}]', "[{}]")
    ),
    ("tags", "[" * 50_000),
    ("tags", "[" * 50_000 + "]" * 50_000),
    ("tags", "[" + "9" * 5000 + "]"),
    ("tags", json.dumps([*TWENTY, "one more"])),
]


def short(value: object) -> str:
    return ascii(value)[:50]


@pytest.mark.parametrize(("field", "sent", "kept"), TAKEN, ids=short)
def test_what_is_taken(user: User, field: str, sent: object, kept: object) -> None:
    created = user.create(**{field: sent})
    assert created[field] == kept
    tasks = [created]
    for method in ("PUT", "PATCH"):
        before = user.create(**OLD)
        response = user.request(method, f"/tasks/{before['id']}", json={field: sent})
        assert response.status_code == 200, response.text
        changed = response.json()
        assert changed == before | {field: kept, "updated_at": changed["updated_at"]}
        assert user.task(before["id"]) == changed
        tasks.append(changed)
    assert user.tasks() == tasks


@pytest.mark.parametrize(("field", "sent"), REFUSED, ids=short)
@pytest.mark.one_database
def test_what_is_refused_changes_nothing(user: User, field: str, sent: object) -> None:
    created = user.post("/tasks", json=OLD)
    path = f"/tasks/{created.json()['id']}"
    for method, target in (("POST", "/tasks"), ("PUT", path), ("PATCH", path)):
        body = {"title": "New", "completed": True, field: sent}
        name, _ = refusal(user.request(method, target, json=body))
        assert name == field
    now = user.get(path)
    assert (now.json(), now.headers["ETag"]) == (created.json(), created.headers["ETag"])
    assert user.tasks() == [created.json()]


def is_more_than_documented(field: str, sent: Any) -> bool:
    """Whether a value that is taken is JSON in a text, a number that not every language has, or too
    long until white space and tags that are blank or repeated are dropped.
    """
    if isinstance(sent, int):
        return abs(sent) >= 2**53
    if field == "tags" and isinstance(sent, str):
        return sent.strip().startswith("[") or sent.count(",") > 19
    if field == "tags" and sent:
        return len(sent) > 20 or any(len(tag) > 50 for tag in sent)
    return field == "priority" and len(sent or "") > 20


@pytest.mark.one_database
def test_the_document_says_what_is_taken(server: Server) -> None:
    document = requests.get(f"{server.url}/openapi.json").json()
    schema = {"$ref": "#/components/schemas/TaskCreate", "components": document["components"]}
    fits = jsonschema_rs.validator_for(schema).is_valid
    for field, sent, _ in TAKEN:
        is_documented = not is_more_than_documented(field, sent)
        assert fits({"title": "x", field: sent}) is is_documented, short(sent)
    for field, sent in REFUSED:
        # A schema has no calendar, and takes 1.0 for a whole number.
        is_beyond_schema = sent in NEVER or (isinstance(sent, float) and sent.is_integer())
        assert fits({"title": "x", field: sent}) is is_beyond_schema, short(sent)
    for title in ("a\0", " \x85", "x" * 501):
        assert not fits({"title": title}), short(title)


@pytest.mark.parametrize(
    ("tags", "status"),
    [("," * 130_000, 201), ("x," * 65_000, 201), (",".join(map(str, range(20_000))), 422)],
    ids=["blank", "repeated", "too many"],
)
@pytest.mark.one_database
def test_tags_that_are_not_kept_take_little_time(user: User, tags: str, status: int) -> None:
    """Everyone else would wait: the threads of a process compute one at a time."""
    before = user.server.computed_s
    for _ in range(5):
        assert user.post("/tasks", json={"title": "x", "tags": tags}).status_code == status
    assert user.server.computed_s - before < 0.3


@pytest.mark.parametrize(
    ("field", "sent", "said"),
    [
        ("priority", 2.5, "up to 64 bits"),
        ("priority", "x" * 21, "20"),
        ("tags", ["x" * 51], "50"),
        ("tags", [*TWENTY, "one more"], "Must have at most 20 tags."),
        ("due_date", "tomorrow", "2026|YYYY"),
    ],
)
@pytest.mark.one_database
def test_a_refusal_says_what_may_be(user: User, field: str, sent: object, said: str) -> None:
    _, message = refusal(user.post("/tasks", json={"title": "x", field: sent}))
    assert any(part in message for part in said.split("|")), message


@pytest.mark.one_database
def test_every_wrong_field_is_named(user: User) -> None:
    body = {"title": "", "priority": [], "due_date": "x", "tags": [None], "completed": 1}
    response = user.post("/tasks", json=body)
    assert response.status_code == 422
    errors = response.json()["errors"]
    assert set(errors) == set(body)
    assert all(isinstance(words, str) for messages in errors.values() for words in messages)


@pytest.mark.parametrize(
    "value", ['"\\ud800"', '["\\ud800"]', '[{"name": "\\udc00"}]', "NaN", "1e999"]
)
@pytest.mark.parametrize("field", ["priority", "due_date", "tags"])
@pytest.mark.one_database
def test_what_is_no_json_is_a_400(user: User, field: str, value: str) -> None:
    body = f'{{"title": "x", "{field}": {value}}}'
    response = user.post("/tasks", data=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert user.tasks() == []


def test_every_task_has_all_fields_in_order(user: User) -> None:
    task = user.create()
    path = f"/tasks/{task['id']}"
    assert task | {"priority": "medium", "due_date": None, "tags": [], "completed_at": None} == task
    key = {"Idempotency-Key": "1"}
    for answer in [
        user.post("/tasks", json={"title": "x"}, headers=key),
        user.post("/tasks", json={"title": "x"}, headers=key),
        user.get(path),
        user.put(path, json={}),
        user.put(path, json={"tags": ["a"]}),
        user.patch(path, json={"due_date": "2026-03-01"}),
        user.patch(path + "/complete"),
        user.patch(path + "/complete", json={"completed": False}),
    ]:
        assert list(answer.json()) == FIELDS
    assert [list(each) for each in user.tasks()] == [FIELDS, FIELDS]


def test_one_field_changes_and_the_others_stay(user: User) -> None:
    before = user.create(**OLD, completed=True)
    changes = {"priority": "", "due_date": "", "tags": "", "title": "New", "description": "New"}
    for field, sent in changes.items():
        after = user.patch(f"/tasks/{before['id']}", json={field: sent}).json()
        assert after[field] != before[field]
        assert after == before | {field: after[field], "updated_at": after["updated_at"]}
        before = after
    assert (before["priority"], before["due_date"], before["tags"]) == ("medium", None, [])


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"completed": True, "priority": " HIGH ", "tags": "a,[,B", "due_date": "2026-03-01"},
        {"priority": 1, "tags": ["a, b", "["], "due_date": "2026-03-01 09:00"},
        {"tags": ["[1]"], "due_date": "2026-03-01T09:00:00.5+02:00", "description": ""},
    ],
)
def test_an_echo_changes_nothing_but_the_time(user: User, method: str, fields: dict) -> None:
    task = user.create(**fields)
    changed = user.request(method, f"/tasks/{task['id']}", json=task).json()
    assert changed["updated_at"] > task["updated_at"]
    assert changed == task | {"updated_at": changed["updated_at"]}


@pytest.mark.parametrize(
    ("method", "suffix", "true", "false"),
    [
        ("PUT", "", {"completed": True, "title": "x"}, {"completed": False}),
        ("PATCH", "", {"completed": True}, {"completed": False, "tags": ["x"]}),
        ("PATCH", "/complete", {"completed": True}, {"completed": False}),
        ("PATCH", "/complete", None, None),
    ],
    ids=["put", "patch", "set", "toggle"],
)
def test_completed_at_is_when_it_became_true(
    user: User, method: str, suffix: str, true: dict | None, false: dict | None
) -> None:
    path = f"/tasks/{user.create()['id']}"
    first = user.request(method, path + suffix, json=true).json()
    assert first["completed_at"] == first["updated_at"] > first["created_at"]
    if true:  # Sent again: completed does not change, so the time does not either.
        again = user.request(method, path + suffix, json=true).json()
        assert again["updated_at"] > first["updated_at"]
        assert again["completed_at"] == first["completed_at"]
    for change in (
        {"title": "y"},
        {"tags": ["a"]},
        {"due_date": "2026-03-01"},
        {"priority": "low"},
    ):
        assert user.patch(path, json=change).json()["completed_at"] == first["completed_at"]
    undone = user.request(method, path + suffix, json=false).json()
    assert (undone["completed"], undone["completed_at"]) == (False, None)
    if false:
        undone = user.request(method, path + suffix, json=false).json()
        assert (undone["completed"], undone["completed_at"]) == (False, None)
    later = user.request(method, path + suffix, json=true).json()
    assert later["completed_at"] == later["updated_at"] > first["completed_at"]
    assert user.tasks() == [later]


def test_a_task_that_is_created_completed_was_completed_then(user: User) -> None:
    done, open_ = user.create(completed=True), user.create(completed=False)
    assert done["completed_at"] == done["created_at"] == done["updated_at"]
    assert open_["completed_at"] is None
    assert user.tasks() == [done, open_]


def test_a_task_that_version_1_0_reopens_has_no_time_of_completion(
    user: User, database_url: str
) -> None:
    """It runs beside this version during a deploy, and does not know the field."""
    task = user.create(completed=True)
    sql = f"UPDATE task SET completed = false WHERE user_id = '{user.name}'"
    change_by_hand(database_url, sql)
    assert user.tasks() == [task | {"completed": False, "completed_at": None}]


def test_the_servers_own_fields_cannot_be_set(user: User) -> None:
    then = "1999-12-31T00:00:00.000000Z"
    task = user.create(completed_at=then, updated_at=then)
    assert task["completed_at"] is None
    for method in ("PUT", "PATCH"):
        response = user.request(method, f"/tasks/{task['id']}", json={"completed_at": then})
        assert response.json() == task | {"updated_at": response.json()["updated_at"]}
    done = user.patch(f"/tasks/{task['id']}", json={"completed": True, "completed_at": None}).json()
    assert done["completed_at"] == done["updated_at"]


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ({}, {"priority": "medium", "due_date": None, "tags": []}, 200),
        ({"priority": None, "due_date": "", "tags": ""}, {"priority": "", "tags": None}, 200),
        ({"priority": 1}, {"priority": " 1 "}, 200),
        ({"tags": "a,b"}, {"tags": [" a", {"name": "b"}, "", "B"]}, 200),
        ({"due_date": "2026-03-01T09:00Z"}, {"due_date": "2026-03-01 11:00:00.5+02:00"}, 200),
        ({"due_date": "2026-03-01 09:00"}, {"due_date": "2026-03-01T09:00:00"}, 200),
        ({"completed": True}, {"completed": True, "completed_at": None}, 200),
        ({}, {"priority": "high"}, 422),
        ({}, {"priority": "Medium"}, 422),
        ({"tags": ["a", "b"]}, {"tags": ["b", "a"]}, 422),
        ({"tags": ["a"]}, {"tags": ["A"]}, 422),
        ({"tags": ["a,b"]}, {"tags": "a,b"}, 422),
        ({"due_date": "2026-03-01"}, {}, 422),
        ({"due_date": "2026-03-01"}, {"due_date": "2026-03-01T00:00:00"}, 422),
        ({"due_date": "2026-03-01T00:00:00"}, {"due_date": "2026-03-01T00:00:00Z"}, 422),
    ],
    ids=short,
)
def test_a_key_compares_what_is_kept(user: User, first: dict, second: dict, status: int) -> None:
    headers = {"Idempotency-Key": "1"}
    created = user.post("/tasks", json={"title": "x", **first}, headers=headers)
    replayed = user.post("/tasks", json={"title": "x", **second}, headers=headers)
    assert (created.status_code, replayed.status_code) == (201, status), replayed.text
    if status == 200:
        assert replayed.json() == created.json()
    assert user.tasks() == [created.json()]


def test_the_longest_legal_body_is_taken(user: User) -> None:
    body = {
        "title": SMILE * 500,
        "description": SMILE * 5000,
        "priority": SMILE * 20,
        "due_date": "2026-03-01T09:00:00.123456789+02:00",
        "tags": [SMILE * 48 + f"{number:02}" for number in range(20)],
        "completed": True,
    }
    task = user.create(**body)
    kept = body | {"due_date": "2026-03-01T07:00:00Z"}
    assert {name: task[name] for name in body} == kept
    assert user.tasks() == [task]


@pytest.fixture
def old_database(tmp_path: Path, own_url: str) -> str:
    """A database of the user ann whose two tasks have none of the fields."""
    (tmp_path / "old").mkdir()
    make_schema_of(["0001_task", "0002_dotted_i"], tmp_path / "old", own_url)
    for completed in (True, False):
        insert_by_hand(own_url, "ann", "Old", completed=completed)
    return own_url


def test_tasks_from_before_the_fields_have_them_too(tmp_path: Path, old_database: str) -> None:
    with Server(tmp_path, DATABASE_URL=old_database) as server, User(server, "ann") as ann:
        open_, done = sorted(ann.tasks(), key=lambda task: task["completed"])
        in_order = sorted((done, open_), key=lambda task: task["id"])
        assert ann.tasks() == ann.tasks(sort="due_date") == in_order
        assert ann.tasks(priority="MEDIUM", sort="priority") == in_order[::-1]
        for task, completed in ((done, True), (open_, False)):
            assert list(task) == FIELDS
            assert task["completed"] is completed
            assert (task["priority"], task["due_date"], task["tags"]) == ("medium", None, [])
            assert task["completed_at"] is None
        assert ann.tasks(tag="x") == ann.tasks(due_date_to="9999-12-31") == []
        path = f"/tasks/{done['id']}"
        # Nobody knows when it was completed, also after it is set once more.
        again = ann.patch(path, json={"completed": True, "tags": ["a"]}).json()
        assert (again["completed"], again["completed_at"]) == (True, None)
        assert ann.patch(path + "/complete").json()["completed_at"] is None
        later = ann.patch(path + "/complete").json()
        assert later["completed_at"] == later["updated_at"]
        assert ann.tasks(tag="A") == [later]


def test_a_client_from_before_the_fields_is_told_of_them(tmp_path: Path, old_database: str) -> None:
    """It has the task without them, and its ETag of version 1.0."""
    with Server(tmp_path, DATABASE_URL=old_database) as server, User(server, "ann") as ann:
        sql = "SELECT id, revision FROM task"
        ((task_id, revision), _) = change_by_hand(old_database, sql)
        path, tag = f"/tasks/{task_id}", f'"{revision}"'
        response = ann.get(path, headers={"If-None-Match": tag})
        assert response.status_code == 200
        assert list(response.json()) == FIELDS
        tags = {"If-None-Match": response.headers["ETag"]}
        assert ann.get(path, headers=tags).status_code == 304
        changed = ann.patch(path, json={"title": "New"}, headers={"If-Match": tag})
        assert changed.status_code == 200
        assert ann.put(path, json={}, headers={"If-Match": tag}).status_code == 412
