"""What every error of the tree promises."""

import string
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.commands.reference import errors
from kernel_provider.errors import SandboxError, StaleError, from_wire

TREE: list[type[SandboxError]] = [SandboxError, *errors()]
TESTS = Path(__file__).parent.parent
UNSEEN = {
    SandboxError: "their base",
    StaleError: "whoever claims a parked sandbox goes on without it, as test_pool.py shows",
}
"""What nobody is shown."""


def sample(kind: type[SandboxError]) -> SandboxError:
    """An error of a kind with each of its fields filled in."""
    names = {
        name.split("!")[0]
        for text in (kind.summary, kind.fix)
        for _, name, _, _ in string.Formatter().parse(text)
        if name
    }
    data: dict[str, Any] = {name: f"<{name}>" for name in names}
    return kind(**data)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
class TestEveryError:
    """For each class of the tree."""

    def test_says_what_happened_and_how_to_mend_it(self, kind: type[SandboxError]) -> None:
        """Two lines, the second one beginning with Fix."""
        lines = str(sample(kind)).splitlines()
        assert len(lines) == 2
        assert lines[0]
        assert lines[1].startswith("Fix: ")

    def test_is_the_same_on_the_other_side_of_a_process(self, kind: type[SandboxError]) -> None:
        """Class, data, text and exit code survive the wire."""
        error = sample(kind)
        other = from_wire(error.to_wire())
        assert type(other) is kind
        assert (str(other), other.data, other.exit_code) == (
            str(error),
            error.data,
            error.exit_code,
        )

    def test_has_an_exit_code_that_a_shell_takes_for_a_failure(
        self, kind: type[SandboxError]
    ) -> None:
        """1 to 125: above are signals and the shell's own."""
        assert 1 <= kind.exit_code <= 125

    def test_has_no_per_cent_sign_of_its_own(self, kind: type[SandboxError]) -> None:
        """jupyter_server doubles them."""
        assert "%" not in kind.summary + kind.fix


def test_every_error_is_met_by_a_test() -> None:
    """By its name or in its own words: one that nobody has provoked may never be readable."""
    own = Path(__file__)
    texts = "".join(path.read_text("utf-8") for path in TESTS.rglob("test_*.py") if path != own)
    unmet = [
        kind.__name__
        for kind in TREE
        if kind not in UNSEEN
        and kind.__name__ not in texts
        and not any(len(part) > 12 and part.strip() in texts for part in literal(kind.summary))
    ]
    assert not unmet


def literal(text: str) -> list[str]:
    """What a format string always says, piece by piece."""
    return [words for words, _, _, _ in string.Formatter().parse(text)]


def test_data_with_braces_is_shown_as_it_is() -> None:
    """A value that looks like a format is a value."""
    assert "{0} {x}" in str(SandboxError(reason="{0} {x}"))


def test_an_unknown_name_on_the_wire_is_no_error_of_ours() -> None:
    """Nothing is made from a name that is not in the tree."""
    with pytest.raises(KeyError):
        from_wire({"error": "SystemExit", "data": {}})


def test_jupyter_shows_any_of_them() -> None:
    """Servers turn RuntimeError into words, so all are one."""
    assert issubclass(SandboxError, RuntimeError)
