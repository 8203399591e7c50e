"""What people do with kernels in JupyterLab, from their start to their end."""

from collections.abc import Callable
from pathlib import Path

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from lab_servers import Lab, kernelspec
from labs import (
    Notebook,
    cards,
    choose,
    dialog,
    open_notebook,
    output,
    prompt,
    restart,
)
from lines import line_to
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.container]
Shot = Callable[[str], None]
HOST = "import socket; print(socket.gethostname())"


@pytest.mark.soak
def test_a_restart_that_fails_is_explained_in_the_cells(
    page: Page, lab: Lab, tmp_path: Path, shot: Shot
) -> None:
    """JupyterLab itself says nothing; mended and restarted, work goes on."""
    data = tmp_path / "data"
    data.mkdir()
    name = "Python (ML sandbox with data, offline)"
    with kernelspec("with-data", name, {"mounts": {"/data/mine": str(data)}}):
        notebook = open_notebook(page, lab.page_url(), name)
        assert notebook.run("x = 1; x").endswith("1")
        data.rmdir()
        restart(page, notebook)
        notebook.wait_idle()
        cell = notebook.start("print('it ran')")
        expect(output(cell)).to_contain_text("MountError")
        told = " ".join(output(cell).inner_text().split())
        assert str(data) in told
        assert "Fix: mount a folder that this user can read" in told
        assert "Nothing was run" in told
        assert "it ran" not in told
        expect(prompt(cell)).to_have_text("[ ]:")
        expect(output(notebook.start("x"))).to_contain_text("MountError")
        shot("8-a-failed-restart")
        data.mkdir()
        restart(page, notebook)
        notebook.wait_idle()
        assert "NameError" in notebook.run("x")
        assert notebook.run("6 * 7").endswith("42")
        shot("8-mended")


@pytest.mark.soak
def test_restart_and_run_all(page: Page, notebook: Notebook, shot: Shot) -> None:
    """Every cell runs again from the top, in a new sandbox."""
    notebook.run("import os; print('pid and uid', os.getpid(), os.getuid())")
    notebook.run("seen = globals().get('seen', 0) + 1; print('seen', seen)")
    first = output(notebook.cells.nth(0)).inner_text()
    restart(page, notebook, button="restart-and-run")
    expect(output(notebook.cells.nth(0))).not_to_have_text(first)
    expect(output(notebook.cells.nth(1))).to_have_text("seen 1")
    expect(prompt(notebook.cells.nth(1))).to_have_text("[2]:")
    shot("9-run-all")


@pytest.mark.soak
def test_change_of_kernel(page: Page, notebook: Notebook, display_name: str, shot: Shot) -> None:
    """Out of the sandbox, to none at all, and back into another one."""
    assert notebook.run(HOST).strip() == "sandbox"
    local = str(KernelSpecManager().get_kernel_spec("python3").display_name)
    choose(page, notebook, local)
    assert notebook.run(HOST).strip() != "sandbox"
    choose(page, notebook, "No Kernel")
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text("No Kernel")
    choose(page, notebook, display_name)
    notebook.wait_idle()
    assert notebook.run(HOST).strip() == "sandbox"
    shot("10-changed-back")


@pytest.mark.soak
def test_a_console(page: Page, lab: Lab, display_name: str, shot: Shot) -> None:
    """The other card of the launcher: lines are run in a sandbox, one after the other."""
    page.goto(lab.page_url())
    cards(page, display_name).nth(1).click()
    line = page.locator(".jp-CodeConsole-input .cm-content")
    expect(page.locator(".jp-CodeConsole-banner")).to_contain_text("Python")
    for code, said in ((HOST, "sandbox"), ("6 * 7", "42")):
        line.click()
        page.keyboard.insert_text(code)
        page.keyboard.press("Shift+Enter")
        shown = page.locator(".jp-CodeConsole-content .jp-OutputArea-output").last
        expect(shown).to_contain_text(said)
    shot("11-console")


@pytest.mark.soak
def test_two_notebooks_side_by_side(
    page: Page, notebook: Notebook, display_name: str, shot: Shot
) -> None:
    """Each has its own sandbox, sees nothing of the other's, and waits for nobody."""
    uid = "import os; print(os.getuid(), 'shared' in globals())"
    first = notebook.run(f"shared = 1; {uid}").split()
    page.locator("jp-button[title^='New Launcher']").first.click()
    cards(page, display_name).first.click()
    expect(notebook.cells).to_have_count(1)
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text(display_name)
    notebook.wait_idle()
    beside(page)
    panels = page.locator(".jp-NotebookPanel:visible")
    expect(panels).to_have_count(2)
    left, right = (Notebook(page, panels.nth(number)) for number in (0, 1))
    if left.cells.count() == 1:
        left, right = right, left
    busy = left.start("print('busy')\nwhile True: pass")
    expect(output(busy)).to_contain_text("busy")
    second = right.run(uid).split()
    shot("12-two")
    assert (first[1], second[1]) == ("True", "False")
    assert first[0] != second[0]
    expect(prompt(busy)).to_have_text("[*]:")
    left.button("interrupt").click()
    left.wait_interrupted(busy)


def beside(page: Page) -> None:
    """Drag the tab in front to the right edge: both notebooks are seen."""
    tab = page.locator(".lm-DockPanel-tabBar .lm-mod-current").first.bounding_box()
    area = page.locator("#jp-main-dock-panel").bounding_box()
    assert tab is not None
    assert area is not None
    page.mouse.move(tab["x"] + 40, tab["y"] + 10)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 20, area["y"] + area["height"] / 2, steps=20)
    page.mouse.up()


PRINTS = "import time\nfor word in ('begun', 'meanwhile', 'done'): print(word); time.sleep(1)"


@pytest.mark.soak
def test_a_connection_that_breaks_is_made_again(page: Page, lab: Lab, display_name: str) -> None:
    """At once, and nothing of what a cell prints is lost, or shown twice."""
    with line_to(lab.server.port) as line:
        notebook = open_notebook(page, lab.page_url(port=line.port), display_name)
        cell = notebook.start(PRINTS)
        expect(output(cell)).to_contain_text("begun")
        line.drop()
        expect(output(cell)).to_contain_text("done")
        assert output(cell).inner_text().split() == ["begun", "meanwhile", "done"]


@pytest.mark.soak
def test_a_network_that_drops_comes_back(
    page: Page, lab: Lab, display_name: str, shot: Shot
) -> None:
    """What a cell prints meanwhile is there when the page has found the server again.

    It tries at once, and after that failed waits 10 to 30 s before it asks for the kernel.
    A dialog says so, if something else misses the server as well.
    """
    missed = dialog(page, "Server Connection Error")
    page.add_locator_handler(missed, lambda found: found.get_by_text("Close").click())
    with line_to(lab.server.port) as line:
        notebook = open_notebook(page, lab.page_url(port=line.port), display_name)
        notebook.run("kept = 41")
        cell = notebook.start(PRINTS)
        expect(output(cell)).to_contain_text("begun")
        line.cut()
        notebook.wait_for("Connecting")
        page.wait_for_timeout(2000)
        shot("11-network-gone")
        line.mend()
        expect(output(cell)).to_contain_text("done", timeout=90_000)
        assert output(cell).inner_text().split() == ["begun", "meanwhile", "done"]
        assert notebook.run("kept + 1").endswith("42")
        shot("11-network-back")
