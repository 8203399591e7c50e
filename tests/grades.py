"""Records of grades by hand, for what is made of them."""

from typing import Any, Final

import nbformat
from nbformat import NotebookNode

from kernel_provider.grading.model import (
    VISIBLE,
    CellResult,
    Conditions,
    NotebookResult,
    SubmissionRecord,
    Verdict,
)

CONDITIONS: Final = Conditions(
    kernel="executor-ml",
    image="executor-ml:latest",
    image_digest="sha256:0123",
    stack="current",
    image_versions="torch 2.13.0",
    limits={"memory": "512 MB", "cpus": "0.5"},
    cell_timeout=30.0,
    total_timeout=600.0,
    after_death="continue",
    tests_sha256="ab" * 32,
)


def test_cell(index: int, name: str, verdict: Verdict, **more: Any) -> CellResult:
    """A test of two points, all or none."""
    points = 2.0 if verdict is Verdict.PASSED else 0.0
    given = {"points": points, "max_points": 2.0, "title": name, **more}
    return CellResult(index=index, grade_id=name, verdict=verdict, **given)


test_cell.__test__ = False  # type: ignore[attr-defined]


def record(student: str, *cells: CellResult, **more: Any) -> SubmissionRecord:
    """A submission of one notebook with these cells."""
    tests = [cell for cell in cells if cell.is_test]
    worst = max((cell.verdict for cell in cells), key=lambda verdict: verdict.rank, default=None)
    verdict = more.pop("verdict", worst or Verdict.PASSED)
    score = sum(cell.points or 0.0 for cell in tests)
    most = sum(cell.max_points for cell in tests)
    book = NotebookResult(
        name="problem",
        verdict=verdict,
        cells=cells,
        score=score,
        max_score=most,
        executed=f"{student}/problem.ipynb" if cells else "",
    )
    given = {"score": score, "max_score": most, "seconds": 1.25, "memory_peak": 200 << 20, **more}
    return SubmissionRecord(
        course="/course",
        assignment="ps1",
        student=student,
        path=f"/course/submitted/{student}/ps1",
        sha256="cd" * 32,
        verdict=verdict,
        conditions=CONDITIONS,
        notebooks=(book,) if cells else (),
        started="2026-11-26T22:50:00Z",
        **given,
    )


def code(source: str, *outputs: NotebookNode, **metadata: Any) -> NotebookNode:
    """A code cell with its outputs."""
    cell: NotebookNode = nbformat.v4.new_code_cell(source, outputs=list(outputs), metadata=metadata)
    return cell


def visible_test(source: str, *outputs: NotebookNode) -> NotebookNode:
    """A test that nothing of is hidden."""
    return code(source, *outputs, **{VISIBLE: source})


def printed(text: str, name: str = "stdout") -> NotebookNode:
    """What a cell wrote."""
    output: NotebookNode = nbformat.v4.new_output("stream", name=name, text=text)
    return output


def displayed(**data: Any) -> NotebookNode:
    """What a cell displayed, by forms such as ``text_html``."""
    forms = {name.replace("_", "/"): value for name, value in data.items()}
    output: NotebookNode = nbformat.v4.new_output("display_data", data=forms)
    return output


def raised(name: str, text: str) -> NotebookNode:
    """An exception with a traceback."""
    output: NotebookNode = nbformat.v4.new_output(
        "error", ename=name, evalue=text, traceback=[f"\x1b[0;31m{name}\x1b[0m: {text}"]
    )
    return output
