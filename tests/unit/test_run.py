"""``executor-ml run``, as far as it needs no kernel."""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from nbformat import NotebookNode

from kernel_provider import cli
from kernel_provider.commands import run as command
from kernel_provider.kernelspecs import PROVISIONER
from kernel_provider.run import book as books
from kernel_provider.run import files
from kernel_provider.run.client import BoundedClient, size
from kernel_provider.run.kernel import merged
from kernel_provider.run.model import (
    STATES,
    CellReport,
    Ending,
    ExitCode,
    InputError,
    OutputError,
    OutsideKernelError,
    RunRequest,
    RunResult,
)
from kernel_provider.run.parameters import inject, parse_parameters, parse_value
from kernel_provider.run.progress import Printer
from kernel_provider.run.signals import Wishes
from kernel_provider.run.text import duration, parse_duration, printable, shown, title

LIMITS = {"memory": "512 MB", "cpus": "0.5"}


def notebook(*sources: str, tags: dict[int, str] | None = None) -> NotebookNode:
    """A notebook of code cells."""
    book: NotebookNode = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    for index, tag in (tags or {}).items():
        book.cells[index].metadata["tags"] = [tag]
    return book


def stream(text: str, name: str = "stdout") -> NotebookNode:
    """A stream output."""
    output: NotebookNode = nbformat.v4.new_output("stream", name=name, text=text)
    return output


# --- parameters -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("None", None),
        ("null", None),
        ("3", 3),
        ("-3", -3),
        ("0.5", 0.5),
        ("1e-3", 0.001),
        (".5", 0.5),
        ("5.", 5.0),
        ("abc", "abc"),
        ("", ""),
        ("1_000", "1_000"),
        ("nan", "nan"),
        ("1e999", "1e999"),
        ("9" * 5000, "9" * 5000),
        ('"007"', "007"),
        ("'true'", "true"),
        ("'", "'"),
        ("2026-01-01", "2026-01-01"),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_values_are_read_as_people_mean_them(text: str, value: object) -> None:
    """Truth values, nothing and numbers; the rest is text, and so is what is quoted."""
    found = parse_value(text)
    assert (type(found), found) == (type(value), value)


@pytest.mark.parametrize("name", ["1x", "a b", "import", "a;import os", ""])
def test_a_name_must_be_one(name: str) -> None:
    """Nothing but a name of a variable gets into the injected cell's left side."""
    with pytest.raises(InputError, match="no name of a variable") as caught:
        parse_parameters([(name, "1")])
    assert "\nFix: " in str(caught.value)


def test_parameters_go_below_the_tagged_cell() -> None:
    """As papermill does; without a tagged cell they go to the top."""
    book = notebook("a = 1", "b = 2", "a", tags={1: "parameters"})
    inject(book, {"a": "x'\n", "b": None, "c": 0.5})
    assert [cell.source for cell in book.cells][1:3] == [
        "b = 2",
        '# Parameters\na = "x\'\\n"\nb = None\nc = 0.5',
    ]
    assert book.cells[2].metadata["tags"] == ["injected-parameters"]
    nbformat.validate(book)
    top = notebook("a")
    inject(top, {"a": 1})
    assert top.cells[0].source == "# Parameters\na = 1"


def test_parameters_replace_those_of_an_earlier_run() -> None:
    """Running an executed notebook again leaves one injected cell."""
    book = notebook("a = 1", "a", tags={0: "parameters"})
    inject(book, {"a": 2})
    inject(book, {"a": 3})
    assert [cell.source for cell in book.cells] == ["a = 1", "# Parameters\na = 3", "a"]
    before = notebook("a")
    inject(before, {})
    assert len(before.cells) == 1


def test_an_old_notebook_stays_valid_with_parameters() -> None:
    """Cells of format 4.4 have no id."""
    book = notebook("a")
    book.nbformat_minor = 4
    del book.cells[0]["id"]
    inject(book, {"a": 1})
    nbformat.validate(book)


# --- notebooks in files ---------------------------------------------------------------


