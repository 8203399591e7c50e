"""The page that ``executor-ml grade`` makes for a student, in a real browser."""

import base64
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
import pytest
from grades import code, displayed, printed, raised, record, test_cell, visible_test
from playwright.sync_api import Browser, Dialog, Page

from kernel_provider.grading.model import VISIBLE, Verdict
from kernel_provider.grading.page import page as feedback

pytestmark = [pytest.mark.browser, pytest.mark.container]

SCREENSHOTS = Path(__file__).parents[2] / "out/screenshots"
EVIL = (
    '<script>document.title = "taken"; alert(1)</script>'
    '<img src="https://192.0.2.1/seen.png" onerror="document.title = \'taken\'">'
    '<meta http-equiv="refresh" content="0; url=https://192.0.2.1/">'
    '<iframe src="https://192.0.2.1/"></iframe><style>body { display: none }</style>'
)


@dataclass(kw_only=True)
class Watched:
    """A page, and what it asked the browser for."""

    page: Page
    asked: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def answer(self, dialog: Dialog) -> None:
        """Note it, and let the page go on."""
        self.dialogs.append(dialog.message)
        dialog.accept()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A page without a server."""
    context = browser.new_context(viewport={"width": 1000, "height": 1300})
    made = Watched(page=context.new_page())
    made.page.on("request", lambda request: made.asked.append(request.url))
    made.page.on("dialog", made.answer)
    try:
        yield made
    finally:
        context.close()


def picture(width: int = 240, height: int = 80) -> str:
    """A PNG of stripes, in base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    row = b"\0" + b"".join(
        b"\x40\x80\xc0" if x // 20 % 2 else b"\xff\xff\xff" for x in range(width)
    )
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(row * height)), chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def made_page(extra: str) -> str:
    """A class's most lively submission, with a student's text in each place."""
    cells = [
        nbformat.v4.new_markdown_cell(f"# Problem set 1\n\nWrite three functions. {extra}"),
        code("def square(value):\n    return value * value", printed(f"square is there {extra}\n")),
        code("assert square(2) == 4\nsecret", **{VISIBLE: "assert square(2) == 4"}),
        code(
            "def mean(values):\n    while True:\n        pass",
            displayed(image_png=picture(), text_html=extra),
            displayed(text_html=extra, text_plain="   a  b\n0  1  2"),
        ),
        visible_test(
            "assert mean([1, 2, 3]) == 2", raised("CellTimeout", f"longer than 30 s {extra}")
        ),
        code("def words(text):\n    return 1"),
        visible_test("assert words('one two') == 2", raised("AssertionError", extra)),
    ]
    results = [
        test_cell(2, "test-square", Verdict.PASSED),
        test_cell(
            4,
            "test-mean",
            Verdict.CELL_TIMEOUT,
            cause=f"the cell ran longer than 30 s; its kernel was killed. {extra}",
        ),
        test_cell(6, "test-words", Verdict.FAILED, ename="AssertionError"),
    ]
    return feedback(record("ada", *results), {"problem": cells})


def test_a_page_reads_well_and_does_nothing(watched: Watched, tmp_path: Path) -> None:
    """Nothing runs, nothing is fetched; what is there can be read."""
    path = tmp_path / "feedback.html"
    path.write_text(made_page(EVIL), encoding="utf-8")
    watched.page.goto(path.as_uri(), wait_until="networkidle")
    assert watched.page.title() == "ps1: ada"
    assert watched.page.locator("h1").inner_text() == "ps1"
    assert watched.page.locator(".points").inner_text() == "2 / 6"
    assert watched.page.locator("table tr").count() == 4
    drawn = watched.page.locator("img").evaluate("image => image.naturalWidth")
    assert drawn == 240
    asked = [url for url in watched.asked if not url.startswith("data:image/png")]
    assert asked == [path.as_uri()]
    assert not watched.dialogs
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    watched.page.screenshot(path=SCREENSHOTS / "feedback.png", full_page=True)


def test_a_script_in_a_page_would_not_run(watched: Watched, tmp_path: Path) -> None:
    """Were something of a student's not escaped: the page itself forbids scripts and requests."""
    path = tmp_path / "feedback.html"
    evil = EVIL.replace('<meta http-equiv="refresh" content="0; url=https://192.0.2.1/">', "")
    path.write_text(made_page("here").replace("there here", evil), encoding="utf-8")
    watched.page.goto(path.as_uri(), wait_until="networkidle")
    assert watched.page.locator("body script").count() == 1
    assert watched.page.title() == "ps1: ada"
    assert not watched.dialogs
