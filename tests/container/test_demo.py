"""The demo as a person runs it, with the real model."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from kernel_provider.demo import model
from kernel_provider.models.store import Registry, place

pytestmark = pytest.mark.container


def demo(out: Path) -> subprocess.Popen[str]:
    """Start it; everything that it prints comes out of one pipe."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "kernel_provider.demo", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_notebook_runs_and_the_model_answers(image: str, tmp_path: Path) -> None:
    """Each cell runs, outputs are shown and saved, and the way on is told."""
    assert image
    with demo(tmp_path / "out") as process:
        text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert "Python 3." in text
    assert "Address family not supported" in text
    assert "memory 512 MB, processors 0.5" in text
    assert "The capital of France is Paris" in text
    assert "[figure, " in text
    assert "jupyter lab" in text.splitlines()[-1]
    book = nbformat.read(tmp_path / "out/demo.ipynb", as_version=4)
    assert "Paris" in str(book.cells[-1].outputs)
    assert "Paris" in (tmp_path / "out/demo.html").read_text()
    assert model.find(Registry(place(os.environ))) is not None


def test_ctrl_c_leaves_nothing(image: str, tmp_path: Path) -> None:
    """Exit code 130 in seconds, in the middle of a cell.

    That its sandbox and warden are gone is seen after the whole run, as for all tests.
    """
    assert image
    with demo(tmp_path / "out") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "cell 1 of" in line:
                break
        else:
            pytest.fail("no cell ran")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    assert process.returncode == 130
