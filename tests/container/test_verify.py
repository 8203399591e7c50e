"""The self-test, as an administrator runs it: its checks are the promises, one test each."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.verify.checks import GROUPS
from kernel_provider.verify.model import Status

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

COMMAND = Path(sys.executable).with_name("executor-ml")
EVERY = [check.name for checks in GROUPS.values() for check in checks]
ELSEWHERE = {"memory-loopback"}
"""Checks that do not apply to a kernel of the usual settings."""


@pytest.fixture(scope="module")
def run(image: str) -> subprocess.CompletedProcess[str]:
    """One run for all tests of this module."""
    assert image
    return subprocess.run(
        [COMMAND, "verify", "--json"], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def results(run: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What it says of each check."""
    return {check["name"]: check for check in json.loads(run.stdout)["checks"]}


@pytest.mark.parametrize("name", EVERY)
def test_promise(name: str, results: dict[str, dict[str, Any]]) -> None:
    """It holds in sandboxes as notebooks get them."""
    wanted = Status.NOT_APPLICABLE if name in ELSEWHERE else Status.HELD
    assert results[name]["status"] == wanted, results[name]


def test_the_run_as_a_whole(run: subprocess.CompletedProcess[str]) -> None:
    """Exit code, sum, what it ran on, and signs of life on the way."""
    report = json.loads(run.stdout)
    assert (run.returncode, report["held"]) == (0, True)
    assert [check["name"] for check in report["checks"]] == EVERY
    assert all(check["happened"] and check["tried"] for check in report["checks"])
    assert (report["kernel"], report["image"]) == ("executor-ml", "executor-ml:latest")
    assert "so far" in run.stderr
