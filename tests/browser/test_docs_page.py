"""The docs page, as Chromium shows it under its Content-Security-Policy and without a network."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import jwt
import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, Locator, expect
from server import Server, User

SECRET = "a secret of more than 32 bytes, for tests"
SMALL = {"WEB_CONCURRENCY": "1", "THREADS": "4"}
TASKS, TASK = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
# In the order of the contract.
OPERATIONS = {
    "listTasks": ("GET", TASKS),
    "createTask": ("POST", TASKS),
    "getTask": ("GET", TASK),
    "updateTask": ("PUT", TASK),
    "patchTask": ("PATCH", TASK),
    "deleteTask": ("DELETE", TASK),
    "completeTask": ("PATCH", f"{TASK}/complete"),
    "getHealth": ("GET", "/health"),
    "getReadiness": ("GET", "/ready"),
}
REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (violation) =>
  console.error(`${violation.effectiveDirective} forbids ${violation.blockedURI}`));
"""


class Visit:
    """The docs page, what it asks for, and what the browser complains about."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.addresses: list[str] = []
        self.complaints: list[str] = []
        context.set_default_timeout(10_000)
        context.add_init_script(REPORT_VIOLATIONS)
        context.on("request", lambda request: self.addresses.append(request.url))
        context.on("console", lambda message: self.complaints.append(message.text))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.page = context.new_page()
        self.page.goto(f"{url}/")
        self.page.wait_for_selector(".opblock")

    def operation(self, name: str) -> Locator:
        return self.page.locator(f".opblock[id$='-{name}']")

    def unfold(self, name: str) -> Locator:
        operation = self.operation(name)
        operation.locator(".opblock-summary-control").click()
        return operation

    def execute(self, name: str) -> int:
        """Send what is in the form, and return the status that the page shows."""
        self.operation(name).get_by_role("button", name="Execute").click()
        return int(self.answer(name).locator(".response-col_status").inner_text())

    def answer(self, name: str) -> Locator:
        return self.operation(name).locator(".live-responses-table tr.response")

    def body(self, name: str) -> Any:
        return json.loads(self.answer(name).locator("code").first.inner_text())

    def fits(self) -> bool:
        return self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module", name="open")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("open"), **SMALL) as server:
        yield server


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("guarded"), JWT_SECRET=SECRET, **SMALL) as server:
        yield server


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Visit]]:
    """Open the page of a server. Fails on a complaint, and on a request to anywhere else."""
    visits = []

    def visit(server: Server, **options: Any) -> Visit:
        visits.append(Visit(chromium.new_context(**options), server.url))
        return visits[-1]

    yield visit
    for each in visits:
        each.page.context.close()
        assert each.complaints == []
        known = (f"{each.url}/", "data:")
        assert [address for address in each.addresses if not address.startswith(known)] == []


@pytest.mark.parametrize("mode", ["open", "guarded"])
def test_the_root_leads_to_every_operation_in_the_order_of_the_contract(
    mode: str, request: pytest.FixtureRequest, visit: Callable[..., Visit]
) -> None:
    server = request.getfixturevalue(mode)
    page = visit(server).page
    assert page.url == f"{server.url}/docs"
    assert page.title() == "Task API"
    shown = [
        (block.locator(".opblock-summary-method").inner_text(), path.get_attribute("data-path"))
        for block in page.locator(".opblock").all()
        for path in block.locator("[data-path]").all()
    ]
    assert shown == list(OPERATIONS.values())
    paths = requests.get(f"{server.url}/openapi.json").json()["paths"]
    assert set(shown) == {
        (method.upper(), path)
        for path, item in paths.items()
        for method in item.keys() - {"parameters"}
    }
    authorize = page.get_by_role("button", name="Authorize", exact=True)
    expect(authorize).to_have_count(int(mode == "guarded"))
    expect(page.get_by_text("TaskCreate", exact=True)).to_have_count(0)


def test_every_example_works_as_it_stands(open: Server, visit: Callable[..., Visit]) -> None:
    visit = visit(open)
    visit.unfold("createTask")
    assert visit.execute("createTask") == 201
    shown = visit.body("createTask")
    user = User(open, "alice")
    assert user.task(shown["id"]) == shown
    for name in sorted(OPERATIONS.keys() - {"createTask", "deleteTask"}) + ["deleteTask"]:
        visit.unfold(name)
        assert visit.execute(name) == 200, name
    assert visit.body("listTasks")[0] == shown
    assert visit.body("getTask")["id"] == shown["id"]
    assert user.tasks() == []


def test_a_merge_patch_is_offered(open: Server, visit: Callable[..., Visit]) -> None:
    visit = visit(open)
    visit.unfold("createTask")
    assert visit.execute("createTask") == 201
    patch = visit.unfold("patchTask")
    patch.get_by_label("Request content type").select_option("application/merge-patch+json")
    patch.locator("textarea").fill('{"description": null}')
    assert visit.execute("patchTask") == 200
    assert visit.body("patchTask")["description"] is None


def test_a_user_is_written_once_for_all_operations(
    open: Server, visit: Callable[..., Visit]
) -> None:
    visit = visit(open)
    name = f"Zoë 用户 {uuid4()}"
    form = visit.unfold("listTasks")
    form.get_by_placeholder("user_id").fill(name)
    assert visit.execute("listTasks") == 200
    assert visit.body("listTasks") == []
    visit.unfold("createTask")
    assert visit.execute("createTask") == 201
    (created,) = User(open, name).tasks()
    assert created == visit.body("createTask")
    visit.unfold("getTask")
    assert visit.execute("getTask") == 200
    assert visit.body("getTask") == created


def test_a_token_opens_the_api_and_is_kept(guarded: Server, visit: Callable[..., Visit]) -> None:
    token = jwt.encode({"sub": "alice", "exp": int(time.time()) + 300}, SECRET)
    visit = visit(guarded)
    page = visit.page
    page.get_by_role("button", name="Authorize", exact=True).click()
    dialog = page.locator(".modal-ux")
    expect(dialog).to_contain_text("A token whose sub is the user_id in the path.")
    dialog.locator("input").fill(token)
    dialog.locator("input").press("Enter")
    dialog.get_by_role("button", name="Close").first.click()
    visit.unfold("createTask")
    assert visit.execute("createTask") == 201
    with User(guarded, "alice") as user:
        user.headers["Authorization"] = f"Bearer {token}"
        assert user.tasks() == [visit.body("createTask")]
    page.reload()
    visit.unfold("listTasks")
    assert visit.execute("listTasks") == 200


@pytest.mark.parametrize("width", [320, 1280])
def test_nothing_is_wider_than_the_window(
    open: Server, visit: Callable[..., Visit], width: int
) -> None:
    visit = visit(open, viewport={"width": width, "height": 740})
    assert visit.fits()
    for name in OPERATIONS:
        visit.unfold(name)
    assert visit.execute("createTask") == 201
    assert visit.execute("listTasks") == 200
    visit.page.locator("section.models").get_by_role("button").first.click()
    expect(visit.page.get_by_text("TaskCreate", exact=True)).to_be_visible()
    assert visit.fits()


def test_the_keyboard_is_enough(open: Server, visit: Callable[..., Visit]) -> None:
    visit = visit(open)

    def press_enter_on(target: Locator) -> None:
        for _ in range(40):
            visit.page.keyboard.press("Tab")
            if target.evaluate("(element) => element === document.activeElement"):
                break
        visit.page.keyboard.press("Enter")

    form = visit.operation("createTask")
    press_enter_on(form.locator(".opblock-summary-control"))
    press_enter_on(form.get_by_role("button", name="Execute"))
    expect(visit.answer("createTask")).to_contain_text("201")


def test_it_is_as_dark_as_the_system(open: Server, visit: Callable[..., Visit]) -> None:
    def brightness() -> int:
        colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(",")))

    page = visit(open, color_scheme="dark").page
    assert brightness() < 150
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html:not(.dark-mode)")


def test_a_foreign_script_neither_runs_nor_calls(
    open: Server, guarded: Server, visit: Callable[..., Visit]
) -> None:
    visit = visit(open)
    page = visit.page
    page.evaluate("document.body.append(Object.assign(document.createElement('script'),"
        " {textContent: 'window.ran = true'}))")
    assert page.evaluate("window.ran") is None
    called = page.evaluate("(url) => fetch(url).then(() => 'called', (e) => e.name)", guarded.url)
    assert called == "TypeError"
    assert any("script-src" in complaint for complaint in visit.complaints)
    assert any("connect-src" in complaint for complaint in visit.complaints)
    visit.complaints.clear()
