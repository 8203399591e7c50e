import argparse
import io

from kernel_provider.builder import BuildResult, Event
from kernel_provider.builder.command import Screen, add_arguments, summary
from kernel_provider.builder.model import Phase
from kernel_provider.builder.progress import step


class Terminal(io.StringIO):
    """A stream that says that somebody watches."""

    def isatty(self) -> bool:
        """It is one."""
        return True


def show(stream: io.StringIO, environ: dict[str, str]) -> str:
    """What a screen writes for one step."""
    screen = Screen(stream, environ)
    screen.show(Event(step="wheels", phase=Phase.STARTED))
    screen.show(Event(step="wheels", phase=Phase.RUNNING, detail="collecting torch"))
    screen.show(
        Event(step="wheels", phase=Phase.DONE, detail="80 wheels", size=3_000_000, seconds=1.2)
    )
    screen.end()
    return stream.getvalue()


def test_a_pipe_gets_plain_lines_without_every_detail() -> None:
    """A log holds no control characters, and one line for the end of each step."""
    text = show(io.StringIO(), {})
    assert text == "... wheels\nok  wheels  80 wheels  3 MB  1.2 s\n"


def test_a_terminal_gets_one_line_that_changes() -> None:
    """Each sign of life replaces the one before."""
    text = show(Terminal(), {"TERM": "xterm"})
    assert text.count("\n") == 1
    assert "collecting torch" in text
    assert "\x1b[32m" in text


def test_no_color_is_respected() -> None:
    """https://no-color.org: any value that is not empty."""
    assert "\x1b[3" not in show(Terminal(), {"TERM": "xterm", "NO_COLOR": "1"})
    assert "\x1b" not in show(Terminal(), {"TERM": "dumb"})


def test_a_cut_short_line_is_left_for_the_shell() -> None:
    """After Ctrl-C the prompt starts on a line of its own."""
    stream = Terminal()
    screen = Screen(stream, {"TERM": "xterm"})
    screen.show(Event(step="image", phase=Phase.STARTED))
    screen.end()
    screen.end()
    assert stream.getvalue().endswith("s\n")


def test_the_summary_says_size_versions_and_whether_anything_was_done() -> None:
    """The line that a person keeps."""
    result = BuildResult(
        image="executor-ml:latest",
        image_id="sha256:1",
        digest="sha256:2",
        size=834_000_000,
        seconds=75.4,
        reused=False,
        versions={"torch": "2.13.0+cpu"},
    )
    assert summary(result) == "executor-ml:latest: 834 MB, torch 2.13.0+cpu (built in 75 s)"


def test_the_defaults_are_the_image_that_kernels_use() -> None:
    """Without options the command builds what a launch looks for."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    found = vars(parser.parse_args([]))
    assert (found["variant"], found["stack"], found["base"]) == ("ml", "current", "auto")
    assert not any(found[name] for name in ("tag", "force", "refresh_base", "json"))


def test_a_step_tells_its_begin_and_what_came_out() -> None:
    """Somebody who listens can time and size every step."""
    events: list[Event] = []
    with step("base", events.append) as now:
        now.say("pulling")
        now.detail, now.size = "python:3.11-slim", 5
    begun, running, done = events
    assert (begun.phase, running.phase, done.phase) == tuple(Phase)
    assert running.detail == "pulling"
    assert (done.detail, done.size) == ("python:3.11-slim", 5)
    assert done.seconds is not None
