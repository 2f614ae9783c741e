"""A real Chromium, for which nothing is there but this machine."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
expect.set_options(timeout=20_000)  # Five seconds are too short beside other tests.


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if not path:
        pytest.skip("Chromium is not installed")
    # Nobody listens on this port, so that a request to another machine fails at once. Not by
    # `route`: Playwright then answers preflights itself.
    nowhere = {"server": "http://127.0.0.1:1", "bypass": "127.0.0.1"}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS, proxy=nowhere)
        yield browser
        browser.close()
