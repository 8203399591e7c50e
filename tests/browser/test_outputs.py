"""What the outputs of a cell can do in the browser: the threat model's largest gap."""

import re

import pytest
from lab_servers import Lab
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.container]

SCRIPT = '''from IPython.display import HTML
HTML("""<b id=told>waiting</b><script>
const token = document.cookie.match("_xsrf=([^;]*)");
const headers = {"X-XSRFToken": token ? token[1] : ""};
fetch("/api/terminals", {method: "POST", headers}).then(answer => {
  document.getElementById("told").textContent = "terminals answered " + answer.status;
});
</script>""")'''


def test_a_script_in_an_output_acts_as_you(page: Page, lab: Lab) -> None:
    """It opens a terminal on this machine, in a server with Jupyter's own settings."""
    page.goto(lab.page_url())
    page.locator('.jp-LauncherCard[title*="ML sandbox"]').first.click()
    bar = page.locator("#jp-main-statusbar")
    expect(bar).to_contain_text(re.compile(r"\| Idle"), timeout=20_000)
    cell = page.locator(".jp-NotebookPanel:visible .jp-Cell").first
    cell.locator(".cm-content").click()
    page.keyboard.insert_text(SCRIPT)
    page.keyboard.press("Shift+Enter")
    try:
        expect(cell.locator(".jp-Cell-outputArea")).to_contain_text("terminals answered 200")
    finally:
        for terminal in lab.ask("terminals"):
            lab.ask(f"terminals/{terminal['name']}", method="DELETE")
