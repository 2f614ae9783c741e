"""The docs page, as Chromium shows it under its Content-Security-Policy and without a network."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import jwt
import pytest
import requests
from playwright.sync_api import Browser, BrowserContext, Locator, expect
from support.network import eventually
from support.server import Server, User

SECRET = "a secret of more than 32 bytes, for tests"
SMALL = {"WEB_CONCURRENCY": "1", "THREADS": "5"}
TASKS, TASK = "/api/{user_id}/tasks", "/api/{user_id}/tasks/{task_id}"
# In the order of the contract.
OPERATIONS = {
    "listTasks": ("GET", TASKS),
    "createTask": ("POST", TASKS),
    "getTask": ("GET", TASK),
    "updateTask": ("PUT", TASK),
    "patchTask": ("PATCH", TASK),
    "deleteTask": ("DELETE", TASK),
    "listDeletedTasks": ("GET", f"{TASKS}/deleted"),
    "restoreTask": ("POST", f"{TASK}/restore"),
    "clearCompletedTasks": ("DELETE", f"{TASKS}/completed/clear"),
    "completeTask": ("PATCH", f"{TASK}/complete"),
    "getHealth": ("GET", "/health"),
    "getReadiness": ("GET", "/ready"),
}
# What Chromium's console says of a response that the test expects.
UNAUTHORIZED = "Failed to load resource: the server responded with a status of 401 (UNAUTHORIZED)"
# As in Chromium, if the user blocks all cookies.
REFUSE_STORAGE = """
Object.defineProperty(window, "localStorage", {get() { throw new DOMException("Denied"); }});
"""
REPORT_VIOLATIONS = """
addEventListener("securitypolicyviolation", (violation) =>
  console.error(`${violation.effectiveDirective} forbids ${violation.blockedURI}`));