def load(path: Path) -> NotebookNode:
    """Read a notebook as a run does."""
    return books.parse(path, files.read(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"junk", "no JSON, line 1: Expecting value"),
        (b'{"nbformat": 4,\n "cells": [}', "no JSON, line 2"),
        (b"[" * 100_000, "JSON without end"),
        (b"\xff\xfe\x00", "it is no text"),
        (b'{"a": 1}', "JSON of another kind"),
        (b"[]", "JSON of another kind"),
        (b'{"nbformat": 4, "nbformat_minor": 5, "cells": 3, "metadata": {}}', "not a"),
        (b'{"nbformat": 9, "nbformat_minor": 0, "cells": [], "metadata": {}}', "not a"),
    ],
)
def test_what_is_no_notebook_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    """One line says what is wrong with the file, the next what to do."""
    path = tmp_path / "n.ipynb"
    path.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        load(path)
    first, second = str(caught.value).splitlines()
    assert str(path) in first
    assert second.startswith("Fix: ")
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    """Neither is a traceback."""
    with pytest.raises(InputError, match="there is no such file"):
        load(tmp_path / "nowhere.ipynb")
    with pytest.raises(InputError, match="this is a folder"):
        load(tmp_path)


def test_old_outputs_do_not_look_new(tmp_path: Path) -> None:
    """A cell that is not reached in this run has no outputs of an earlier one."""
    book = notebook("1")
    book.cells[0].outputs = [stream("old")]
    book.cells[0].execution_count = 7
    path = tmp_path / "n.ipynb"
    nbformat.write(book, path)
    loaded = load(path)
    assert loaded.cells[0].outputs == []
    assert loaded.cells[0].execution_count is None


def test_a_notebook_of_format_3_is_upgraded(tmp_path: Path) -> None:
    """As Jupyter does."""
    path = tmp_path / "n.ipynb"
    cell = {"cell_type": "code", "input": ["1"], "language": "python", "outputs": []}
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": [cell]}]}
    path.write_text(json.dumps(old))
    assert load(path).cells[0].source == "1"


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """Mode and links stay, and no part of a file is left."""
    real, link = tmp_path / "real.ipynb", tmp_path / "link.ipynb"
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    files.write(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_mode & 0o777 == 0o640
    with pytest.raises(OutputError, match="cannot write"):
        files.write(tmp_path / "no" / "folder", "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.ipynb", "real.ipynb"]


def request(tmp_path: Path, **changes: Any) -> RunRequest:
    """A run of a notebook that is there."""
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook("1"), path)
    return RunRequest(**{"notebook": path, "output": tmp_path / "n.out.ipynb", **changes})


@pytest.mark.parametrize("name", ["n.ipynb", "link.ipynb", "../{folder}/n.ipynb"])
def test_the_notebook_is_written_over_only_where_asked_for(tmp_path: Path, name: str) -> None:
    """By whatever path it is reached; the remedy names both ways out."""
    (tmp_path / "link.ipynb").symlink_to(tmp_path / "n.ipynb")
    output = tmp_path / name.format(folder=tmp_path.name)
    with pytest.raises(InputError) as caught:
        files.prepare(request(tmp_path, output=output))
    assert str(caught.value).splitlines() == [
        f"-o {output}: this is the notebook itself",
        "Fix: give another file with -o, or --in-place to write over the notebook",
    ]
    assert files.prepare(request(tmp_path, output=output, in_place=True))


def test_a_page_has_a_file_of_its_own(tmp_path: Path) -> None:
    """It replaces neither the notebook nor its executed copy, be that there or not."""
    with pytest.raises(InputError, match="the notebook, which the page would replace"):
        files.prepare(request(tmp_path, html=tmp_path / "n.ipynb"))
    with pytest.raises(InputError, match="the executed notebook goes to the same file"):
        files.prepare(request(tmp_path, html=tmp_path / "n.out.ipynb"))
    assert files.prepare(request(tmp_path, output=None, html=tmp_path / "n.html"))
    assert files.prepare(request(tmp_path, output=Path("/dev/null"), html=Path("/dev/null")))


