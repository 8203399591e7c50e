"""Grades as files: lines for programs, a table, pages; whatever students put into them."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest
from grades import code, displayed, printed, raised, record, test_cell, visible_test
from pages import read
from pages import rows as rows_of

from kernel_provider.grading.model import VISIBLE, SubmissionRecord, Verdict
from kernel_provider.grading.page import LARGEST, LONGEST, page, visible
from kernel_provider.grading.reports import lines, table, write_reports
from kernel_provider.run.model import OutputError

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
GOOD = record("ada", test_cell(1, "t1", Verdict.PASSED), test_cell(3, "t2", Verdict.FAILED))
BAD = record("bob", verdict=Verdict.BAD_SUBMISSION, cause="it is no notebook")


def rows(*records: SubmissionRecord) -> list[dict[str, str]]:
    """The table as a spreadsheet reads it."""
    return list(csv.DictReader(io.StringIO(table(records))))


def test_a_line_is_a_record() -> None:
    """And reading it gives the same record."""
    first, second = lines([GOOD, BAD]).splitlines()
    assert SubmissionRecord.from_json(json.loads(first)) == GOOD
    assert SubmissionRecord.from_json(json.loads(second)) == BAD


def test_the_table_has_points_for_each_test() -> None:
    """In a column of its own, and none at all where nothing was graded."""
    ada, bob = rows(GOOD, BAD)
    assert (ada["score"], ada["max_score"], ada["verdict"]) == ("2", "4", "failed")
    assert (ada["problem/t1"], ada["problem/t2"]) == ("2", "0")
    assert (ada["seconds"], ada["memory_peak_mb"]) == ("1.2", "200")
    assert (bob["score"], bob["max_score"], bob["problem/t1"]) == ("", "", "")
    assert (bob["verdict"], bob["cause"]) == ("bad submission", "it is no notebook")


def test_points_by_hand_are_open() -> None:
    """They are neither 0 nor forgotten."""
    (ada,) = rows(record("ada", test_cell(1, "essay", Verdict.BY_HAND, points=None)))
    assert (ada["problem/essay"], ada["by_hand"]) == ("", "yes")


@pytest.mark.parametrize("begin", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_runs_nothing(begin: str) -> None:
    """Texts that it would take for formulas are texts."""
    (ada,) = rows(record("ada", verdict=Verdict.ERROR, cause=f"{begin}cmd|' /C calc'!A0"))
    assert ada["cause"].startswith("'")


def test_a_line_break_in_a_cause_makes_no_row() -> None:
    """Nor do characters that terminals obey reach the file."""
    text = table([record("ada", verdict=Verdict.ERROR, cause="one\ntwo\x1b[2J\u202e")])
    assert len(text.splitlines()) == 2
    assert not set(text) & {"\x1b", "\u202e"}


def test_all_of_it_is_written_and_written_over(tmp_path: Path) -> None:
    """With what was executed; a second time the same."""
    book = nbformat.v4.new_notebook(
        cells=[code("x = 1"), visible_test("assert x", printed("told"))]
    )
    (tmp_path / "ada").mkdir()
    nbformat.write(book, tmp_path / "ada/problem.ipynb")
    for _ in range(2):
        paths = write_reports(tmp_path, [BAD, GOOD])
        assert [str(path.relative_to(tmp_path)) for path in paths] == [
            "records.jsonl",
            "scores.csv",
            "ada/feedback.html",
            "bob/feedback.html",
        ]
    assert "told" in (tmp_path / "ada/feedback.html").read_text()
    assert "it is no notebook" in (tmp_path / "bob/feedback.html").read_text()
    scores = (tmp_path / "scores.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in scores] == ["student", "ada", "bob"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """As an error with its path."""
    (tmp_path / "scores.csv").mkdir()
    with pytest.raises(OutputError, match=r"scores\.csv"):
        write_reports(tmp_path, [GOOD])


# --- pages --------------------------------------------------------------------------------


class Tags(HTMLParser):
    """What a browser would make of a page: its elements and their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it."""
        self.found.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


EVIL = '<script>alert(1)</script><img src=x onerror="alert(1)"><a href="javascript:alert(1)">'
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "span"),
    *("table", "tr", "th", "td", "div", "pre", "img", "dl", "dt", "dd"),
}


def test_nothing_of_a_student_is_more_than_text() -> None:
    """In each place that a student's text can get to, names of tests and notes included."""
    cells = [
        nbformat.v4.new_markdown_cell(EVIL),
        code(
            EVIL,
            printed(EVIL),
            printed(EVIL, "stderr"),
            raised(EVIL, EVIL),
            displayed(text_html=EVIL, text_plain=EVIL),
            displayed(image_svg=EVIL),
            displayed(image_png=EVIL),
            displayed(image_jpeg=[EVIL]),
            displayed(text_html=EVIL),
        ),
    ]
    result = test_cell(1, EVIL, Verdict.ERROR, ename=EVIL, evalue=EVIL, cause=EVIL)
    bad = page(record(EVIL, verdict=Verdict.BAD_SUBMISSION, cause=EVIL), {})
    made = page(record(EVIL, result, cause=EVIL), {"problem": cells}) + bad
    tags = Tags(made)
    assert set(tags.found) <= ALLOWED
    assert "script" not in tags.found
    assert "img" not in tags.found
    assert {name for name, _ in tags.attributes} <= {
        *("charset", "http-equiv", "content", "name", "lang", "class")
    }
    assert "alert(1)" in made


