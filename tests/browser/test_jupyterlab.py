import json
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path

import docker
import pytest
from lab_servers import Lab, kernelspec
from labs import Notebook, accept, cards, dialog, output, restart
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.container]
Shot = Callable[[str], None]
ROOT = Path(__file__).parents[2]

WHO_AM_I = """
import os, socket
print("uid", os.getuid())
print("host", socket.gethostname())
try:
    socket.create_connection(("192.0.2.1", 80), timeout=2)
except OSError as error:
    print("no network:", error)
"""
HOARD = """
hoard = []
while True:
    hoard.append(b"x" * 2**24)
"""
MISSPELT = "misspelt"


def test_the_launcher_shows_our_cards(page: Page, lab: Lab, display_name: str, shot: Shot) -> None:
    """Notebook and Console offer the kernel, by a name with its limits, with our logo."""
    assert re.fullmatch(r"Python \(ML sandbox, 512 MB, 0\.5 CPU, offline\)", display_name)
    page.goto(lab.page_url())
    for section in ("Notebook", "Console"):
        title = page.locator(".jp-Launcher-sectionTitle", has_text=section)
        card = cards(page.locator(".jp-Launcher-section").filter(has=title), display_name)
        icon = card.locator("img")
        expect(icon).to_have_attribute("src", re.compile(r"kernelspecs/executor-ml/logo-svg"))
        page.wait_for_function("image => image.complete", arg=icon.element_handle())
        assert icon.evaluate("image => image.naturalWidth") > 0
    shot("1-launcher")


def test_a_cell_runs_in_a_sandbox(
    notebook: Notebook, engine: docker.DockerClient, display_name: str, shot: Shot
) -> None:
    """From a click on the card to an output that only a sandbox can have brought."""
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text(display_name)
    text = notebook.run(WHO_AM_I)
    shot("2-a-cell")
    said = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert "network:" in said["no"]
    assert said["host"] != socket.gethostname()
    assert int(said["uid"]) != os.getuid()
    assert engine.containers.get(f"executor-ml-{said['uid']}").status == "running"


def test_the_memory_limit_is_told_in_the_cell(
    page: Page, notebook: Notebook, engine: docker.DockerClient, shot: Shot
) -> None:
    """The running cell says which limit it met, JupyterLab restarts, work goes on."""
    uid = notebook.run("import os; print(os.getuid())").strip()
    begun = time.time()
    cell = notebook.start(HOARD)
    expect(output(cell)).to_contain_text("MemoryLimitExceeded", timeout=60_000)
    told = time.time()
    expect(output(cell)).to_contain_text("512 MB")
    assert told - killed_at(engine, f"executor-ml-{uid}", begun) < 5
    restarting = dialog(page, "Kernel Restarting")
    expect(restarting).to_be_visible()
    shot("3-memory-limit")
    accept(restarting)
    notebook.wait_restarted()
    assert notebook.run("6 * 7").endswith("42")
    shot("3-memory-limit-after")


def killed_at(engine: docker.DockerClient, container: str, since: float) -> float:
    """When the engine saw a container's memory limit kill something, as time.time() has it."""
    wanted = {"event": "oom", "container": container}
    events = engine.events(since=int(since), until=int(time.time()) + 1, filters=wanted)
    times = [json.loads(line)["timeNano"] / 1e9 for line in events]
    engine.close()  # its pool; the next call opens it anew
    return float(times[0])


def test_interrupt_and_restart_by_the_toolbar(page: Page, notebook: Notebook, shot: Shot) -> None:
    """Stop ends a busy loop and keeps variables; restart loses them and goes on."""
    notebook.run("kept = 1")
    cell = notebook.start("print('busy')\nwhile True:\n    pass")
    expect(output(cell)).to_contain_text("busy")
    notebook.button("interrupt").click()
    notebook.wait_interrupted(cell, within=5.0)
    assert "1" in notebook.run("kept")
    shot("4-interrupted")
    restart(page, notebook)
    notebook.wait_idle()
    assert "NameError" in notebook.run("kept")
    shot("4-restarted")


def test_shutdown_by_the_menu_leaves_no_container(
    page: Page, notebook: Notebook, engine: docker.DockerClient, shot: Shot
) -> None:
    """Kernel, Shut Down Kernel: the sandbox is gone from the engine."""
    uid = notebook.run("import os; print(os.getuid())").strip()
    container = engine.containers.get(f"executor-ml-{uid}")
    page.locator(".lm-MenuBar-item", has_text="Kernel").click()
    page.locator('.lm-Menu-item[data-command="kernelmenu:shutdown"]').click()
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text("No Kernel")
    deadline = time.monotonic() + 10
    while any(row["Id"] == container.id for row in engine.api.containers(all=True)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    shot("4-shut-down")


def test_a_failed_start_says_what_and_how_to_mend_it(page: Page, lab: Lab, shot: Shot) -> None:
    """JupyterLab's own dialog shows our words: what first, then the remedy."""
    with kernelspec(MISSPELT, "Misspelt", {"memroy": "1g"}) as name:
        page.goto(lab.page_url())
        cards(page, name).first.click()
        failed = dialog(page, "Error Starting Kernel")
        expect(failed).to_be_visible()
    shot("5-failed-start")
    what, fix = failed.locator("pre").inner_text().strip().split("\n", 1)
    assert "'memroy'" in what
    assert "'memory'" in what
    assert MISSPELT in what
    assert fix.startswith("Fix: ")


def test_files_in_and_out(page: Page, notebook: Notebook, shot: Shot) -> None:
    """A missing file says how to have it; the link in a cell saves the largest that it may."""
    told = notebook.run("open('table.csv')")
    assert "the sandbox does not see the notebook's folder" in " ".join(told.split())
    code = "import sandbox_files\nopen('a b.bin', 'wb').write(bytes(range(256)) * 4096)\n"
    notebook.run(f"{code}sandbox_files.send('a b.bin')")
    with page.expect_download() as saved:
        notebook.panel.get_by_role("link", name="a b.bin").click()
    shot("7-a-file")
    assert saved.value.suggested_filename == "a b.bin"
    assert saved.value.path().read_bytes() == bytes(range(256)) * 4096
