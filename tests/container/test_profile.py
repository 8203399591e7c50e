"""A profile's runs in real sandboxes, and that what it recommends holds."""

import base64
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from sandboxes import value

from kernel_provider import cli
from kernel_provider.demo import model as smollm2
from kernel_provider.models.store import Registry, place
from kernel_provider.profile.memory import Kinds
from kernel_provider.profile.model import Limits, Profile, Sample, Seen, Subject, Trial, Verdict
from kernel_provider.profile.picture import HEIGHT, WIDTH, draw
from kernel_provider.profile.plan import judge
from kernel_provider.profile.subjects import of_model
from kernel_provider.profile.trial import run
from kernel_provider.steps import Note, Steps
from kernel_provider.values import MIB

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

Pair = tuple[KernelManager, BlockingKernelClient]
RUNS = 20


def notebook(folder: Path, *sources: str) -> Subject:
    """A notebook of such cells."""
    cells = [
        {"cell_type": "code", "id": f"c{n}", "metadata": {}, "outputs": [], "source": source}
        | {"execution_count": None}
        for n, source in enumerate(sources)
    ]
    path = folder / "n.ipynb"
    book = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(book))
    return Subject(name="n", notebook=path, kernel="executor-ml", overrides={}, warm=2)


def tried(subject: Subject, memory: int, *, patience: float | None = None) -> Seen:
    """One run with so many MB."""
    limits = Limits(memory=memory * MIB, cpus=1.0)
    return run(subject, limits, patience=patience, note=Note())


def test_memory_is_told_by_kind(tmp_path: Path) -> None:
    """What a cell takes of its own, in /tmp and of files, while the run goes on."""
    subject = notebook(
        tmp_path,
        "import time; held = bytearray(b'x') * (100 << 20)",
        "with open('/tmp/f', 'wb') as f: f.write(bytes(50 << 20))\ntime.sleep(0.5); print(1)",
    )
    seen = tried(subject, 512)
    assert judge(seen, files=seen.peak.files) is Verdict.FITS
    assert 120 * MIB < seen.peak.anonymous < 200 * MIB
    assert 50 * MIB <= seen.peak.shared < 60 * MIB
    assert seen.most < 512 * MIB
    assert seen.warm is not None
    assert seen.warm > 0.5
    assert seen.first is not None
    assert seen.warm < seen.first <= seen.seconds


def test_a_death_for_memory_is_seen(tmp_path: Path) -> None:
    """The last counters before it are kept."""
    seen = tried(notebook(tmp_path, "held = bytearray(b'x') * (400 << 20)"), 256)
    assert judge(seen, files=0) is Verdict.KILLED
    assert "256 MB" in seen.reason
    assert seen.samples


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """A sandbox that thrashes may go on for hours."""
    seen = tried(notebook(tmp_path, "while True: pass"), 256, patience=3)
    assert judge(seen, files=0) is Verdict.SLOW
    assert seen.seconds < 30


def profile() -> Profile:
    """Of a search that found something."""
    kinds = [
        Kinds(
            anonymous=size,
            shared=4 << 20,
            files=size // 2,
            kernel=8 << 20,
            reread=0,
            major_faults=0,
        )
        for size in (50 << 20, 300 << 20, 350 << 20)
    ]
    samples = tuple(Sample(at=2.0 * n, kinds=k) for n, k in enumerate(kinds))
    seen = Seen(samples=samples, seconds=4.0, first=3.0)
    cpus = [
        Trial(
            limits=Limits(memory=480 * MIB, cpus=cpus),
            seen=Seen(seconds=seconds),
            verdict=Verdict.FITS,
        )
        for cpus, seconds in ((0.25, 16.0), (0.5, 8.0), (1.0, 4.0), (2.0, 3.8))
    ]
    first = Trial(limits=Limits(memory=640 * MIB, cpus=2.0), seen=seen, verdict=Verdict.FITS)
    return Profile(
        subject="org/<i>model</i> $x_1$",
        memory=(first,),
        cpus=tuple(cpus),
        minimum=416 * MIB,
        recommended=Limits(memory=480 * MIB, cpus=1.0),
        complete=True,
    )


COLOURS = """
import base64, collections, io
from PIL import Image
picture = Image.open(io.BytesIO(base64.b64decode("{picture}")))
counted = collections.Counter(picture.get_flattened_data())
(picture.size, [counted[colour] for colour in {colours}], picture.getpixel((0, 0)))
"""


def test_the_plots_are_drawn_in_a_sandbox(shared_kernel: Pair) -> None:
    """On white paper, with every area and line in its colour."""
    _, client = shared_kernel
    made = draw(profile(), kernel="executor-ml", note=Note())
    colours = [(76, 120, 168, 255), (187, 187, 187, 255), (196, 78, 82, 255)]
    picture = base64.b64encode(made).decode()
    size, counts, corner = value(client, COLOURS.format(picture=picture, colours=colours))
    assert size == (WIDTH, HEIGHT)
    assert all(count > 500 for count in counts), counts
    assert corner == (255, 255, 255, 255)


# --- that it holds ------------------------------------------------------------------------


@pytest.mark.soak
def test_what_is_recommended_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SmolLM2: 20 runs without a death, and at 80 of 100 of the least it dies or thrashes."""
    monkeypatch.setenv("EXECUTOR_ML_MODELS", os.environ.get("EXECUTOR_ML_MODELS", str(tmp_path)))
    registry = Registry(place(os.environ))
    with (tmp_path / "steps").open("w") as stream:
        smollm2.prepare(registry, Steps(stream))
    capsys.readouterr()
    assert cli.main(["profile", "--model", smollm2.ID, "--save", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    entry = registry.find(smollm2.ID)
    assert (entry.memory, entry.cpus) == tuple(found["recommended"].values())
    subject = of_model(entry, registry, kernel="executor-ml", folder=tmp_path)
    files = found["over_memory"][0]["peak_files"]
    limits = Limits(**found["recommended"])
    for number in range(RUNS):
        seen = run(subject, limits, patience=None, note=Note())
        assert judge(seen, files=files) is Verdict.FITS, (number, replace(seen, samples=()))
    less = Limits(memory=int(0.8 * found["minimum"]) // MIB * MIB, cpus=limits.cpus)
    seen = run(subject, less, patience=600, note=Note())
    assert judge(seen, files=files) in {Verdict.KILLED, Verdict.THRASHES, Verdict.SLOW}
