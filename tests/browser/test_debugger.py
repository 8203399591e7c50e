"""JupyterLab's debugger, in a sandbox that may talk TCP to itself."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab_servers import Lab
from labs import open_notebook, output, prompt
from playwright.sync_api import Page, expect

from kernel_provider.commands.install import Request, install

pytestmark = [pytest.mark.browser, pytest.mark.container, pytest.mark.soak]
Shot = Callable[[str], None]

CODE = """def total(numbers):
    summed = sum(numbers)
    return summed / 2
print(total([20, 64]))"""


@pytest.fixture
def debuggable() -> Iterator[str]:
    """A kernelspec as ``executor-ml install --loopback insist`` writes it; its display name.

    Insisting, since this machine may have control groups of version 1.
    """
    request = Request(name="ml-debugger", where="user", config={"loopback": "insist"})
    made = install(request, os.environ)
    yield made.display_name
    shutil.rmtree(Path(made.file).parent)


def test_a_breakpoint_stops_a_cell_and_shows_its_variables(
    page: Page, lab: Lab, debuggable: str, shot: Shot
) -> None:
    """On the line that was clicked; the cell goes on from there to its end."""
    page.set_viewport_size({"width": 1500, "height": 800})
    notebook = open_notebook(page, lab.page_url(), debuggable)
    notebook.button("debugger-icon").locator("jp-button").click()
    cell = notebook.cells.first
    cell.locator(".cm-content").click()
    page.keyboard.insert_text(CODE)
    gutter = cell.locator(".cm-breakpoint-gutter .cm-gutterElement")
    gutter.nth(3).click()
    expect(page.locator(".jp-DebuggerBreakpoint")).to_have_count(1)
    cell.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    frame = page.locator(".jp-DebuggerCallstackFrame").first
    expect(frame).to_contain_text("total")
    variables = page.locator(".jp-DebuggerVariables-body").first
    expect(variables).to_contain_text("summed")
    expect(variables).to_contain_text("84")
    expect(prompt(cell)).to_have_text("[*]:")
    shot("18-debugger")
    page.locator(".jp-DebuggerPausedOverlay").get_by_title("Continue").click()
    expect(output(cell)).to_contain_text("42.0")
    expect(prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"))
    shot("18-debugger-after")
