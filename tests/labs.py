"""JupyterLab in a page, used as a person does: by its launcher, toolbars, cells and keys."""

import re
from pathlib import Path
from typing import Final

from playwright.sync_api import Locator, Page, expect

SCREENSHOTS: Final = Path(__file__).parent.parent / "out" / "screenshots"


class Notebook:
    """A notebook in a page, used as a person does: by its toolbar, cells and keys."""

    def __init__(self, page: Page, panel: Locator | None = None) -> None:
        """``panel`` tells which, where the page shows more than one."""
        self.page = page
        self.panel = panel or page.locator(".jp-NotebookPanel:visible")
        self.cells = self.panel.locator(".jp-Notebook .jp-Cell")

    def wait_for(self, status: str) -> None:
        """Wait until the status bar says so of our kernel."""
        bar = self.page.locator("#jp-main-statusbar")
        expect(bar).to_contain_text(re.compile(rf"offline[^|]*\) \| ({status})"), timeout=60_000)

    def wait_idle(self) -> None:
        """Wait until the kernel is there and has nothing to do."""
        self.wait_for("Idle")

    def wait_restarted(self) -> None:
        """Wait until JupyterLab has met the kernel that came after one that died.

        It shows Idle from the next cell on: until then a local kernel is Starting, since
        the server keeps what was said about kernel_info_request to itself.
        """
        self.wait_for("Idle|Starting|Unknown")

    def start(self, code: str) -> Locator:
        """Type into the last cell and run it; returns that cell."""
        number = self.cells.count() - 1
        cell = self.cells.nth(number)
        cell.locator(".cm-content").click()
        self.page.keyboard.insert_text(code.strip())
        self.page.keyboard.press("Shift+Enter")
        expect(self.cells).to_have_count(number + 2)
        return cell

    def run(self, code: str) -> str:
        """Run ``code`` in the last cell; returns the text of its output."""
        cell = self.start(code)
        expect(prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"))
        return output(cell).inner_text()

    def wait_interrupted(self, cell: Locator, *, within: float = 20.0) -> None:
        """Wait until a cell has ended by an interrupt, and as long as a person takes to go on.

        A kernel drops what arrives in the moment after an error, as what had waited before.
        """
        expect(output(cell)).to_contain_text("KeyboardInterrupt", timeout=within * 1000)
        expect(prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"))
        self.page.wait_for_timeout(300)

    def answer(self, text: str) -> None:
        """Type what the running cell asks for; see its answer before another one."""
        field = self.panel.locator(".jp-Stdin-input").last
        expect(field).to_have_value("")  # and not the one that was answered before
        field.fill(text)
        field.press("Enter")

    def button(self, name: str) -> Locator:
        """A button of the toolbar."""
        return self.panel.locator(f"[data-jp-item-name={name}]")


def shoot(page: Page, name: str) -> None:
    """Keep how a page looks now, in ``out/screenshots``."""
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def prompt(cell: Locator) -> Locator:
    """What stands left of a cell: its number, or a star while it runs."""
    return cell.locator(".jp-InputPrompt")


def output(cell: Locator) -> Locator:
    """All that a cell has put out."""
    return cell.locator(".jp-Cell-outputArea")


def dialog(page: Page, header: str) -> Locator:
    """JupyterLab's dialog of this title; they queue, so one is there at a time."""
    title = page.locator(".jp-Dialog-header", has_text=header)
    return page.locator(".jp-Dialog").filter(has=title)


def accept(found: Locator) -> None:
    """Press the button that goes on, and see the dialog go."""
    found.locator(".jp-mod-accept").click()
    expect(found).to_have_count(0)


def restart(page: Page, notebook: Notebook, *, button: str = "restart") -> None:
    """Press the toolbar's button and say yes."""
    notebook.button(button).click()
    accept(dialog(page, "Restart Kernel?"))


def cards(page: Page | Locator, name: str) -> Locator:
    """A kernel's cards in the launcher: one for notebooks, one for consoles."""
    return page.locator(f'.jp-LauncherCard[title="{name}"]')


def open_notebook(page: Page, url: str, name: str) -> Notebook:
    """Start a notebook from the launcher."""
    page.goto(url)
    cards(page, name).first.click()
    notebook = Notebook(page)
    notebook.wait_idle()
    return notebook


def ask_for(page: Page, notebook: Notebook, name: str) -> None:
    """Ask for another kernel, by the dialog behind the kernel's name."""
    notebook.panel.locator(".jp-Toolbar-kernelName").click()
    asking = dialog(page, "Select Kernel")
    asking.locator("select").select_option(label=name)
    accept(asking)


def choose(page: Page, notebook: Notebook, name: str) -> None:
    """Change to another kernel, and wait for it."""
    ask_for(page, notebook, name)
    expect(notebook.panel.locator(".jp-Toolbar-kernelName")).to_have_text(name)