"""


class Visit:
    """The docs page, what it asks for, and what the browser complains about."""

    def __init__(self, context: BrowserContext, url: str, script: str) -> None:
        self.url = url
        self.addresses: list[str] = []
        self.complaints: list[str] = []
        context.set_default_timeout(20_000)
        context.add_init_script(REPORT_VIOLATIONS + script)
        context.on("request", lambda request: self.addresses.append(request.url))
        context.on("console", lambda message: self.complaints.append(message.text))
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.page = context.new_page()
        self.page.goto(f"{url}/")
        self.page.wait_for_selector(".opblock")

    def operation(self, name: str) -> Locator:
        return self.page.locator(f".opblock[id$='-{name}']")

    def authorize(self, token: str) -> None:
        self.page.get_by_role("button", name="Authorize", exact=True).click()
        dialog = self.page.locator(".modal-ux")
        expect(dialog).to_contain_text("A JWT whose sub is the user_id in the path.")
        dialog.locator("input").fill(token)
        dialog.locator("input").press("Enter")
        dialog.get_by_role("button", name="Close").first.click()

    def unfold(self, name: str) -> Locator:
        operation = self.operation(name)
        operation.locator(".opblock-summary-control").click()
        return operation

    def execute(self, name: str) -> tuple[int, Any]:
        """Send what is in the form, and return the status and the body that the page shows."""
        operation = self.operation(name)
        clear = operation.locator(".btn-clear")
        if clear.count():  # The page shows the previous response until the next one has come.
            clear.click()
        operation.get_by_role("button", name="Execute").click()
        answer = operation.locator(".live-responses-table tr.response")
        status = answer.locator(".response-col_status").inner_text()
        body = answer.locator("code").first.inner_text()
        # Each one that is open makes the page slower.
        operation.locator(".opblock-summary-control").click()
        return int(status), json.loads(body)


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

    def visit(server: Server, script: str = "", **options: Any) -> Visit:
        visits.append(Visit(chromium.new_context(**options), server.url, script))
        return visits[-1]

    yield visit
    for each in visits:
        each.page.context.close()
        assert each.complaints == []
        known = (f"{each.url}/", "data:")
        assert [address for address in each.addresses if not address.startswith(known)] == []


@pytest.mark.parametrize("mode", ["guarded", pytest.param("open", marks=pytest.mark.slow)])
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


@pytest.mark.slow
def test_every_example_works_as_it_stands(open: Server, visit: Callable[..., Visit]) -> None:
    visit = visit(open)

    def run(name: str) -> tuple[int, Any]:
        visit.unfold(name)
        return visit.execute(name)

    status, created = run("createTask")
    assert status == 201
    with User(open, "alice") as alice:
        assert alice.tasks() == [created]
        assert run("listTasks") == (200, [created])
        assert run("getTask") == (200, created)
        for name in ("updateTask", "patchTask", "completeTask"):
            assert run(name) == (200, alice.task(created["id"]))
        assert alice.task(created["id"])["completed"]
        assert run("deleteTask") == (200, {"message": "Task deleted successfully"})
        assert alice.tasks() == []
    assert run("getHealth") == run("getReadiness") == (200, {"status": "ok"})


@pytest.mark.slow
def test_what_a_path_names_is_written_once(open: Server, visit: Callable[..., Visit]) -> None:
    visit = visit(open)
    name = f"Zoë 用户 {uuid4()}"
    visit.unfold("listTasks").get_by_placeholder("user_id").fill(name)
    assert visit.execute("listTasks") == (200, [])
    visit.unfold("createTask")
    status, created = visit.execute("createTask")
    assert (status, created["user_id"]) == (201, name)
    patch = visit.unfold("patchTask")
    patch.get_by_label("Request content type").select_option("application/merge-patch+json")
    patch.locator("textarea").fill('{"description": null}')
    with User(open, name) as user:
        assert visit.execute("patchTask") == (200, user.task(created["id"]))
        assert user.task(created["id"])["description"] is None


@pytest.mark.slow
def test_a_list_can_be_filtered_and_continued(open: Server, visit: Callable[..., Visit]) -> None:
    with User(open, f"{uuid4()}") as user:
        user.create("Buy bread", tags=["home"])
        expected = [user.create(title, tags=["Home", "shop"]) for title in ("Buy milk", "Buy tea")]
        visit = visit(open)
        form = visit.unfold("listTasks")
        form.get_by_placeholder("user_id").fill(user.name)
        tags = form.locator("tr[data-param-name=tag]")
        for tag in ("home", "shop"):
            tags.get_by_role("button", name="Add string item").click()
            tags.locator("input").last.fill(tag)
        form.locator("tr[data-param-name=limit] input").fill("1")
        assert visit.execute("listTasks") == (200, expected[:1])
        link = form.locator(".response .microlight", has_text="link:")
        visit.unfold("listTasks")
        cursor = re.search(r"cursor=([\w-]+)", link.inner_text())
        assert cursor
        form.locator("tr[data-param-name=cursor] input").fill(cursor[1])
        assert visit.execute("listTasks") == (200, expected[1:])
        trash = visit.unfold("listDeletedTasks")
        expect(trash.get_by_placeholder("user_id")).to_have_value(user.name)
        expect(trash.locator("tr[data-param-name=limit] input")).to_have_value("")


@pytest.mark.slow
def test_a_token_opens_the_api_for_its_user_and_is_kept(
    guarded: Server, visit: Callable[..., Visit]
) -> None:
    """The claims are in UTF-8, as issuers write them, and have a - and a _ in Base64."""
    name = f"Zoë ~用户 {uuid4()}"
    claims = json.dumps({"sub": name, "exp": int(time.time()) + 300}, ensure_ascii=False)
    token = jwt.PyJWS().encode(claims.encode(), SECRET, "HS256")
    assert {"-", "_"} <= {*token.split(".")[1]}
    visit = visit(guarded)
    page = visit.page
    visit.unfold("listTasks")
    status, problem = visit.execute("listTasks")
    assert status == 401
    assert "token" in problem["detail"]
    visit.complaints.remove(UNAUTHORIZED)
    visit.authorize(token)
    form = visit.unfold("createTask")
    expect(form.get_by_placeholder("user_id")).to_have_value(name)
    status, created = visit.execute("createTask")
    assert (status, created["user_id"]) == (201, name)
    visit.unfold("listTasks")
    assert visit.execute("listTasks") == (200, [created])
    page.reload()
    form = visit.unfold("listTasks")
    expect(form.get_by_placeholder("user_id")).to_have_value(name)
    assert visit.execute("listTasks") == (200, [created])


@pytest.mark.slow
def test_a_token_opens_the_api_in_a_browser_that_stores_nothing(
    guarded: Server, visit: Callable[..., Visit]
) -> None:
    token = jwt.encode({"sub": "bob", "exp": int(time.time()) + 300}, SECRET)
    visit = visit(guarded, REFUSE_STORAGE)
    visit.authorize(token)
    form = visit.unfold("listTasks")
    expect(form.get_by_placeholder("user_id")).to_have_value("bob")
    assert visit.execute("listTasks") == (200, [])


@pytest.mark.slow
@pytest.mark.parametrize("token", ["x", "a.b.c", "a.bnVsbA.c", "a.e30.c"])
def test_what_is_no_token_leaves_the_form_as_it_is(
    guarded: Server, visit: Callable[..., Visit], token: str
) -> None:
    visit = visit(guarded)
    user = visit.unfold("listTasks").get_by_placeholder("user_id")
    user.fill("bob")
    visit.authorize(token)
    expect(user).to_have_value("bob")


@pytest.mark.slow
def test_a_form_sends_only_what_is_written_into_it(
    open: Server, visit: Callable[..., Visit]
) -> None:
    visit = visit(open)
    form = visit.unfold("listTasks")
    first = form.locator("tr[data-param-name]").first
    expect(first).to_have_attribute("data-param-name", "user_id")
    expect(form).to_contain_text("Default: created.")
    form.get_by_role("button", name="Execute").click()
    expect(form.locator(".request-url pre")).to_have_text(f"{open.url}/api/alice/tasks")


@pytest.mark.slow
def test_an_error_of_an_operation_is_one_line(open: Server, visit: Callable[..., Visit]) -> None:
    form = visit(open).unfold("createTask")
    expect(form.locator("[data-code='201'] .model-example")).to_be_visible()
    for status in ("404", "422", "503"):
        row = form.locator(f"[data-code='{status}']")
        expect(row.locator(".response-col_description__inner")).to_be_visible()
        expect(row.locator(".model-example")).to_be_hidden()
        expect(row.locator(".headers-wrapper")).to_be_hidden()


@pytest.mark.slow
def test_nothing_is_wider_than_a_phone(open: Server, visit: Callable[..., Visit]) -> None:
    visit = visit(open, viewport={"width": 320, "height": 640})
    page = visit.page
    page.get_by_role("button", name="Schemas").click()
    expect(page.get_by_text("TaskCreate", exact=True)).to_be_visible()
    form = visit.unfold("createTask")
    form.get_by_role("button", name="Execute").click()
    expect(form.locator(".live-responses-table")).to_contain_text("201")
    closed = ".opblock:not(.is-open) .opblock-summary-control"
    page.locator(closed).evaluate_all("(controls) => controls.forEach((each) => each.click())")
    expect(page.get_by_role("button", name="Execute")).to_have_count(len(OPERATIONS))
    assert page.evaluate("document.documentElement.scrollWidth") == 320


@pytest.mark.slow
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
    expect(form.locator(".live-responses-table")).to_contain_text("201")


@pytest.mark.slow
def test_it_is_as_dark_as_the_system(open: Server, visit: Callable[..., Visit]) -> None:
    def brightness_of_the_text() -> int:
        colour = page.locator("h1").evaluate("(title) => getComputedStyle(title).color")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    page = visit(open, color_scheme="dark").page
    eventually(lambda: brightness_of_the_text() > 500, 5)
    page.emulate_media(color_scheme="light")
    eventually(lambda: brightness_of_the_text() < 300, 5)


def test_a_script_that_got_in_neither_runs_nor_calls(
    chromium: Browser, open: Server, guarded: Server
) -> None:
    with chromium.new_page() as page:
        page.set_default_timeout(10_000)
        page.goto(f"{open.url}/docs")
        with page.expect_console_message(lambda message: "script-src" in message.text):
            page.evaluate(
                "document.body.append(Object.assign(document.createElement('script'),"
                " { textContent: 'window.ran = true' }))"
            )
        assert page.evaluate("window.ran") is None
        with page.expect_console_message(lambda message: "connect-src" in message.text):
            call = "(url) => fetch(url, { mode: 'no-cors' }).catch((error) => error.name)"
            assert page.evaluate(call, f"{guarded.url}/health") == "TypeError"
