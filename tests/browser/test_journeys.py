"""What people do with a kernel in JupyterLab, from its start to its end."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import docker
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from kernels import KERNEL
from labs import Notebook, accept, cards, choose, dialog, open_notebook, output, prompt
from playwright.sync_api import Browser, Page, TimeoutError, expect  # noqa: A004

pytestmark = [pytest.mark.browser, pytest.mark.container]
Shot = Callable[[str], None]
HOST = "import socket; print(socket.gethostname())"


@contextmanager
def kernelspec(name: str, display_name: str, config: dict[str, Any]) -> Iterator[str]:
    """A kernelspec of a user's own; its display name."""
    spec: dict[str, Any] = KernelSpecManager().get_kernel_spec(KERNEL).to_dict()
    spec["display_name"] = display_name
    spec["metadata"]["kernel_provisioner"]["config"] = config
    folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    yield display_name
    shutil.rmtree(folder)


def restart(page: Page, notebook: Notebook, *, button: str = "restart") -> None:
    """Press the toolbar's button and say yes."""
    notebook.button(button).click()
    accept(dialog(page, "Restart Kernel?"))


# --- in one notebook, that stays open -----------------------------------------------------


@pytest.fixture(scope="module")
def desk(lab: Any, browser: Browser, image: str) -> Iterator[Notebook]:
    """A notebook for the tests that do not harm it; they come first in this file."""
    assert image
    context = browser.new_context(viewport={"width": 1200, "height": 750})
    page = context.new_page()
    page.set_default_timeout(20_000)
    name = str(KernelSpecManager().get_kernel_spec(KERNEL).display_name)
    yield open_notebook(page, lab.page_url(), name)
    context.close()


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


@pytest.mark.soak  # when the page tries again is its own affair: 1 of some 20 runs was late
def test_a_server_out_of_reach_comes_back(desk: Notebook) -> None:
    """What a cell prints meanwhile is there when the network is."""
    cell = desk.start("import time\nprint('begun')\ntime.sleep(3)\nprint('done')")
    expect(output(cell)).to_contain_text("begun")
    desk.page.context.set_offline(offline=True)
    desk.page.wait_for_timeout(1000)
    desk.page.context.set_offline(offline=False)
    expect(output(cell)).to_contain_text("done")
    assert desk.run("6 * 7").endswith("42")


# --- with kernels of their own ------------------------------------------------------------


def test_a_restart_that_fails_is_explained_in_the_cells(
    page: Page, lab: Any, tmp_path: Path, shot: Shot
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
def test_a_console(page: Page, lab: Any, display_name: str, shot: Shot) -> None:
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
    """Each has its own sandbox, and sees nothing of the other's."""
    first = notebook.run("import os; shared = 1; print(os.getuid())")
    page.locator("jp-button[title^='New Launcher']").first.click()
    cards(page, display_name).first.click()
    expect(notebook.cells).to_have_count(1)
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text(display_name)
    notebook.wait_idle()
    second = notebook.run("import os; print(os.getuid(), 'shared' in globals())").strip()
    assert second.endswith(" False")
    assert second != f"{first.strip()} False"
    shot("12-two")


FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "image": ({"image": "no-such:1"}, "the image no-such:1 is not on this machine"),
    "machine": ({"cpus": 4096}, "cpus = 4096 is more than this machine has"),
    "model": ({"models": ["no/such-model"]}, "no/such-model"),
}


@pytest.mark.soak
@pytest.mark.parametrize("what", FAILURES)
def test_why_it_cannot_start_is_in_the_dialog(page: Page, lab: Any, what: str, shot: Shot) -> None:
    """The first line tells what, the second what to do."""
    config, reason = FAILURES[what]
    with kernelspec(f"lost-{what}", f"Lost {what}", config) as name:
        page.goto(lab.page_url())
        cards(page, name).first.click()
        failed = dialog(page, "Error Starting Kernel")
        expect(failed).to_be_visible()
        summary, fix = failed.locator("pre").inner_text().strip().split("\n", 1)
        assert reason in summary
        assert fix.startswith("Fix: ")
        shot(f"13-lost-{what}")


DEATHS = {
    "a segfault": ("import ctypes; ctypes.string_at(0)", "SegmentationFault"),
    "its own doing": ("import os, time; time.sleep(1); os._exit(7)", "exit code 7"),
}


@pytest.mark.soak
@pytest.mark.parametrize("what", DEATHS)
def test_a_death_is_told_in_the_running_cell(page: Page, notebook: Notebook, what: str) -> None:
    """By its cause; Jupyter starts another kernel, and work goes on."""
    code, cause = DEATHS[what]
    expect(output(notebook.start(code))).to_contain_text(cause)
    accept(dialog(page, "Kernel Restarting"))
    notebook.wait_restarted()
    assert notebook.run("6 * 7").endswith("42")


@pytest.mark.soak
def test_a_kill_from_outside_is_told(
    page: Page, notebook: Notebook, engine: docker.DockerClient, shot: Shot
) -> None:
    """Somebody with the engine ended the container."""
    uid = notebook.run("import os; print(os.getuid())").strip()
    cell = notebook.start("print('busy')\nwhile True: pass")
    expect(output(cell)).to_contain_text("busy")
    engine.containers.get(f"executor-ml-{uid}").kill()
    expect(output(cell)).to_contain_text("KernelKilled")
    accept(dialog(page, "Kernel Restarting"))
    notebook.wait_restarted()
    assert notebook.run("6 * 7").endswith("42")
    shot("14-killed")
