"""A newcomer's walk, from the README to a notebook in the sandbox; the README's own picture."""

import base64
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import mistune
import pytest
from apng import Frame, join, look
from lab_servers import Lab
from labs import SCREENSHOTS, Notebook, accept, cards, dialog, output, prompt
from pages import ROOT, read
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.container]

WIDTH: Final = 860
"""What a page on the web gives to a README, in its own pixels."""
HEIGHT: Final = 500
SHARPNESS: Final = 1.5
"""Pixels of the picture for one of the page, so that letters are sharp on newer screens."""
CAPTION: Final = 44
RAN_WITHIN: Final = 90_000.0
"""Milliseconds for a cell: half a processor imports PyTorch in two seconds, if it gets it."""

PAGE: Final = """<style>
  body {{ margin: 0; font: 17px/26px "DejaVu Sans", sans-serif; color: #1f2328; }}
  main {{ padding: 8px 40px; }}
  pre {{ background: #f6f8fa; padding: 14px 18px; border-radius: 6px; }}
  code {{ font: 13px/22px "DejaVu Sans Mono", monospace; }}
</style><main>{body}</main>"""
FRAMED: Final = """<style>
  body {{ margin: 0; background: #24292f; color: white; overflow: hidden; }}
  img {{ display: block; width: {width}px; height: {height}px; }}
  p {{ margin: 0; padding: 0 20px; font: 18px/{caption}px "DejaVu Sans", sans-serif; }}
</style><img src="data:image/png;base64,{picture}"><p>{words}</p>"""
MARKED: Final = "node => { node.style.outline = '3px solid #d1242f'; }"

VERSIONS: Final = """import torch, transformers
torch.__version__, transformers.__version__"""
ESCAPES: Final = """import socket
for attempt in (lambda: socket.create_connection(("example.org", 443)),
                lambda: open("/etc/passwd", "a")):
    try:
        attempt()
    except OSError as error:
        print(error)"""
LEARNS: Final = """import matplotlib.pyplot as plt
x = torch.linspace(-3, 3, 200)[:, None]
net = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
learn = torch.optim.Adam(net.parameters(), 0.02)
for _ in range(400):
    learn.zero_grad()
    torch.nn.functional.mse_loss(net(x), x.sin()).backward()
    learn.step()
plt.figure(figsize=(7, 1.1))
plt.plot(x, x.sin(), x, net(x).detach(), "--");"""
TOO_MUCH: Final = "everything = torch.ones(10**9)"
AGAIN: Final = '"torch" in globals()  # a new sandbox'


@dataclass(kw_only=True)
class Film:
    """What was seen so far; ``frame`` is a page in which pictures get their captions."""

    frame: Page
    frames: list[Frame] = field(default_factory=list)

    def take(self, page: Page, words: str, *, seconds: float) -> None:
        """Add how a page looks now, with what there is to say of it below."""
        picture = base64.b64encode(page.screenshot()).decode()
        sizes = {"width": WIDTH, "height": HEIGHT, "caption": CAPTION}
        self.frame.set_content(FRAMED.format(picture=picture, words=words, **sizes))
        self.frames.append(Frame(picture=self.frame.screenshot(), seconds=seconds))


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """A window of the picture's size."""
    size: Any = {"width": WIDTH, "height": HEIGHT}
    made = browser.new_context(viewport=size, device_scale_factor=SHARPNESS)
    made.set_default_timeout(20_000)
    yield made
    made.close()


@pytest.fixture
def film(context: BrowserContext) -> Film:
    """Nothing was seen yet."""
    frame = context.new_page()
    frame.set_viewport_size({"width": WIDTH, "height": HEIGHT + CAPTION})
    return Film(frame=frame)


def start_of_readme() -> str:
    """What a newcomer reads first, as a page, without the picture that this makes."""
    part = read("README.md").partition("## Start")[2].partition("\n## ")[0]
    text = re.sub(r"^!\[.*\n", "", part, flags=re.MULTILINE)
    return str(mistune.html("## Start" + text))


def ran(cell: Locator) -> Locator:
    """A cell that has come to its end; what it put out."""
    expect(prompt(cell)).to_have_text(re.compile(r"\[\d+\]:"), timeout=RAN_WITHIN)
    return output(cell)


@pytest.mark.soak
def test_a_newcomers_walk(
    context: BrowserContext,
    film: Film,
    lab: Lab,
    display_name: str,
    request: pytest.FixtureRequest,
) -> None:
    """It works, it holds, and it says why it stopped; --picture saves docs/walk.png."""
    page = context.new_page()
    running = lab.sessions()
    page.set_content(PAGE.format(body=start_of_readme()))
    expect(page.locator("code", has_text="make demo").first).to_be_visible()
    film.take(page, "The README: two commands", seconds=4)

    page.goto(lab.page_url())
    card = cards(page, display_name).first
    card.wait_for()
    page.keyboard.press("Control+b")
    card.evaluate(MARKED)
    film.take(page, "JupyterLab: pick the sandbox", seconds=3)

    card.click()
    notebook = Notebook(page)
    notebook.wait_idle()
    cell = notebook.start(VERSIONS)
    expect(ran(cell)).to_contain_text("2.")
    film.take(page, "PyTorch and Transformers are there", seconds=3)

    cell = notebook.start(ESCAPES)
    expect(ran(cell)).to_contain_text("Permission denied")
    film.take(page, "No network, and no rights", seconds=3.5)

    cell = notebook.start(LEARNS)
    expect(ran(cell).locator("img")).to_be_visible()
    cell.evaluate("cell => cell.scrollIntoView()")
    film.take(page, "It computes as a local kernel does", seconds=3.5)
    still = film.frames[-1].picture

    cell = notebook.start(TOO_MUCH)
    restarting = dialog(page, "Kernel Restarting")
    expect(restarting).to_be_visible(timeout=RAN_WITHIN)
    accept(restarting)
    notebook.wait_restarted()
    expect(output(cell)).to_contain_text("MemoryLimitExceeded")
    output(cell).scroll_into_view_if_needed()
    film.take(page, "More than it may have: the cell says what happened", seconds=4)

    cell = notebook.start(AGAIN)
    expect(ran(cell)).to_contain_text("False")
    film.take(page, "A new sandbox is there, and work goes on", seconds=3)

    made = SCREENSHOTS / "walk.png"
    made.write_bytes(join(film.frames, still=still))
    assert len(look(made.read_bytes()).seconds) == 7
    if request.config.getoption("--picture", default=False):
        shutil.copyfile(made, ROOT / "docs/walk.png")
    lab.end_sessions(keep=running)
