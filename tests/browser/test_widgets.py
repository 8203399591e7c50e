"""Widgets: drawn by JupyterLab's extension in the server, with their values in the sandbox."""

import re

import pytest
from labs import Notebook, output, shoot
from playwright.sync_api import Locator, expect

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


def test_progress_bars_fill(desk: Notebook) -> None:
    """A bar of ipywidgets, as the kernel counts."""
    found = output(desk.start(PROGRESS))
    expect(found).to_contain_text("loading")
    expect(found.locator(".progress-bar")).to_have_attribute("style", re.compile("width: 100%"))
    assert filled(found.locator(".progress-bar")) > 0.99
    shoot(desk.page, "16-progress")


def test_tqdm_draws_its_bar_for_notebooks(desk: Notebook) -> None:
    """With words before it and figures after it, to the end."""
    found = output(desk.start(TQDM))
    expect(found).to_contain_text("30/30")
    expect(found).to_contain_text("100%")
    expect(found).to_contain_text("steps")
    assert filled(found.locator(".progress-bar")) > 0.99
    shoot(desk.page, "17-tqdm")
