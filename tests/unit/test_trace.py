import json
from pathlib import Path

from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.trace import OFF, VARIABLE, Trace


def noted(file: Path) -> list[tuple[str, int]]:
    """Steps and their moments."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row["step"], row["at"]) for row in rows]


def test_off_unless_asked_for(tmp_path: Path) -> None:
    """No file is made, whatever is noted."""
    for trace in (OFF, Trace.wanted({}), Trace.wanted({VARIABLE: ""})):
        trace.mark("a step")
        trace.mark_log("trace a step 7")
    assert not list(tmp_path.iterdir())


def test_steps_are_noted_in_their_order(tmp_path: Path) -> None:
    """By whichever process; a file that cannot be written costs one try."""
    file = tmp_path / "steps"
    Trace.wanted({VARIABLE: str(file)}).mark("first")
    Trace(str(file)).mark("second", 7)
    (first, begun), second = noted(file)
    assert (first, second) == ("first", ("second", 7))
    assert begun > 0
    nowhere = Trace(str(tmp_path / "nowhere" / "steps"))
    nowhere.mark("lost")
    assert not nowhere.path


def test_a_log_is_read_for_steps_and_nothing_else(tmp_path: Path) -> None:
    """A sandbox's preloaded modules may print what they like."""
    file = tmp_path / "steps"
    Trace(str(file)).mark_log(
        "hello\ntrace IPython ready 70\ntrace\ntrace 7\ntrace a b\ntraced c 8\ntrace x -1\n"
    )
    assert noted(file) == [("sandbox: IPython ready", 70)]


def test_a_sandbox_learns_that_steps_are_noted_and_not_where() -> None:
    """And nothing at all when they are not."""
    assert VARIABLE not in sandbox_spec(KernelPolicy(), rendezvous="/r").env
    assert sandbox_spec(KernelPolicy(), rendezvous="/r", traced=True).env[VARIABLE] == "1"