def test_a_page_without_nbconvert_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that brings it."""
    monkeypatch.setattr(files, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match="nbconvert is not installed") as caught:
        files.prepare(request(tmp_path, html=tmp_path / "n.html"))
    assert "pip install nbconvert" in str(caught.value)


def test_an_output_that_cannot_be_is_refused_before_the_run(tmp_path: Path) -> None:
    """Not after hours."""
    with pytest.raises(OutputError, match="it is a folder"):
        files.check_writable(tmp_path)
    with pytest.raises(OutputError, match="there is no folder"):
        files.check_writable(tmp_path / "no" / "n.ipynb")
    files.check_writable(Path("/dev/null"))
    files.write(Path("/dev/null"), "x")
    files.check_writable(tmp_path / "n.ipynb")


def test_streams_are_merged_in_order() -> None:
    """600 prints are one output, and stderr between them stays there."""
    outputs = [stream("a"), stream("b"), stream("!", "stderr"), stream("c"), stream("d")]
    assert [(o["name"], o["text"]) for o in books.merge_streams(outputs)] == [
        ("stdout", "ab"),
        ("stderr", "!"),
        ("stdout", "cd"),
    ]


def test_last_words_are_there_exactly_once() -> None:
    """Whether they came from the warden, twice, or not at all."""
    once = books.with_error([stream("a")], "KernelExited", "why")
    assert books.with_error(once, "KernelExited", "why") == once
    assert books.with_error([*once, once[-1]], "KernelExited", "why") == once
    assert books.has_error(once, "KernelExited")
    assert not books.has_error(once, "KernelKilled")
    other = books.with_error(once, "CellTimeout", "late")
    assert [o.get("ename") for o in other] == [None, "KernelExited", "CellTimeout"]


def test_cells_with_nothing_to_run_do_not_count() -> None:
    """Empty ones, text, and those tagged to be skipped."""
    book = notebook("1", " ", "2", "3", tags={2: "skip-execution"})
    book.cells.append(nbformat.v4.new_markdown_cell("text"))
    assert [index for index, _ in books.runnable(book)] == [0, 3]


def test_html_has_no_scripts_of_the_sandbox(tmp_path: Path) -> None:
    """What untrusted code displayed does not run in the reader's browser."""
    book = notebook("1")
    evil = '<script>alert("evil")</script><b onclick="evil()">bold</b>'
    book.cells[0].outputs = [
        nbformat.v4.new_output("display_data", data={"text/html": evil}),
        nbformat.v4.new_output("display_data", data={"image/png": "AAAA"}),
    ]
    books.write_html(tmp_path / "n.html", book)
    page = (tmp_path / "n.html").read_text()
    assert '<script>alert("evil")' not in page
    assert "onclick=" not in page
    assert "<b>bold</b>" in page
    assert "data:image/png;base64,AAAA" in page


# --- kernelspecs ----------------------------------------------------------------------


def spec(**stanza: Any) -> KernelSpec:
    """A kernelspec of ours."""
    return KernelSpec(
        display_name="Sandbox",
        language="python",
        argv=["executor-ml", "launch", "{connection_file}"],
        metadata={"kernel_provisioner": stanza, "debugger": False},
    )


def test_options_go_before_the_kernelspecs_settings() -> None:
    """What is not given stays, and mounts are added."""
    given = spec(
        provisioner_name=PROVISIONER,
        config={"memory": "1g", "pids": 64, "mounts": {"/data/a": "/a", "/data/b": "/b"}},
    )
    made = merged(given, {"memory": "2g", "mounts": {"/data/b": "/c"}})
    stanza = made.metadata["kernel_provisioner"]
    assert stanza["provisioner_name"] == PROVISIONER
    assert stanza["config"] == {
        "memory": "2g",
        "pids": 64,
        "mounts": {"/data/a": "/a", "/data/b": "/c"},
    }
    assert made.metadata["debugger"] is False
    assert made.argv == given.argv
    assert given.metadata["kernel_provisioner"]["config"]["memory"] == "1g"


