"""``executor-ml verify``: what is printed of a run, and what it ends with."""

import argparse
import json
from collections.abc import Callable
from typing import cast

import pytest

from kernel_provider.cli import make_parser
from kernel_provider.commands import verify
from kernel_provider.verify.checks import GROUPS
from kernel_provider.verify.judges import both, none, refused
from kernel_provider.verify.look import Look
from kernel_provider.verify.model import Report, Result, Status, Verdict, verdict

LOOK = cast("Look", None)
"""These judges do not look."""


def result(name: str, status: Status, group: str = "network") -> Result:
    """A row."""
    return Result(
        group=group,
        name=name,
        promise=f"promise of {name}",
        tried=f"attack on {name}",
        happened=f"end of {name}",
        status=status,
    )


def report(*results: Result) -> Report:
    """A run with these rows."""
    return Report(
        kernel="ml", image="i:1", engine="20.10", cgroup=1, seconds=12.3, checks=tuple(results)
    )


def run(
    monkeypatch: pytest.MonkeyPatch, made: Report, *, as_json: bool, tell: str = "a check"
) -> int:
    """The command, over a run that has been."""

    async def fake(_name: str, progress: Callable[[str], None]) -> Report:
        progress(tell)
        return made

    monkeypatch.setattr(verify, "verify", fake)
    return verify.main(argparse.Namespace(kernel="ml", json=as_json))


def test_the_table_has_promise_attack_and_end_by_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what it ran on first, and the sum last."""
    made = report(
        result("a", Status.HELD),
        result("b", Status.NOT_APPLICABLE),
        result("c", Status.HELD, group="files"),
    )
    assert run(monkeypatch, made, as_json=False) == 0
    out, told = capsys.readouterr()
    assert out.splitlines() == [
        "kernel ml, image i:1, engine 20.10",
        "control groups of version 1",
        "",
        "NETWORK",
        "held            a: promise of a",
        "                tried: attack on a",
        "                happened: end of a",
        "not applicable  b: promise of b",
        "                tried: attack on b",
        "                happened: end of b",
        "",
        "FILES",
        "held            c: promise of c",
        "                tried: attack on c",
        "                happened: end of c",
        "",
        "2 held, 1 not applicable (12.3 s)",
    ]
    assert "verifying ml: 3 checks" in told


@pytest.mark.parametrize("as_json", [False, True])
def test_one_promise_that_did_not_hold_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, as_json: bool
) -> None:
    """Whatever the others did."""
    made = report(result("a", Status.HELD), result("b", Status.NOT_HELD))
    assert run(monkeypatch, made, as_json=as_json) == 1
    assert "not held" in capsys.readouterr().out


def test_json_is_one_object(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the sum, what it ran on, and the list of checks."""
    run(monkeypatch, report(result("a", Status.HELD)), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told.pop("checks") == [
        {
            "group": "network",
            "name": "a",
            "promise": "promise of a",
            "tried": "attack on a",
            "happened": "end of a",
            "status": "held",
        }
    ]
    assert told == {
        "held": True,
        "kernel": "ml",
        "image": "i:1",
        "engine": "20.10",
        "cgroup": 1,
        "seconds": 12.3,
    }


def test_colours_and_narrow_terminals() -> None:
    """Words keep their colours and lines their column."""
    made = report(result("a", Status.NOT_HELD))
    lines = verify.table(made, colour=True, width=38).splitlines()
    assert lines[4].startswith("\x1b[31mnot held")
    assert lines[5].startswith(" " * 16)
    assert max(map(len, lines[5:-1])) <= 38


def test_the_kernel_is_the_usual_one_unless_named() -> None:
    """--kernel names another."""
    parser = make_parser("verify")
    assert parser.parse_args(["verify"]).kernel == "executor-ml"
    assert parser.parse_args(["verify", "--kernel", "x"]).kernel == "x"


def test_there_are_enough_checks_of_each_group() -> None:
    """The groups of the threat model, with names of one's own, all in words."""
    checks = [check for group in GROUPS.values() for check in group]
    assert len(GROUPS) == 9
    assert len(checks) >= 100
    assert len({check.name for check in checks}) == len(checks)
    assert all(check.promise and check.tried for check in checks)
    assert min(map(len, GROUPS.values())) >= 6


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"a": "EPERM", "b": "ENOSYS"}, Status.HELD),
        ({"a": "EPERM", "b": "done"}, Status.NOT_HELD),
        ({"a": "EPERM", "b": "EFAULT"}, Status.NOT_HELD),
        ({}, Status.NOT_HELD),
    ],
)
def test_only_the_right_refusals_hold(told: dict[str, str], status: Status) -> None:
    """Another error is no refusal, and nothing tried is nothing held."""
    assert refused("EPERM", "ENOSYS")(told, LOOK).status is status


def test_none_means_none() -> None:
    """And what was found is told, some of it."""
    assert none("files")([], LOOK) == verdict(held=True, happened="files: none")
    told = none("files")(list("abcdef"), LOOK)
    assert told == verdict(held=False, happened="files: a, b, c, d and 2 more")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_both_judges_must_say_so(*, first: bool, second: bool) -> None:
    """The word of one that did not is the one that is told."""

    def judge(*, held: bool, name: str) -> Callable[[object, Look], Verdict]:
        return lambda _report, _look: verdict(held, name)

    word = both(judge(held=first, name="one"), judge(held=second, name="two"))(None, LOOK)
    assert word.status is (Status.HELD if first and second else Status.NOT_HELD)
    assert word.happened == ("two" if first and not second else "one")
