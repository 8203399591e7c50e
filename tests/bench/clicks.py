"""``make bench ARGS=--browser``: from the click on a launcher's card to a first result.

A real JupyterLab in a real Chromium. The page's own clock runs from the click on the
card until the result of the first cell is in a frame that is drawn. That cell is typed as
soon as it is there, and run as soon as the page calls the kernel idle: whoever runs it
before the server has answered makes JupyterLab 4.6 start a second kernel.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest.mock import patch

from browsers import chromium
from jupyter_client.kernelspec import KernelSpecManager
from kernels import KERNEL
from lab_servers import Lab, left_in, serving_lab
from labs import cards
from playwright.sync_api import BrowserContext, Page
from sandboxes import until

from kernel_provider.folders import RUNTIME_VARIABLE
from kernel_provider.pool.keeper import CEILING_VARIABLE
from kernel_provider.warden import shelf

CODE: Final = "6 * 7"
RESULT: Final = "42"
WATCH: Final = """(result) => {
  window.launch = {};
  const begin = () => { window.launch.begun = performance.now(); };
  document.addEventListener("click", begin, {capture: true, once: true});
  const isShown = () => [...document.querySelectorAll(".jp-OutputArea-output")].some(
    (output) => output.textContent.trim() === result);
  new MutationObserver((_, watch) => {
    if (!isShown()) return;
    watch.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(
      () => { window.launch.over = performance.now(); }));
  }).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
"""Two frames: what changed before the first is on screen when the second begins."""
IDLE: Final = """() =>
  document.querySelector("#jp-main-statusbar").textContent.includes("| Idle")"""
FOLDERS: Final = {
    "JUPYTER_CONFIG_DIR": "config",
    "JUPYTER_RUNTIME_DIR": "runtime",
}
"""Nobody's settings change what is measured."""
PARKED_WITHIN: Final = 90.0
SHOWN_WITHIN: Final = 60_000.0
"""Milliseconds."""

Measure = Callable[[str], float]


@contextmanager
def desk(*, parks: bool) -> Iterator[Measure]:
    """A server and a browser that measure a kernelspec's first result, in seconds.

    The server ``parks`` a sandbox as it usually does, and each sandbox but the first is
    then one that was parked before; or it never does.
    """
    with tempfile.TemporaryDirectory(prefix="exb-", dir="/tmp") as place:
        own = {name: f"{place}/{folder}" for name, folder in FOLDERS.items()}
        run = f"{place}/run"
        environ = {RUNTIME_VARIABLE: run} | ({} if parks else {CEILING_VARIABLE: "0"})
        folder = Path(place, "notebooks")
        folder.mkdir()
        with (
            patch.dict(os.environ, {**own, RUNTIME_VARIABLE: place}),
            serving_lab(folder, Path(place, "bench"), environ=environ) as lab,
            chromium() as browser,
        ):
            window = browser.new_context(viewport={"width": 1200, "height": 750})
            yield _Desk(lab, window, run if parks else "").measure
        until(lambda: not left_in(Path(run)), PARKED_WITHIN)


class _Desk:
    """One server and one window; ``parked`` is where sandboxes lie parked, if they are to."""

    def __init__(self, lab: Lab, window: BrowserContext, parked: str) -> None:
        self._lab = lab
        self._window = window
        self._shelf = parked

    def measure(self, kind: str) -> float:
        """Seconds from the click to the result, of a fresh page; its kernel is ended."""
        before = shelf.entries(self._shelf) if self._shelf else ()
        page = self._window.new_page()
        try:
            taken = self._first_result(page, kind)
        finally:
            page.close()
            self._lab.end_sessions(keep=set())
            for notebook in self._lab.folder.glob("*.ipynb"):
                notebook.unlink()
        if kind == KERNEL and self._shelf:
            if set(before) & set(shelf.entries(self._shelf)):
                msg = "it was not the parked one"
                raise RuntimeError(msg)
            self._await_parked()
        return taken

    def _first_result(self, page: Page, kind: str) -> float:
        name = str(KernelSpecManager().get_kernel_spec(kind).display_name)
        page.goto(self._lab.page_url())
        card = cards(page, name).first
        card.wait_for()
        page.wait_for_load_state("networkidle")
        page.evaluate(WATCH, RESULT)
        card.click()
        page.locator(".jp-Notebook .jp-Cell .cm-content").first.click()
        page.keyboard.insert_text(CODE)
        page.wait_for_function(IDLE, timeout=SHOWN_WITHIN)
        page.keyboard.press("Shift+Enter")
        page.wait_for_function("window.launch.over", timeout=SHOWN_WITHIN)
        return float(page.evaluate("window.launch.over - window.launch.begun")) / 1000

    def _await_parked(self) -> None:
        deadline = time.monotonic() + PARKED_WITHIN
        while not shelf.entries(self._shelf):
            if time.monotonic() > deadline:
                msg = "no sandbox was parked: out/bench.log says why"
                raise RuntimeError(msg)
            time.sleep(0.1)