@pytest.mark.parametrize("stanza", [{}, {"provisioner_name": "local-provisioner"}])
def test_a_kernel_outside_of_a_sandbox_is_refused(stanza: dict[str, str]) -> None:
    """This command never runs a notebook on the host."""
    with pytest.raises(OutsideKernelError, match="outside of any sandbox"):
        merged(spec(**stanza), {})


# --- what a sandbox says --------------------------------------------------------------


def test_durations_are_read_and_written() -> None:
    """As people write them; nonsense is refused."""
    found = {t: parse_duration(t) for t in ("30", "30s", "10m", "1h30m", "1.5 h", "500ms", "1m 5s")}
    assert list(found.values()) == [30, 30, 600, 5400, 5400, 0.5, 65]
    for text in ("", "0", "-1s", "ten", "10x", "5m!", "1e3", "9999999d", "nan", "inf"):
        with pytest.raises(ValueError, match="is no duration"):
            parse_duration(text)
    assert [duration(s) for s in (0.5, 30, 60, 65, 5400)] == [
        "0.5 s",
        "30 s",
        "1 min",
        "1 min 5 s",
        "1 h 30 min",
    ]


def test_nothing_reaches_the_terminal_but_text() -> None:
    """A notebook's source, errors and outputs cannot move the cursor or set the title."""
    evil = "a\x1b[2Jb\x1b]0;title\x07c\x9b31md\x08e\u202ef"
    plain = printable(evil)
    assert not set(plain) & {"\x1b", "\x07", "\x9b", "\x08", "\u202e"}
    assert plain.startswith("abc")
    assert title(f"\n# {evil}\nx").startswith("abc")
    assert title("#") == "#"
    lines = list(shown([stream("1%\r50%\r100%\r\n\x1b[31mred\x1b[0m\n")]))
    assert lines == ["100%", "red"]
    figure = {"output_type": "display_data", "data": {"image/png": "A" * 4000}}
    assert list(shown([figure])) == ["[figure, 3 kB: see the notebook]"]


def test_outputs_without_end_are_cut() -> None:
    """A sandbox cannot make this process keep more than a bound, and it is told once."""
    book = notebook("1")
    client = BoundedClient(book)
    client.reset_execution_trackers()
    client.clear_before_next_output = False
    client.most_output = 1000
    cell = book.cells[0]
    for _ in range(100):
        content = {"name": "stdout", "text": "x" * 100}
        header = {"msg_id": "i", "msg_type": "stream"}
        message = {"msg_type": "stream", "content": content, "header": header, "parent_header": {}}
        client.process_message(message, cell, 0)
    assert len(cell.outputs) < 12
    assert "not kept" in cell.outputs[-1]["text"]
    assert size({"a": ["xx", 1, None]}) >= 2


def test_signals_become_wishes() -> None:
    """The first one asks, the second insists; what it was for stays."""
    wishes = Wishes()
    wishes.hear(ExitCode.INTERRUPTED)
    assert (wishes.stop, wishes.at_once) == (ExitCode.INTERRUPTED, False)
    wishes.hear(ExitCode.TERMINATED)
    assert (wishes.stop, wishes.at_once) == (ExitCode.INTERRUPTED, True)


# --- the skin -------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        """It is."""
        return True


def cell(state: str = "ok", **more: Any) -> CellReport:
    """A cell's report."""
    facts = {"number": 1, "index": 0, "title": "t", "state": state, "seconds": 1.0, **more}
    return CellReport(**facts)


def show(stream: io.StringIO, environ: dict[str, str]) -> str:
    """What a short run prints."""
    printer = Printer(stream, environ, show=True)
    printer.opened(Path("n\x1b.ipynb"), "executor-ml")
    printer.starting("executor-ml")
    printer.started(1.0, LIMITS, 1)
    printer.cell_started(cell(), 2)
    printer.tick()
    outputs = [nbformat.v4.new_output("stream", name="stdout", text="\x1b[1mhi\n")]
    printer.cell_ended(cell(), 2, outputs)
    printer.done()
    return stream.getvalue()


