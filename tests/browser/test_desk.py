"""What people do in one notebook, that stays open: outputs, questions, widgets, words."""

import re
from contextlib import suppress

import pytest
from lab_servers import Lab
from labs import Notebook, output, prompt, shoot
from playwright.sync_api import Locator, TimeoutError, expect  # noqa: A004

pytestmark = [pytest.mark.browser, pytest.mark.container]

INTERACT = """
from ipywidgets import IntSlider, interact
slider = IntSlider(value=3, max=10, description="side")
@interact(side=slider)
def square(side):
    print("an area of", side * side)
"""
PROGRESS = """
from ipywidgets import IntProgress
bar = IntProgress(max=10, description="loading")
display(bar)
for _ in range(10):
    bar.value += 1
"""
TQDM = """
from tqdm.notebook import tqdm
for _ in tqdm(range(30), desc="steps"):
    pass
"""
SCRIPT = '''from IPython.display import HTML
HTML("""<b id=told>waiting</b><script>
const token = document.cookie.match("_xsrf=([^;]*)");
const headers = {"X-XSRFToken": token ? token[1] : ""};
fetch("/api/terminals", {method: "POST", headers}).then(answer => {
  document.getElementById("told").textContent = "terminals answered " + answer.status;
});
</script>""")'''


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


@pytest.mark.soak
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


@pytest.mark.soak
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


# --- widgets: drawn by JupyterLab's extension in the server, with their values here --------


def filled(bar: Locator) -> float:
    """Which part of a progress bar is coloured."""
    width = bar.evaluate("bar => bar.offsetWidth / bar.parentElement.clientWidth")
    return float(width)


def test_a_slider_that_is_moved_changes_a_value_in_the_kernel(desk: Notebook) -> None:
    """By mouse and by keys; what depends on it follows, and so does the slider its value."""
    cell = desk.start(INTERACT)
    found = output(cell)
    handle = found.locator(".noUi-handle")
    expect(found).to_contain_text("an area of 9")
    place = handle.bounding_box()
    assert place is not None
    mouse = desk.page.mouse
    mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    mouse.down()
    mouse.move(place["x"] + 500, place["y"], steps=10)
    mouse.up()
    expect(found).to_contain_text("an area of 100")
    handle.press("ArrowLeft")
    expect(found).to_contain_text("an area of 81")
    shoot(desk.page, "15-slider")
    assert desk.run("slider.value").endswith("9")
    desk.run("slider.value = 4")
    expect(found.locator(".widget-readout")).to_have_text("4")
    expect(found).to_contain_text("an area of 16")


@pytest.mark.soak
def test_progress_bars_fill(desk: Notebook) -> None:
    """A bar of ipywidgets, as the kernel counts."""
    found = output(desk.start(PROGRESS))
    expect(found).to_contain_text("loading")
    expect(found.locator(".progress-bar")).to_have_attribute("style", re.compile("width: 100%"))
    assert filled(found.locator(".progress-bar")) > 0.99
    shoot(desk.page, "16-progress")


@pytest.mark.soak
def test_tqdm_draws_its_bar_for_notebooks(desk: Notebook) -> None:
    """With words before it and figures after it, to the end."""
    found = output(desk.start(TQDM))
    expect(found).to_contain_text("30/30")
    expect(found).to_contain_text("100%")
    expect(found).to_contain_text("steps")
    assert filled(found.locator(".progress-bar")) > 0.99
    shoot(desk.page, "17-tqdm")


# --- the page itself ----------------------------------------------------------------------


@pytest.mark.soak
def test_a_script_in_an_output_acts_as_you(desk: Notebook, lab: Lab) -> None:
    """It opens a terminal on this machine, in a server with Jupyter's own settings.

    What the outputs of a cell can do in the browser is the threat model's largest gap.
    """
    try:
        expect(output(desk.start(SCRIPT))).to_contain_text("terminals answered 200")
    finally:
        for terminal in lab.ask("terminals"):
            lab.ask(f"terminals/{terminal['name']}", method="DELETE")


def test_a_reload_finds_the_kernel_again(desk: Notebook) -> None:
    """The page is made anew; the kernel and its variables are as they were."""
    desk.run("here_before = 41")
    desk.page.reload()
    desk.wait_for("Idle|Unknown|Starting")
    assert desk.run("here_before + 1").endswith("42")
