"""Debian's chromium, for whatever needs a real browser."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from playwright.sync_api import Browser, sync_playwright

OPTIONS: Final = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
)
NO_BROWSER: Final = (
    "no chromium here; as root on Debian, make test installs it: apt-get install "
    "--no-install-recommends chromium fonts-dejavu-core libatomic1"
)


def installed() -> str | None:
    """Path of a browser, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Browser]:
    """A running one; its event loop is this thread's. Raises RuntimeError without one."""
    path = installed()
    if path is None:
        raise RuntimeError(NO_BROWSER)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()
