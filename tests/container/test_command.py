"""The command as a shell starts it: closed pipes, and what is told without an engine."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

COMMAND = Path(sys.executable).with_name("executor-ml")


@pytest.mark.parametrize("words", [["policy"], ["completion", "bash"]])
def test_output_that_nobody_reads_is_no_error(words: list[str]) -> None:
    """``| head -1`` ends any command quietly, as SIGPIPE ends others."""
    process = subprocess.Popen(
        [COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (141, "")


def test_output_that_is_read_is_whole(tmp_path: Path) -> None:
    """What is flushed at the end is not lost."""
    done = subprocess.run(
        [COMMAND, "completion", "bash"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.endswith("executor-ml jupyter-executor-ml\n")
    assert done.stderr == ""