def test_a_pipe_gets_plain_lines() -> None:
    """No control character but the newline."""
    assert show(io.StringIO(), {}).splitlines() == [
        "  run     n\N{REPLACEMENT CHARACTER}.ipynb, kernel executor-ml",
        "  ok      kernel executor-ml: memory 512 MB, processors 0.5 (1.0 s)",
        "  ok      cell 1 of 2: t (1.0 s)",
        "      | hi",
    ]


def test_a_terminal_gets_a_live_line_and_colours() -> None:
    """Unless NO_COLOR is set; a dumb terminal gets what a pipe gets."""
    assert "\x1b[32m" in show(Terminal(), {})
    plain = show(Terminal(), {"NO_COLOR": "1"})
    assert "\x1b[3" not in plain
    assert "\r\x1b[K  ... (0 s) cell 1 of 2: t" in plain
    assert "\x1b" not in show(Terminal(), {"TERM": "dumb"})


RESULTS = {
    ExitCode.CELL_ERROR: cell("error", error="ValueError", message="no\nmore"),
    ExitCode.CELL_TIMEOUT: cell("timed_out", error="CellTimeout", message="late."),
    ExitCode.TIMEOUT: cell("timed_out", error="RunTimeout", message="late."),
    ExitCode.OUT_OF_MEMORY: cell("died", error="MemoryLimitExceeded"),
    ExitCode.KERNEL_DIED: cell("died", error="KernelExited"),
    ExitCode.PROTOCOL_BROKEN: cell("died", error="ProtocolViolation"),
    ExitCode.INTERRUPTED: cell("interrupted"),
    ExitCode.TERMINATED: cell("interrupted"),
}


def result(code: ExitCode, *cells: CellReport) -> RunResult:
    """A run that ended so."""
    return RunResult(
        exit_code=code,
        cells=cells,
        seconds=1.0,
        death=Ending(name="N", reason="It died.", remedy="Do it better."),
        limits=LIMITS,
        document="{}",
    )


@pytest.mark.parametrize("code", RESULTS)
def test_every_ending_is_told_in_one_line_and_a_fix(code: ExitCode) -> None:
    """Which cell, what, and what to do; also where no cell was reached."""
    summary, fix = command.explain(result(code, RESULTS[code]), Path("n.out.ipynb"))
    assert "cell 1 of 1" in summary
    assert "\n" not in summary + fix
    assert fix
    assert "%" not in summary + fix
    if code is not ExitCode.CELL_ERROR:
        summary, _ = command.explain(result(code), None)
        assert "the start of the kernel" in summary


def test_input_has_a_remedy_of_its_own() -> None:
    """A traceback of ipykernel's tells nobody what to do instead."""
    raised = cell("error", error="StdinNotImplementedError", message="raw_input was called, but")
    summary, fix = command.explain(result(ExitCode.CELL_ERROR, raised), Path("n.out.ipynb"))
    assert "StdinNotImplementedError" in summary
    assert "input()" in fix
    assert "-p NAME VALUE" in fix
    assert "tagged 'parameters'" in fix


def test_every_exit_code_is_in_the_help_and_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    """--help lists them all, each with its meaning, and no code has two meanings."""
    with pytest.raises(SystemExit):
        cli.main(["run", "--help"])
    text = capsys.readouterr().out
    for code, meaning in command.EXIT_CODES.items():
        assert f"  {int(code):>3}  {meaning}\n" in text
    assert {int(code) for code in ExitCode} <= {int(code) for code in command.EXIT_CODES}
    assert all(RESULTS[code].state in STATES for code in RESULTS)
    page = Path(__file__).parents[2].joinpath("docs/run.md").read_text()
    for code, meaning in command.EXIT_CODES.items():
        assert f"| {int(code)} | {meaning} |" in page


def arguments(*words: str) -> argparse.Namespace:
    """The command line, parsed."""
    return cli.make_parser("run").parse_args(["run", *words])