def test_a_page_forbids_what_it_has_not() -> None:
    """Should anything get through after all."""
    made = page(GOOD, {})
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', made)
    assert "default-src 'none'" in policy
    assert made.index("Content-Security-Policy") < made.index("<title>")


def test_pictures_are_pictures() -> None:
    """PNG and JPEG, anew in base64, and not more than a page can take."""
    many = [displayed(image_png=PNG) for _ in range(3)]
    large = displayed(image_png=base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(LARGEST)).decode())
    other = displayed(image_png=base64.b64encode(b"GIF89a").decode())
    cell = test_cell(0, "t1", Verdict.PASSED)
    made = page(record("ada", cell), {"problem": [visible_test("plot()", *many, large, other)]})
    sources = [value for name, value in Tags(made).attributes if name == "src"]
    assert sources == [f"data:image/png;base64,{PNG}"] * 3
    assert "a picture of 4.2 MB" in made
    assert "a picture that is none" in made


def test_of_a_long_output_there_is_start_and_end() -> None:
    """The rest is counted."""
    text = f"begin{'x' * LONGEST}end"
    made = page(
        record("ada", test_cell(0, "t", Verdict.PASSED)),
        {"problem": [visible_test("1", printed(text))]},
    )
    assert "begin" in made
    assert "end</pre>" in made
    assert "... 8 characters ..." in made
    assert len(made) < LONGEST + 10_000


def test_half_a_character_is_no_obstacle(tmp_path: Path) -> None:
    """JSON may hold one, and UTF-8 may not."""
    (tmp_path / "ada").mkdir()
    made = page(record("ada", test_cell(0, "t", Verdict.PASSED)), {"problem": [code("'\ud800'")]})
    (tmp_path / "page.html").write_text(made, encoding="utf-8")


HIDDEN = "assert f(1) == 1\nassert f(2) == 4711"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        pytest.param({VISIBLE: "assert f(1) == 1"}, True, id="hidden in part"),
        pytest.param({}, False, id="never given out"),
    ],
)
def test_hidden_tests_stay_hidden(given: dict[str, str], *, shown: bool) -> None:
    """Their source, and outputs that could tell it; the name of an exception may be told."""
    cell = code(HIDDEN, raised("AssertionError", "4711"), **given)
    result = test_cell(0, "t1", Verdict.FAILED, ename="AssertionError", evalue="4711")
    made = page(record("ada", result, cause="AssertionError: 4711"), {"problem": [cell]})
    assert "4711" not in made
    assert ("assert f(1) == 1" in made) is shown
    assert "AssertionError" in made


def test_an_exception_of_a_students_own_name_is_not_told_of_hidden_tests() -> None:
    """The name could be what the code found there."""
    result = test_cell(0, "t1", Verdict.ERROR, ename="Found4711", evalue="")
    assert "4711" not in page(record("ada", result), {"problem": [code(HIDDEN)]})


def test_visible_tests_show_what_went_wrong() -> None:
    """Source and traceback; without colour codes."""
    cell = visible_test("assert f(1) == 1", raised("AssertionError", "f(1) is 2"))
    assert visible(cell) == cell.source
    made = page(record("ada", test_cell(0, "t", Verdict.FAILED)), {"problem": [cell]})
    assert "AssertionError: f(1) is 2" in made
    assert "\x1b" not in made


def test_what_was_not_graded_has_no_points() -> None:
    """Only why."""
    made = page(BAD, {})
    assert "not graded" in made
    assert "0 / 0" not in made


def test_the_how_to_has_each_verdict() -> None:
    """In the words and in the order that people meet."""
    told = [
        row[0] for row in rows_of(read("docs/grading.md"), "verdict", "what happened", "points")
    ]
    assert told == [verdict.words for verdict in Verdict]
