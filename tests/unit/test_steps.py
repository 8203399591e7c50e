"""What a person sees while waiting."""

import io
import re

import pytest
from sandboxes import until

from kernel_provider.steps import CommandError, Steps, last_lines, run_quietly


class Terminal(io.StringIO):
    """A stream that says that somebody looks at it."""

    def isatty(self) -> bool:
        """Claim to be one."""
        return True


def test_a_log_gets_one_line_for_a_quick_step() -> None:
    """No escape codes, no noise: what, result, note, seconds."""
    stream = io.StringIO()
    with Steps(stream).step("wheels") as note:
        note.text = "80 files"
    assert re.fullmatch(r"  ok  wheels: 80 files \(0\.\d s\)\n", stream.getvalue())


def test_a_terminal_line_is_replaced() -> None:
    """The live line is wiped before the last one is written."""
    stream = Terminal()
    with Steps(stream).step("wheels"):
        pass
    assert stream.getvalue().startswith("\r\x1b[K  ok  wheels")


def test_a_long_step_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a log, now and then, while it goes on."""
    monkeypatch.setattr("kernel_provider.steps.PATIENCE", 0.01)
    monkeypatch.setattr("kernel_provider.steps.HEARTBEAT", 0.01)
    stream = io.StringIO()
    told = re.compile(r"^  \.\.\. copying: 1 of 2 GB: \d+ s so far$", re.MULTILINE)
    with Steps(stream).step("copying") as note:
        note.text = "1 of 2 GB"
        assert until(lambda: told.search(stream.getvalue()))


@pytest.mark.parametrize(
    ("error", "word"), [(ValueError, "failed"), (KeyboardInterrupt, "stopped")]
)
def test_a_step_never_claims_success(error: type[BaseException], word: str) -> None:
    """The error goes on to the caller, and the line says how the step ended."""
    stream = io.StringIO()
    with pytest.raises(error), Steps(stream).step("wheels"):
        raise error
    assert f"{word} wheels" in stream.getvalue()


def test_last_lines_drop_what_is_empty() -> None:
    """The end is what matters, and blank lines say nothing."""
    assert last_lines("a\n\nb\n  \nc\n", 2) == "\n    b\n    c"
    assert last_lines("") == ""


def test_a_program_that_fails_is_told_with_its_last_lines() -> None:
    """What it was, its exit code, and why, as it said itself."""
    with pytest.raises(CommandError) as caught:
        run_quietly(["/bin/sh", "-c", "echo first; echo no room >&2; exit 3"], what="making it")
    told = str(caught.value)
    assert told.startswith("making it failed (exit code 3): /bin/sh -c ")
    assert "\n    first\n    no room\nFix: see the lines above" in told
    assert caught.value.exit_code == 1
