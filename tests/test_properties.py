"""Any text comes back equal, and any sequence of operations does what a model says."""

import json
import unicodedata
from typing import Any
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, rule
from support.server import Server, User

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
TITLES = TEXT.map(lambda text: text[:500]).filter(str.strip)
DESCRIPTIONS = st.none() | TEXT
PRIORITIES = st.none() | st.sampled_from(["", " High ", "p2", "none", 1, "x" * 20])
DUE_DATES = st.none() | st.sampled_from(
    ["2026-03-01", "2026-03-01T09:00:00", "2026-03-01T09:00:00Z"]
)
TAGS = st.none() | st.lists(st.sampled_from(["home", " Home", "work, play", "", "İ", "i"]))
CHANGES = {
    "title": TITLES,
    "description": DESCRIPTIONS,
    "completed": st.booleans(),
    "priority": PRIORITIES,
    "due_date": DUE_DATES,
    "tags": TAGS,
}
USERS = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=40
).filter(lambda name: name not in {".", ".."})
often = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@often
@given(title=TITLES, description=DESCRIPTIONS, escaped=st.booleans())
def test_any_text_comes_back_equal(user: User, title: str, description: Any, escaped: bool) -> None:
    body = json.dumps({"title": title, "description": description}, ensure_ascii=escaped)
    created = user.post("/tasks", data=body.encode(), headers={"Content-Type": "application/json"})
    assert created.status_code == 201, created.text
    task = user.task(created.json()["id"])
    assert (task["title"], task["description"]) == (title.strip(), description)


@often
@given(title=TITLES, data=st.data())
def test_any_part_of_a_title_finds_it_in_any_case(
    user: User, title: str, data: st.DataObject
) -> None:
    kept = title.strip()
    start = data.draw(st.integers(0, len(kept) - 1))
    part = kept[start : start + data.draw(st.integers(1, 200))]
    task = user.create(title)
    assert task in user.tasks(search=part)
    if part.swapcase().casefold() == part.casefold() and len(part.swapcase()) <= 200:
        assert task in user.tasks(search=part.swapcase())


@often
@given(words=st.lists(TEXT.map(lambda text: text[:60]), max_size=25))
def test_any_tags_come_back_or_are_refused(user: User, words: list[str]) -> None:
    tags = unlike(words)
    response = user.post("/tasks", json={"title": "x", "tags": words})
    if len(tags) > 20 or any(len(tag) > 50 or has_control(tag) for tag in tags):
        assert (response.status_code, list(response.json()["errors"])) == (422, ["tags"])
        return
    assert response.json()["tags"] == tags
    for tag in tags:
        assert response.json() in user.tasks(tag=tag)


@often
@given(word=TEXT.map(lambda text: text[:25]))
def test_any_priority_comes_back_or_is_refused(user: User, word: str) -> None:
    response = user.post("/tasks", json={"title": "x", "priority": word})
    if len(word.strip()) > 20 or has_control(word.strip()):
        assert (response.status_code, list(response.json()["errors"])) == (422, ["priority"])
    else:
        assert response.json()["priority"] == (word.strip() or "medium")
        if "," not in word and fold(word.strip()) != "all":
            assert response.json() in user.tasks(priority=word)


@often
@given(name=USERS)
def test_any_user_has_tasks_of_their_own(server: Server, name: str) -> None:
    with User(server, name) as user:
        task = user.create()
        assert task["user_id"] == name
        assert user.task(task["id"]) == task
        assert user.delete(f"/tasks/{task['id']}").status_code == 200


def fold(text: str) -> str:
    return text.replace("İ", "i").replace("ı", "i").casefold()


def has_control(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)


def unlike(words: list[str]) -> list[str]:
    """The tags in `words`: stripped, without blanks and duplicates."""
    first: dict[str, str] = {}
    for word in filter(None, map(str.strip, words)):
        first.setdefault(fold(word), word)
    return list(first.values())


