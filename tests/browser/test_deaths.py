"""Deaths of kernels as their running cells tell them; that by memory is told elsewhere."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from engines import OwnEngine, own_engine, share_images
from lab_servers import Lab, serving_lab
from labs import Notebook, accept, dialog, open_notebook, output, restart
from playwright.sync_api import Locator, Page, expect

from kernel_provider.commands.install import Request, install
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

pytestmark = [pytest.mark.browser, pytest.mark.container, pytest.mark.soak]
Shot = Callable[[str], None]

WITHIN = 5.0
"""Seconds from a death to what the cell says of it."""


@dataclass(frozen=True, kw_only=True)
class Death:
    """Code that prints ``now`` and dies, and what its cell says."""

    code: str
    says: tuple[str, ...]


FULL = """
import os, threading, time
stop = threading.Event()
try:
    for _ in range(500): threading.Thread(target=stop.wait, daemon=True).start()
except RuntimeError:
    print("now", flush=True)
    time.sleep(0.5)
    os.abort()
"""
"""As native libraries do that can't start their threads; but for the word, which leaves first."""

FLOOD = """
import sys
print("now", flush=True)
while True:
    try:
        while True: sys.stdout.write("x" * 100_000 + "\\n")
    except KeyboardInterrupt: pass
"""

DEAF = """
import time
while True:
    try:
        while True: time.sleep(0.01)
    except KeyboardInterrupt: print("deaf", flush=True)
"""
OVER = 5.0
"""Seconds that it still has then."""

DEATHS = {
    "pids": Death(
        code=FULL,
        says=("KernelKilled", "SIGABRT", "128 processes and threads had refused it one"),
    ),
    "segfault": Death(
        code="import ctypes, time\nprint('now', flush=True)\ntime.sleep(0.5)\nctypes.string_at(0)",
        says=("SegmentationFault", "SIGSEGV", "the last native library"),
    ),
    "exit": Death(
        code="import os\nprint('now', flush=True)\nos._exit(7)",
        says=("KernelExited", "exit code 7"),
    ),
}


def told_in_time(cell: Locator, says: tuple[str, ...], since: float) -> None:
    """The cell says so within five seconds of the death."""
    for words in says:
        left = WITHIN - (time.monotonic() - since)
        expect(output(cell)).to_contain_text(words, timeout=max(1.0, left * 1000))


def works_again(page: Page, notebook: Notebook) -> None:
    """Jupyter has started another kernel by itself."""
    accept(dialog(page, "Kernel Restarting"))
    notebook.wait_restarted()
    assert notebook.run("6 * 7").endswith("42")


@pytest.mark.parametrize("what", DEATHS)
def test_a_death_is_told_in_the_running_cell(
    page: Page, notebook: Notebook, what: str, shot: Shot
) -> None:
    """By its cause, and within five seconds; Jupyter starts another kernel, work goes on."""
    cell = notebook.start(DEATHS[what].code)
    expect(output(cell)).to_contain_text("now")
    told_in_time(cell, DEATHS[what].says, time.monotonic())
    shot(f"14-death-{what}")
    works_again(page, notebook)
    shot(f"14-death-{what}-after")


def test_a_flood_that_heeds_no_interrupt_ends_the_kernel(
    page: Page, notebook: Notebook, shot: Shot
) -> None:
    """The cell names the limit, and the page still answers."""
    cell = notebook.start(FLOOD)
    expect(output(cell)).to_contain_text("OutputLimitExceeded", timeout=60_000)
    shot("14-death-output")
    works_again(page, notebook)


@pytest.fixture
def brief() -> Iterator[str]:
    """A kernelspec whose cells may run for three seconds; its display name."""
    name = "Python (ML sandbox, brief, offline)"
    config = {"cell_timeout": 3}
    made = install(
        Request(name="ml-brief", display_name=name, where="user", config=config), os.environ
    )
    yield name
    shutil.rmtree(Path(made.file).parent)


def test_a_cell_beyond_its_time_says_so_and_one_that_goes_on_ends_the_kernel(
    page: Page, lab: Lab, brief: str, shot: Shot
) -> None:
    """The first leaves the kernel as it was; the second tells why there is another one."""
    notebook = open_notebook(page, lab.page_url(), brief)
    cell = notebook.start("kept = 42\nprint('now', flush=True)\nwhile True: pass")
    expect(output(cell)).to_contain_text("now")
    expect(output(cell)).to_contain_text("interrupted, since it ran longer than 3 s")
    notebook.wait_interrupted(cell)
    assert notebook.run("kept").endswith("42")
    shot("14-death-time-interrupted")
    cell = notebook.start(DEAF)
    expect(output(cell)).to_contain_text("deaf")
    told_in_time(
        cell, ("CellTimeout", '"cell_timeout" in kernelspec ml-brief'), time.monotonic() + OVER
    )
    shot("14-death-time")
    works_again(page, notebook)
    shot("14-death-time-after")


def test_a_kill_from_outside_is_told(
    page: Page, notebook: Notebook, engine: docker.DockerClient, shot: Shot
) -> None:
    """Somebody with the engine ended the container."""
    uid = notebook.run("import os; print(os.getuid())").strip()
    cell = notebook.start("print('busy')\nwhile True: pass")
    expect(output(cell)).to_contain_text("busy")
    engine.containers.get(f"executor-ml-{uid}").kill()
    told_in_time(cell, ("KernelKilled", "SIGKILL"), time.monotonic())
    shot("14-death-kill")
    works_again(page, notebook)


# --- an engine that goes away ---------------------------------------------------------------


@pytest.fixture
def drilled(own_folders: Path, tmp_path: Path, image: str) -> Iterator[OwnEngine]:
    """An engine of this test's own, with the images of the usual one."""
    assert image
    if os.geteuid() != 0 or engine_host.dockerd_path() is None:
        pytest.skip("only root can start an engine, and dockerd must be installed")
    home = EngineHome(data=tmp_path / "data", run=own_folders / "b")
    share_images(home.data)
    with own_engine(home) as made:
        yield made
    shutil.rmtree(home.data)


@pytest.fixture
def lab_beside(drilled: OwnEngine, tmp_path: Path) -> Iterator[Lab]:
    """A server whose sandboxes are in that engine."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    environ = {"DOCKER_HOST": drilled.address}
    with serving_lab(folder, tmp_path / "engine-gone", environ=environ) as made:
        yield made


def test_an_engine_that_went_away_is_told(
    page: Page, lab_beside: Lab, drilled: OwnEngine, display_name: str, shot: Shot
) -> None:
    """In the running cell; with the engine back and the kernel restarted, work goes on."""
    notebook = open_notebook(page, lab_beside.page_url(), display_name)
    cell = notebook.start("print('busy')\nwhile True: pass")
    expect(output(cell)).to_contain_text("busy")
    drilled.end(signal.SIGTERM)
    told_in_time(cell, ("EngineGone", "Restart the kernel when the engine runs"), time.monotonic())
    shot("14-death-engine")
    accept(dialog(page, "Kernel Restarting"))
    notebook.wait_restarted()
    cell = notebook.start("print('it ran')")
    expect(output(cell)).to_contain_text("no container engine answers")
    assert "it ran" not in output(cell).inner_text()
    shot("14-death-engine-restarted")
    drilled.start()
    restart(page, notebook)
    notebook.wait_idle()
    assert notebook.run("6 * 7").endswith("42")
    shot("14-death-engine-after")
