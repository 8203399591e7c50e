"""For tests in a real browser: a JupyterLab server, Debian's chromium, a page for each."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from kernels import KERNEL
from labs import Notebook, open_notebook
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT: Final = Path(__file__).parents[2]
SCREENSHOTS: Final = ROOT / "out" / "screenshots"
NO_BROWSER: Final = (
    "no chromium here; as root on Debian, make test installs it: apt-get install "
    "--no-install-recommends chromium fonts-dejavu-core libatomic1"
)
CHROMIUM_OPTIONS: Final = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)
START_WITHIN: Final = 30.0
STOP_WITHIN: Final = 20.0
EXPECT_WITHIN: Final = 20_000.0
"""Milliseconds, on a machine with more to do."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the README's picture be made anew."""
    parser.addoption(
        "--picture", action="store_true", help="also save docs/jupyterlab.png (make picture)"
    )


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A JupyterLab server on this machine, and the folder that it shows."""

    url: str
    token: str
    folder: Path

    def page_url(self, path: str = "") -> str:
        """A fresh workspace, at one of the folder's files if one is named."""
        tree = f"/tree/{path}" if path else ""
        return f"{self.url}/lab/workspaces/{secrets.token_hex(4)}{tree}?token={self.token}"

    def ask(self, path: str, *, method: str = "GET") -> Any:
        """What its REST API answers; proxies of the environment are not asked."""
        request = urllib.request.Request(  # noqa: S310  our own loopback address
            f"{self.url}/api/{path}",
            method=method,
            headers={"Authorization": f"token {self.token}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as response:
            body = response.read()
        return json.loads(body) if body else None

    def end_sessions(self) -> None:
        """Shut all kernels down, as a closed notebook does not."""
        for session in self.ask("sessions"):
            self.ask(f"sessions/{session['id']}", method="DELETE")


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a browser; without one, or with BROWSER=no, the tests are skipped."""
    if os.environ.get("BROWSER", "").lower() in ("no", "0", "false"):
        pytest.skip("BROWSER=no")
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.skip(NO_BROWSER)
    return found


@pytest.fixture(scope="session", autouse=True)
def leak_check(chromium: str, nothing_left: None) -> None:
    """Look for what is left when all tests have ended, if any of these ran."""


@pytest.fixture(scope="module")
def lab(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A server with a token, in folders of its own; ended with all its kernels."""
    assert image
    folder = tmp_path_factory.mktemp("notebooks")
    settings = Path(os.environ["JUPYTER_CONFIG_DIR"], "labconfig")
    settings.mkdir(parents=True, exist_ok=True)
    news = {"@jupyterlab/apputils-extension:announcements": True}  # asks for consent
    (settings / "page_config.json").write_text(json.dumps({"disabledExtensions": news}))
    port, token = _free_port(), secrets.token_hex(16)
    home = tmp_path_factory.mktemp("lab")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
        *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"),
        *(f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}"),
        *(f"--LabApp.workspaces_dir={home}/workspaces", "--LabApp.extension_manager=readonly"),
        f"--LabApp.user_settings_dir={home}/settings",
    ]
    log = SCREENSHOTS.parent / "jupyterlab.log"
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, cwd=folder)
        try:
            made = Lab(url=f"http://127.0.0.1:{port}", token=token, folder=folder)
            _wait_for(made, server, log)
            yield made
        finally:
            server.terminate()
            try:
                server.wait(STOP_WITHIN)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
                raise


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """One browser for a module; while it is there, its event loop runs in this thread."""
    expect.set_options(timeout=EXPECT_WITHIN)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(CHROMIUM_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture
def page(lab: Lab, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page of its own; how it looked when a test failed is kept; its kernels are ended."""
    failed = request.session.testsfailed
    context = browser.new_context(viewport={"width": 1200, "height": 750})
    page = context.new_page()
    page.set_default_timeout(20_000)
    try:
        yield page
    finally:
        if request.session.testsfailed > failed:
            page.screenshot(path=SCREENSHOTS / f"failed-{request.node.name}.png")
        context.close()
        lab.end_sessions()


@pytest.fixture
def shot(page: Page) -> Callable[[str], None]:
    """Keep how the page looks now, in ``out/screenshots``."""

    def take(name: str) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png")

    return take


@pytest.fixture
def display_name() -> str:
    """The name of our kernelspec, as it is installed."""
    return str(KernelSpecManager().get_kernel_spec(KERNEL).display_name)


@pytest.fixture
def notebook(page: Page, lab: Lab, display_name: str) -> Notebook:
    """A new notebook with a sandbox that is ready."""
    return open_notebook(page, lab.page_url(), display_name)


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(lab: Lab, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_WITHIN
    while True:
        try:
            lab.ask("status")
        except OSError:
            late = time.monotonic() > deadline
            if late or server.poll() is not None:
                raise AssertionError(log.read_text(errors="replace")) from None
            time.sleep(0.1)
        else:
            return