def test_mounts_and_times_are_checked_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """A relative folder is one below the current; nonsense is a usage error."""
    args = arguments("n.ipynb", "--mount", "/data/x=here", "--timeout", "1h")
    assert args.mounts == [("/data/x", str(Path.cwd() / "here"))]
    assert args.timeout == 3600
    for words in (("--mount", "/data/x"), ("--mount", "=x"), ("--timeout", "soon")):
        with pytest.raises(SystemExit) as caught:
            arguments("n.ipynb", *words)
        assert caught.value.code == 2
    assert "write TARGET=SOURCE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        (("nowhere.ipynb",), 66, "InputError"),
        (("nowhere.ipynb", "-o", "-"), 66, "InputError"),
        (("nowhere.ipynb", "-p", "1", "1"), 66, "InputError"),
    ],
)
def test_json_is_one_object_also_where_nothing_ran(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int, name: str
) -> None:
    """Standard output is the object, standard error the words."""
    assert cli.main(["run", *words, "--json"]) == code
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert (told["exit_code"], told["status"], told["error"]["name"]) == (code, "bad_input", name)
    assert printed.err.startswith("executor-ml: ")
    assert told["error"]["fix"] in printed.err


@pytest.mark.parametrize(
    ("name", "suggested"), [("exector-ml", "; did you mean 'executor-ml'?"), ("../nope", "")]
)
def test_an_unknown_kernel_names_the_known_ones(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    suggested: str,
) -> None:
    """The nearest first, and the command that makes another."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))  # others install there
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook("1"), path)
    assert cli.main(["run", str(path), "--kernel", name]) == 78
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"executor-ml: there is no sandboxed kernel named {name!r}{suggested}",
        f"Fix: take one of: executor-ml; or make it: executor-ml install --name {name}",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["n.ipynb"]


def test_outputs_are_shown_as_text() -> None:
    """Colours are dropped, a figure is named, an error is shown whole."""
    outputs: list[dict[str, Any]] = [
        {"output_type": "stream", "text": "\x1b[31mred\x1b[0m\nline\n"},
        {
            "output_type": "display_data",
            "data": {"image/png": "A" * 4000, "text/plain": "F"},
        },
        {"output_type": "execute_result", "data": {"text/plain": "42"}},
        {
            "output_type": "error",
            "ename": "E",
            "evalue": "v",
            "traceback": ["a\nb", "E: v"],
        },
        {"output_type": "error", "ename": "E", "evalue": "v", "traceback": []},
    ]
    assert list(shown(outputs, figures="the HTML file")) == [
        "red",
        "line",
        "[figure, 3 kB: see the HTML file]",
        "42",
        "a",
        "b",
        "E: v",
        "E: v",
    ]


def test_a_cell_is_named_by_its_first_comment() -> None:
    """So that progress reads like a table of contents."""
    assert title("\n# Ask a model\nx = 1") == "Ask a model"
    assert title("x = 1") == "x = 1"


def spec_text(argv: object, **stanza: object) -> str:
    """A kernel.json as its file has it."""
    return json.dumps({"argv": argv, "metadata": {"kernel_provisioner": stanza}})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"argv": [],\n  "display_name": }', "line 2, column 19: not JSON: Expec"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "not JSON: it is no text"),
        (spec_text([], provisioner_name=PROVISIONER, config=[]), "its config is no object"),
        (spec_text(3, provisioner_name=PROVISIONER), "not a kernelspec (TypeError: "),
        (
            spec_text([], provisioner_name=PROVISIONER).replace("{", '{"display_name": 3, ', 1),
            "not a kernelspec (TraitError: ",
        ),
    ],
)
def test_a_broken_kernelspec_names_its_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    reason: str,
) -> None:
    """And the line, and how to mend it: no traceback of Jupyter's."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    file = tmp_path / "kernels" / "mine" / "kernel.json"
    file.parent.mkdir(parents=True)
    file.write_text(text, encoding="latin-1")
    path = tmp_path / "n.ipynb"
    nbformat.write(notebook("1"), path)
    assert cli.main(["run", str(path), "--kernel", "mine"]) == 78
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"executor-ml: kernelspec mine cannot be used: {file}: {reason}")
    fix = "remove its folder and run: executor-ml install --name mine"
    assert second == f"Fix: mend that file, or {fix}"
