"""What people do with a kernel in JupyterLab, from its start to its end."""

import re
from collections.abc import Callable
from contextlib import suppress
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
    shoot,
)
from lines import line_to
from playwright.sync_api import Page, TimeoutError, expect  # noqa: A004

pytestmark = [pytest.mark.browser, pytest.mark.container]
Shot = Callable[[str], None]
HOST = "import socket; print(socket.gethostname())"
PRINTS = "import time\nfor word in ('begun', 'meanwhile', 'done'): print(word); time.sleep(1)"


# --- in one notebook, that stays open -----------------------------------------------------


def test_pictures_pages_and_tables(desk: Notebook) -> None:
    """Whatever is displayed is drawn, and a long table scrolls."""
    cell = desk.start("""
import matplotlib.pyplot as plt
from IPython.display import HTML, SVG, Latex, Markdown, display
plt.figure(figsize=(2, 1)); plt.plot([1, 3, 2]); plt.show()
display(HTML("<table id=many>" + "<tr><td>row</td></tr>" * 2000 + "</table>"))
display(SVG('<svg id="drawn" xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'))
display(Markdown("**bold words**"), Latex("$x^2$"))
""")
    found = output(cell)
    picture = found.locator("img").first
    expect(picture).to_be_visible()
    assert picture.evaluate("image => image.naturalWidth") > 50
    expect(found.locator("#many tr")).to_have_count(2000)
    expect(found.locator("strong", has_text="bold words")).to_be_visible()
    expect(found.locator("mjx-container")).to_be_visible()


def test_a_large_table(desk: Notebook) -> None:
    """Pandas shows both ends of it, or all of it where that is asked; it scrolls sideways."""
    made = "import pandas as pd\ntable = pd.DataFrame({f'c{n}': range(500) for n in range(30)})\n"
    found = output(desk.start(f"{made}table"))
    expect(found).to_contain_text(re.compile("500 rows . 30 columns"))
    expect(found.locator("tbody tr")).to_have_count(11)
    whole = "with pd.option_context('display.max_rows', None, 'display.max_columns', None):\n"
    found = output(desk.start(f"{whole}    display(table)"))
    expect(found.locator("tbody tr")).to_have_count(500)
    expect(found.locator("tbody tr").last).to_contain_text("499")
    wide = found.locator(".jp-RenderedHTMLCommon").first
    assert wide.evaluate("page => page.scrollWidth > page.clientWidth")
    shoot(desk.page, "20-table")
    desk.run("del table")


def test_progress_is_shown_in_one_line(desk: Notebook) -> None:
    """Tqdm writes over its own line, to the end."""
    told = desk.run("from tqdm import tqdm\nfor _ in tqdm(range(20)): pass")
    assert "100%" in told
    assert told.count("it/s") <= 1


def test_input_asks_below_the_cell(desk: Notebook) -> None:
    """And what is typed reaches the code."""
    cell = desk.start("name = input('Who? ')\nprint('hello', name)")
    desk.answer("Ada")
    expect(output(cell)).to_contain_text("hello Ada")


def test_the_debugger_looks_at_the_last_error(desk: Notebook) -> None:
    """%debug stands where it happened, and leaves again."""
    assert "ZeroDivisionError" in desk.run("def broken(lost):\n    return 1 / 0\nbroken('value')")
    cell = desk.start("%debug")
    desk.answer("p lost")
    expect(output(cell)).to_contain_text("'value'")
    desk.answer("q")
    expect(prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"))


def test_names_are_completed_and_explained(desk: Notebook) -> None:
    """Tab offers what the session has; Shift+Tab tells what it is."""
    desk.run("import math")
    cell = desk.cells.last
    cell.locator(".cm-content").click()
    offered = desk.page.locator(".jp-Completer-item", has_text="sqrt").first
    try:
        desk.page.keyboard.type("math.sq")
        for _ in range(10):  # JupyterLab gives a kernel one second to answer
            desk.page.keyboard.press("Tab")
            with suppress(TimeoutError):
                offered.wait_for(timeout=2000)
                break
        offered.click()
        expect(cell.locator(".cm-content")).to_have_text("math.sqrt")
        desk.page.keyboard.press("Shift+Tab")
        expect(desk.page.locator(".jp-Tooltip")).to_contain_text("square root")
        shoot(desk.page, "19-tooltip")
        desk.page.keyboard.press("Escape")
    finally:
        cell.locator(".cm-content").fill("")


def test_stop_reaches_a_subprocess(desk: Notebook) -> None:
    """What a cell started ends, too, and variables stay."""
    desk.run("kept = 42")
    cell = desk.start("print('on its way', flush=True)\n!sleep 600; echo sur''vived")
    expect(output(cell)).to_contain_text("on its way")
    desk.button("interrupt").click()
    expect(prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"))
    assert "survived" not in output(cell).inner_text()
    assert desk.run("kept").endswith("42")


def test_a_reload_finds_the_kernel_again(desk: Notebook) -> None:
    """The page is made anew; the kernel and its variables are as they were."""
    desk.run("here_before = 41")
    desk.page.reload()
    desk.wait_for("Idle|Unknown|Starting")
    assert desk.run("here_before + 1").endswith("42")


# --- with kernels of their own ------------------------------------------------------------


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
    expect(output(busy)).to_contain_text("KeyboardInterrupt")


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


@pytest.mark.parametrize(
    "seconds", [0, pytest.param(2, marks=pytest.mark.soak)], ids=["for a moment", "for longer"]
)
def test_a_network_that_drops_comes_back(
    page: Page, lab: Lab, display_name: str, shot: Shot, seconds: int
) -> None:
    """What a cell prints meanwhile is there when the page has found the server again.

    It tries at once; where that fails, it waits 10 to 30 s before it asks for the kernel,
    and says so in a dialog if something else missed the server as well.
    """
    closed = dialog(page, "Server Connection Error")
    page.add_locator_handler(closed, lambda found: found.get_by_text("Close").click())
    with line_to(lab.server.port) as line:
        notebook = open_notebook(page, lab.page_url(port=line.port), display_name)
        notebook.run("kept = 41")
        cell = notebook.start(PRINTS)
        expect(output(cell)).to_contain_text("begun")
        line.cut()
        page.wait_for_timeout(1000 * seconds)
        if seconds:
            notebook.wait_for("Connecting")
            shot("11-network-gone")
        line.mend()
        expect(output(cell)).to_contain_text("done", timeout=60_000)
        assert output(cell).inner_text().split() == ["begun", "meanwhile", "done"]
        assert notebook.run("kept + 1").endswith("42")
        shot(f"11-network-back-{seconds}")