def kept(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields as the API keeps them."""
    fields = dict(fields)
    if "title" in fields:
        fields["title"] = fields["title"].strip()
    if "priority" in fields:
        fields["priority"] = str(fields["priority"] or "").strip() or "medium"
    if "tags" in fields:
        fields["tags"] = unlike(fields["tags"] or [])
    return fields


class Tasks(RuleBasedStateMachine):
    """The API beside a dict that does the same."""

    server: Server
    ids = Bundle("ids")

    @initialize()
    def begin(self) -> None:
        self.user = User(self.server, f"model-{uuid4()}")
        self.model: dict[str, dict[str, Any]] = {}
        # The tasks in the trash, the last deleted first.
        self.trash: list[dict[str, Any]] = []

    def teardown(self) -> None:
        if hasattr(self, "user"):
            assert self.user.tasks() == self.tasks()
            self.deleted()
            self.user.close()

    def tasks(self) -> list[dict[str, Any]]:
        return sorted(self.model.values(), key=lambda task: task["created_at"])

    def check(self, task_id: str, response: Any, **changes: Any) -> None:
        if task_id not in self.model:
            assert response.status_code == 404
            return
        assert response.status_code == 200
        task = response.json()
        before = self.model[task_id]
        expected = before | changes | {"updated_at": task["updated_at"]}
        assert task["updated_at"] >= before["updated_at"]
        if expected["completed"] is not before["completed"]:
            expected["completed_at"] = task["updated_at"] if expected["completed"] else None
        assert task == expected
        self.model[task_id] = task

    @rule(target=ids, fields=st.fixed_dictionaries(CHANGES))
    def create(self, fields: dict[str, Any]) -> str:
        task = self.user.create(**fields)
        assert task["id"] not in self.model
        assert task == task | kept(fields)
        assert task["completed_at"] == (task["updated_at"] if task["completed"] else None)
        self.model[task["id"]] = task
        return task["id"]

    @rule(task_id=ids)
    def read(self, task_id: str) -> None:
        self.check(task_id, self.user.get(f"/tasks/{task_id}"))

    @rule(
        task_id=ids,
        method=st.sampled_from(["PUT", "PATCH"]),
        changes=st.fixed_dictionaries({}, optional=CHANGES),
    )
    def update(self, task_id: str, method: str, changes: dict[str, Any]) -> None:
        response = self.user.request(method, f"/tasks/{task_id}", json=changes)
        self.check(task_id, response, **kept(changes))

    @rule(task_id=ids)
    def flip(self, task_id: str) -> None:
        response = self.user.patch(f"/tasks/{task_id}/complete")
        now = self.model.get(task_id, {}).get("completed")
        self.check(task_id, response, completed=not now)

    @rule(task_id=ids, completed=st.booleans())
    def complete(self, task_id: str, completed: bool) -> None:
        response = self.user.patch(f"/tasks/{task_id}/complete", json={"completed": completed})
        self.check(task_id, response, completed=completed)

    @rule(task_id=ids)
    def delete(self, task_id: str) -> None:
        response = self.user.delete(f"/tasks/{task_id}")
        assert response.status_code == (200 if task_id in self.model else 404)
        if task_id in self.model:
            self.trash.insert(0, self.model.pop(task_id))

    @rule(task_id=ids)
    def restore(self, task_id: str) -> None:
        response = self.user.post(f"/tasks/{task_id}/restore")
        for task in self.trash:
            if task["id"] == task_id:
                self.model[task_id] = task
        self.trash = [task for task in self.trash if task["id"] != task_id]
        assert (response.status_code, response.json()) == (200, self.model[task_id])

    @rule()
    def clear(self) -> None:
        response = self.user.delete("/tasks/completed/clear")
        completed = [task for task in self.model.values() if task["completed"]]
        assert (response.status_code, response.json()["deleted"]) == (200, len(completed))
        completed.sort(key=lambda task: task["id"], reverse=True)
        self.trash[:0] = [self.model.pop(task["id"]) for task in completed]

    @rule()
    def deleted(self) -> None:
        found = self.user.trash()
        times = [task.pop("deleted_at") for task in found]
        assert found == self.trash
        assert times == sorted(times, reverse=True)

    @rule(
        status=st.sampled_from(["all", "pending", "completed"]),
        sort=st.sampled_from(["created", "updated", "title"]),
        order=st.sampled_from(["asc", "desc"]),
    )
    def listing(self, status: str, sort: str, order: str) -> None:
        wanted = {"all": {True, False}, "pending": {False}, "completed": {True}}[status]
        tasks = [task for task in self.tasks() if task["completed"] in wanted]
        key = {"created": "created_at", "updated": "updated_at", "title": "title"}[sort]
        tasks.sort(
            key=lambda task: (task[key].lower()[:100] if sort == "title" else task[key], task["id"])
        )
        assert self.user.tasks(status=status, sort=sort, order=order) == (
            tasks if order == "asc" else tasks[::-1]
        )


def test_any_sequence_of_operations_agrees_with_a_model(server: Server) -> None:
    class Here(Tasks):
        pass

    Here.server = server
    Here.TestCase.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)
    Here.TestCase("runTest").runTest()
