"""The order of a profile's runs, what ends it, and what is told of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest

from kernel_provider.commands.profile import data, words
from kernel_provider.profile.memory import Kinds
from kernel_provider.profile.model import Limits, Profile, ProfileError, Sample, Seen, Subject
from kernel_provider.profile.report import page
from kernel_provider.profile.search import Room, search
from kernel_provider.steps import Note, Steps
from kernel_provider.values import MIB

SUBJECT = Subject(name="a <b>", notebook=Path("n.ipynb"), kernel="executor-ml", overrides={})
ROOM = Room(most=Limits(memory=2048 * MIB, cpus=2.0), least=208 * MIB)
KINDS = Kinds(
    anonymous=300 * MIB, shared=MIB, files=200 * MIB, kernel=8 * MIB, reread=0, major_faults=9
)
GOOD = Seen(
    samples=(Sample(at=0.0, kinds=replace(KINDS, files=0)), Sample(at=9.0, kinds=KINDS)),
    seconds=10.0,
    first=8.0,
    warm=2.0,
)


class Sandboxes:
    """Runs that need 400 MB, and take a second of one processor; ``at`` changes one of them."""

    def __init__(self, at: int = -1, then: Callable[[], Seen] | None = None) -> None:
        self.asked: list[tuple[Limits, float | None]] = []
        self._at = at
        self._then = then

    def __call__(
        self, _subject: Subject, limits: Limits, *, patience: float | None, note: Note
    ) -> Seen:
        """Run once."""
        assert note.text == ""
        self.asked.append((limits, patience))
        if self._then is not None and len(self.asked) == self._at:
            return self._then()
        if limits.memory < 400 * MIB:
            return replace(GOOD, died=True, first=None, warm=None, reason="it was killed")
        return replace(GOOD, warm=max(1.0, 1 / limits.cpus))


def interrupt() -> Seen:
    """Ctrl-C between two runs."""
    raise KeyboardInterrupt


def find(runs: Sandboxes) -> tuple[Profile, str]:
    """What is found, and what was told meanwhile."""
    stream = StringIO()
    return search(SUBJECT, ROOM, Steps(stream), runner=runs), stream.getvalue()


def test_memory_first_then_processors() -> None:
    """The first run has all there is and all the time; those over processors what is saved."""
    runs = Sandboxes()
    profile, told = find(runs)
    assert runs.asked[0] == (ROOM.most, None)
    assert profile.complete
    assert profile.minimum is not None
    assert 400 * MIB <= profile.minimum <= 416 * MIB
    assert profile.below is not None
    assert profile.below < 400 * MIB
    assert profile.recommended == Limits(memory=464 * MIB, cpus=1.0)
    over_cpus = [limits for limits, patience in runs.asked if patience is None][1:]
    assert over_cpus == [Limits(memory=464 * MIB, cpus=c) for c in (0.25, 0.5, 1.0, 2.0)]
    assert told.count("\n") == len(runs.asked)
    assert "out of memory" in told


def test_what_never_runs_is_an_error() -> None:
    """Nothing is known of limits then, and the error says why it did not run."""
    runs = Sandboxes(1, lambda: replace(GOOD, reason="ValueError: no"))
    with pytest.raises(
        ProfileError, match="a <b> does not run well with --memory 2048m --cpus 2: ValueE"
    ):
        find(runs)


@pytest.mark.parametrize("then", [interrupt, lambda: replace(GOOD, stopped=True, reason="x")])
@pytest.mark.parametrize("at", [1, 3, 8])
def test_ctrl_c_ends_it_with_what_is_known(then: Callable[[], Seen], at: int) -> None:
    """Between two runs or in one; nothing is recommended that was not seen to the end."""
    runs = Sandboxes(at, then)
    profile, _ = find(runs)
    assert len(runs.asked) == at
    assert len(profile.memory) + len(profile.cpus) == at - 1
    assert not profile.complete
    assert profile.recommended is None
    assert "stopped" in words(profile)
    assert json.loads(json.dumps(data(profile)))["recommended"] is None
    assert page(profile, words(profile))


def test_the_words_and_the_data_say_the_same() -> None:
    """A row for each run, and the options to type."""
    profile, _ = find(Sandboxes())
    text = words(profile)
    row = ["2 GB", "2", "fits", "509 MB", "8.0 s", "1.0 s", "0 MB", "0%"]
    assert text.splitlines()[1].split() == " ".join(row).split()
    assert "Its own memory is 309 MB, and it reads 200 MB of files." in text
    assert "Recommended: --memory 464m --cpus 1" in text
    told = data(profile)
    assert told["recommended"] == {"memory": 464 * MIB, "cpus": 1.0}
    assert told["over_memory"][0]["peak_anonymous"] == 300 * MIB
    assert len(told["over_memory"]) + len(told["over_cpus"]) == len(text.splitlines()) - 5


def test_the_page_has_both_plots_and_nothing_of_it_is_markup() -> None:
    """A model's name comes from elsewhere."""
    profile, _ = find(Sandboxes())
    text = page(profile, words(profile))
    assert text.count("<svg") == 2
    assert text.count("<polygon") == 4
    assert text.count("<circle") == 4
    assert "<b>" not in text
    assert "a &lt;b&gt;" in text
