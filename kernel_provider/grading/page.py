"""A submission's feedback as a page: one file that loads nothing and runs nothing.

All of it that comes from students is text, and escaped: no HTML, SVG or script of theirs
is taken over, and pictures only as what they are. The page forbids scripts besides. Of
hidden tests it has neither the source nor the outputs, which could tell it.
"""

import base64
import binascii
import builtins
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kernel_provider.grading.model import (
    VISIBLE,
    CellResult,
    NotebookResult,
    SubmissionRecord,
    Verdict,
)
from kernel_provider.run.text import printable

POLICY: Final = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
LONGEST: Final = 20_000
"""Characters of one output, or of a cell; of longer ones the start and the end are shown."""
LARGEST: Final = 4 << 20
"""Bytes of pictures in base64 that a notebook may bring to its page."""
PICTURES: Final = {"image/png": b"\x89PNG\r\n\x1a\n", "image/jpeg": b"\xff\xd8\xff"}
_GOOD: Final = frozenset({Verdict.PASSED})
_OPEN: Final = frozenset({Verdict.BY_HAND, Verdict.NOT_RUN})

STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; max-width: 56rem;
  margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
header { display: flex; gap: 1rem; align-items: baseline; flex-wrap: wrap;
  border-bottom: 1px solid #d5dae2; padding-bottom: 1rem; }
header p { margin: 0; color: #5a6474; } .points { margin-left: auto; font-size: 1.3rem; }
.mark { border-radius: 1rem; padding: .05rem .7rem; font-size: .85rem; white-space: nowrap;
  background: #fbe3e1; color: #8c1d13; }
.mark.good { background: #dcf1e1; color: #17602c; } .mark.open { background: #e8ebf0; color: #444; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .35rem .6rem;
  border-bottom: 1px solid #e6e9ee; vertical-align: top; } th { color: #5a6474; font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.cell { border-left: 3px solid #d5dae2; padding-left: .8rem; margin: 1rem 0; }
.cell.bad { border-color: #d2544a; } .cell.good { border-color: #4ea567; }
.cell > p { margin: .2rem 0; } .prose { white-space: pre-wrap; overflow-wrap: anywhere; }
pre { margin: .3rem 0; padding: .6rem .8rem; background: #f5f6f8; border-radius: .3rem;
  overflow-x: auto; font: 13px/1.45 ui-monospace, monospace; }
pre.out { background: none; padding: .2rem .8rem; max-height: 24rem; overflow: auto; }
pre.err { background: #fdf3f2; } img { max-width: 100%; } .quiet { color: #5a6474; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .85rem; }
dt { color: #5a6474; } dd { margin: 0; overflow-wrap: anywhere; }
@media print { pre.out { max-height: none; } }
"""


def page(record: SubmissionRecord, executed: Mapping[str, Sequence[Any]]) -> str:
    """The page; ``executed`` are cells of nbformat's, by the name of their notebook."""
    title = f"{_text(record.assignment)}: {_text(record.student)}"
    parts = [_head(record)]
    if not record.verdict.is_graded:  # otherwise it may have the words of a hidden test
        parts.append(_said(record.cause))
    for notebook in record.notebooks:
        parts.append(f"<h2>{_text(notebook.name)} {_mark(notebook.verdict)}</h2>")
        parts += [_tests(notebook)]
        if notebook.name in executed:
            parts += _cells(notebook, executed[notebook.name])
    parts.append(_conditions(record))
    head = (
        f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n'
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n{head}<style>{STYLE}</style>\n</head>\n'
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    return html.escape(printable(text))


def _mark(verdict: Verdict) -> str:
    kind = " good" if verdict in _GOOD else " open" if verdict in _OPEN else ""
    return f'<span class="mark{kind}">{verdict.words}</span>'


def _points(points: float | None, most: float) -> str:
    return f"{'?' if points is None else f'{points:g}'} / {most:g}"


def _said(text: str) -> str:
    return f'<p class="prose">{_text(text)}</p>'


def _note(text: str) -> str:
    return f'<p class="quiet prose">{_text(text)}</p>'


def _head(record: SubmissionRecord) -> str:
    graded = record.verdict.is_graded
    points = _points(record.score, record.max_score) if graded else "not graded"
    return (
        f"<header><h1>{_text(record.assignment)}</h1><p>{_text(record.student)}</p>"
        f'{_mark(record.verdict)}<p class="points">{points}</p></header>'
    )


def _tests(notebook: NotebookResult) -> str:
    """A row for each test: what it is worth and what came of it."""
    rows = [
        f"<tr><td>{_text(cell.grade_id)}</td><td>{_mark(cell.verdict)}</td>"
        f"<td>{_text(cell.cause)}</td>"
        f'<td class="n">{_points(cell.points, cell.max_points)}</td></tr>'
        for cell in notebook.cells
        if cell.is_test
    ]
    head = '<tr><th>test</th><th>verdict</th><th></th><th class="n">points</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _cells(notebook: NotebookResult, cells: Sequence[Any]) -> Iterator[str]:
    results = {cell.index: cell for cell in notebook.cells}
    room = LARGEST
    for index, cell in enumerate(cells):
        if cell.cell_type == "code":
            text, room = _code(cell, results.get(index), room)
            yield text
        else:
            yield f'<div class="cell"><p class="prose">{_text(_short(cell.source))}</p></div>'


def _code(cell: Any, result: CellResult | None, room: int) -> tuple[str, int]:
    """A code cell, and how much room for pictures it leaves."""
    source, outputs = cell.source, cell.get("outputs", [])
    if result is not None and result.is_test:
        source = visible(cell)
        outputs = outputs if source == cell.source else []
    parts = [f"<pre>{_text(_short(source))}</pre>"] if source.strip() else []
    kind = ""
    if result is not None:
        kind = " good" if result.verdict in _GOOD else "" if result.verdict in _OPEN else " bad"
        if result.is_test or kind == " bad":
            parts.insert(0, f"<p>{_mark(result.verdict)} {_text(result.grade_id)}</p>")
        if not outputs and result.ename in _KNOWN:
            parts.append(f'<pre class="out err">{_text(result.ename)}</pre>')
        if result.cause:
            parts.append(_said(result.cause))
    for output in outputs:
        text, room = _output(output, room)
        parts.append(text)
    return f'<div class="cell{kind}">{"".join(parts)}</div>', room


_KNOWN: Final = frozenset(
    name for name, one in vars(builtins).items() if isinstance(one, type(Exception))
)
"""Exceptions whose names are no student's to choose."""


def visible(cell: Any) -> str:
    """A test's source as students have it: nothing of tests that were never given out."""
    return str(cell.metadata.get(VISIBLE, ""))


def _output(output: Any, room: int) -> tuple[str, int]:
    kind = output["output_type"]
    if kind == "stream":
        error = " err" if output["name"] == "stderr" else ""
        return f'<pre class="out{error}">{_text(_short(output["text"]))}</pre>', room
    if kind == "error":
        told = "\n".join(output["traceback"]) or f"{output['ename']}: {output['evalue']}"
        return f'<pre class="out err">{_text(_short(told))}</pre>', room
    data = output["data"]
    for form, begin in PICTURES.items():
        if form in data:
            return _picture(form, begin, data[form], room)
    told = data.get("text/plain", f"[{', '.join(data)}]")
    return f'<pre class="out">{_text(_short(told))}</pre>', room


def _picture(form: str, begin: bytes, data: Any, room: int) -> tuple[str, int]:
    """A picture, if that is what it is and there is room for it."""
    try:
        plain = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError, AttributeError):
        return _note("[a picture that is none]"), room
    text = base64.b64encode(plain).decode()
    if not plain.startswith(begin):
        return _note("[a picture that is none]"), room
    if len(text) > room:
        return _note(f"[a picture of {len(plain) / 1e6:.1f} MB: see the notebook]"), room
    return f'<p><img alt="" src="data:{form};base64,{text}"></p>', room - len(text)


def _short(text: Any) -> str:
    """The text, or its start and its end."""
    whole = text if isinstance(text, str) else "".join(map(str, text))
    if len(whole) <= LONGEST:
        return whole
    half = LONGEST // 2
    return f"{whole[:half]}\n\n[... {len(whole) - 2 * half} characters ...]\n\n{whole[-half:]}"


def _conditions(record: SubmissionRecord) -> str:
    """Under which conditions it was graded: small, at the end."""
    told = record.conditions
    facts = {
        "submission": f"sha256 {record.sha256}",
        "graded": f"{record.started}, in {record.seconds:.1f} s",
        "kernel": f"{told.kernel}, image {told.image} ({told.image_digest})",
        "limits": ", ".join(
            f"{name} {value}" for name, value in told.limits.items() if name != "image"
        ),
        "memory at most": f"{record.memory_peak / 2**20:.0f} MB",
    }
    rows = "".join(f"<dt>{name}</dt><dd>{_text(text)}</dd>" for name, text in facts.items())
    return f"<h2>How it was graded</h2><dl>{rows}</dl>"
