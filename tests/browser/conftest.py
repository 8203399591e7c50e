"""For tests in a real browser: a JupyterLab server, Debian's chromium, a page for each."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import browsers
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from kernels import KERNEL
from lab_servers import Lab, serving_lab
from labs import SCREENSHOTS, Notebook, open_notebook, shoot
from playwright.sync_api import Browser, BrowserContext, Page, expect

EXPECT_WITHIN: Final = 20_000.0
"""Milliseconds, on a machine with more to do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the README's picture be made anew."""
    parser.addoption(
        "--picture", action="store_true", help="also save docs/walk.png (make picture)"
    )


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a browser; without one, or with BROWSER=no, the tests are skipped."""
    if os.environ.get("BROWSER", "").lower() in ("no", "0", "false"):
        pytest.skip("BROWSER=no")
    found = browsers.installed()
    if found is None:
        pytest.skip(browsers.NO_BROWSER)
    return found


@pytest.fixture(scope="session", autouse=True)
def leak_check(chromium: str, nothing_left: None) -> None:
    """Look for what is left when all tests have ended, if any of these ran."""


@pytest.fixture(scope="package")
def lab(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One server for all, with a token, in folders of its own; ended with all its kernels."""
    assert image
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    folder, home = (tmp_path_factory.mktemp(name) for name in ("notebooks", "lab"))
    with serving_lab(folder, home) as made:
        yield made


@pytest.fixture(scope="package")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for all."""
    expect.set_options(timeout=EXPECT_WITHIN)
    assert chromium
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="package")
def window(browser: Browser) -> Iterator[BrowserContext]:
    """One window for all pages: what JupyterLab consists of is fetched once."""
    context = browser.new_context(viewport={"width": 1200, "height": 750})
    context.set_default_timeout(EXPECT_WITHIN)
    yield context
    context.close()


@pytest.fixture
def page(lab: Lab, window: BrowserContext, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of its own; how it looked when a test failed is kept; its kernels are ended."""
    running = lab.sessions()
    page = window.new_page()
    with seen_if_failed(page, request):
        yield page
    page.close()
    lab.end_sessions(keep=running)


@pytest.fixture
def shot(page: Page) -> Callable[[str], None]:
    """Keep how the page looks now, in ``out/screenshots``."""
    return lambda name: shoot(page, name)


@pytest.fixture(scope="package")
def display_name() -> str:
    """The name of our kernelspec, as it is installed."""
    return str(KernelSpecManager().get_kernel_spec(KERNEL).display_name)


@pytest.fixture
def notebook(page: Page, lab: Lab, display_name: str) -> Notebook:
    """A new notebook with a sandbox that is ready."""
    return open_notebook(page, lab.page_url(), display_name)


@pytest.fixture(scope="package")
def open_desk(lab: Lab, window: BrowserContext, display_name: str) -> Iterator[Notebook]:
    """A notebook that stays open, for the tests that do not harm it."""
    page = window.new_page()
    yield open_notebook(page, lab.page_url(), display_name)
    page.close()


@pytest.fixture
def desk(open_desk: Notebook, request: pytest.FixtureRequest) -> Iterator[Notebook]:
    """That notebook, with a kernel that has nothing to do."""
    open_desk.wait_for("Idle|Unknown|Starting")
    with seen_if_failed(open_desk.page, request):
        yield open_desk


@contextmanager
def seen_if_failed(page: Page, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep how the page looked when the test failed."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        shoot(page, f"failed-{request.node.name}")
