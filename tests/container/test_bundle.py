"""From one machine to another that reaches nothing, as docs/air-gapped.md tells it."""

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import docker
import nbformat
import pytest
from bundles import LABELS, kernel_json, tar_of

from kernel_provider import cli
from kernel_provider.engines.docker import find_socket
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome

pytestmark = pytest.mark.container

DOCS = Path(__file__).parent.parent.parent / "docs" / "air-gapped.md"
EXECUTOR_ML = str(Path(sys.executable).parent / "executor-ml")
CLOSED = "http://127.0.0.1:9/simple"
"""Nobody listens there: an index that can't be reached."""


def blocks() -> list[str]:
    """The page's commands, one text for each block."""
    text = DOCS.read_text(encoding="utf-8")
    return re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def shell(script: str, environ: Mapping[str, str], cwd: Path, *, offline: bool = True) -> str:
    """Run commands as typed, the first that fails being the last; returns what they said.

    Offline is a network namespace with nothing in it, where the tests may make one.
    """
    alone = ["unshare", "--net"] if offline and os.geteuid() == 0 else []
    done = subprocess.run(
        [*alone, "sh", "-e", "-c", script],
        env=dict(environ),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Two machines: one that has everything, and one with an engine and Python."""

    image: str
    here: Mapping[str, str]
    here_folder: Path
    there: Mapping[str, str]
    there_folder: Path

    def carry(self) -> None:
        """Take the bundle over."""
        (self.here_folder / "sandbox.tar").rename(self.there_folder / "sandbox.tar")


def bare(folder: Path, socket: str, runtime: Path) -> dict[str, str]:
    """The environment of somebody with an empty home and an unreachable index."""
    home = folder / "home"
    home.mkdir()
    return {
        "HOME": str(home),
        "PATH": f"{Path(sys.base_prefix, 'bin')}:/usr/bin:/bin",
        "DOCKER_HOST": f"unix://{socket}",
        "EXECUTOR_ML_RUNTIME_DIR": str(runtime),
        "PIP_INDEX_URL": CLOSED,
    }


@pytest.fixture
def sides(engine: docker.DockerClient, tmp_path: Path, own_folders: Path) -> Iterator[Sides]:
    """A tiny image of ours, and a kernelspec that asks for it before the installed one."""
    repository = f"executor-ml-test-{secrets.token_hex(4)}"
    labels = [f"LABEL {key}={value}" for key, value in LABELS.items()]
    content = tar_of({"hello": secrets.token_bytes(100_000)})
    engine.api.import_image_from_data(content, repository=repository, tag="latest", changes=labels)
    image = f"{repository}:latest"
    specs = tmp_path / "jupyter" / "kernels"
    (specs / "executor-ml").mkdir(parents=True)
    spec = kernel_json({"image": image, "memory": "300m"})
    (specs / "executor-ml" / "kernel.json").write_bytes(spec)
    folders = [tmp_path / "here", tmp_path / "there"]
    for folder in folders:
        folder.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        yield Sides(
            image=image,
            here={**os.environ, "PATH": path, "JUPYTER_PATH": str(specs.parent)},
            here_folder=folders[0],
            there=bare(folders[1], find_socket(os.environ), own_folders),
            there_folder=folders[1],
        )
    finally:
        for row in engine.api.images(name=repository):
            engine.api.remove_image(row["Id"], force=True)
        engine.close()  # its pool; the next call opens it anew
        shutil.rmtree(folders[1])


@pytest.mark.soak
def test_the_page_works(sides: Sides, engine: docker.DockerClient, image: str) -> None:
    """Each of its commands, in order: packed here, and at work there without a network."""
    assert image
    pack, unpack, look, again = blocks()
    told = shell(pack, sides.here, sides.here_folder, offline=False)
    assert sides.image in told
    assert "tar xf sandbox.tar install.py && python3 install.py sandbox.tar" in told
    assert [path.name for path in sides.here_folder.iterdir()] == ["sandbox.tar"]
    before = engine.images.get(sides.image).id
    engine.api.remove_image(sides.image)
    sides.carry()

    told = shell(unpack, sides.there, sides.there_folder)
    assert f"images loaded:       {sides.image}" in told
    assert engine.images.get(sides.image).id == before
    assert engine.images.get(sides.image).tags == [sides.image]

    told = shell(look, sides.there, sides.there_folder)
    assert f"ok    image {sides.image}" in told
    assert re.search(r"ok +kernelspec executor-ml +memory 300 MB.*it sets image, memory", told)
    assert f"executor-ml    {sides.there_folder}/sandbox/share/jupyter/kernels" in told

    told = shell(f". sandbox/bin/activate\n{again}", sides.there, sides.there_folder)
    assert "images loaded:       none, all were there" in told

    installed = sides.there_folder / "sandbox"
    (wheels,) = installed.glob("lib/python3*/site-packages")
    assert (wheels / "kernel_provider" / "_data" / "image" / "Dockerfile").is_file()
    home = {p.name for p in (sides.there_folder / "home").rglob("*") if p.is_file()}
    assert not home, "nothing is left in the home"


def test_another_image_of_the_name_stays(sides: Sides, engine: docker.DockerClient) -> None:
    """It is told of both, and only --force takes the name from it."""
    bundle = sides.here_folder / "sandbox.tar"
    shell(blocks()[0], sides.here, sides.here_folder, offline=False)
    bundled = engine.images.get(sides.image).id
    engine.api.remove_image(sides.image)
    repository, _, tag = sides.image.partition(":")
    engine.api.import_image_from_data(tar_of({"other": b"1"}), repository=repository, tag=tag)
    other = engine.images.get(sides.image).id
    assert other is not None
    try:
        words = [EXECUTOR_ML, "unbundle", str(bundle), "--prefix", str(sides.there_folder)]
        environ = dict(sides.here)
        done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 73
        assert f"the image {sides.image} is there already as {other[:19]}" in done.stderr
        assert engine.images.get(sides.image).id == other
        assert not (sides.there_folder / "share").exists()
        done = subprocess.run(
            [*words, "--force", "--json"], env=environ, capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout)["loaded"] == [sides.image]
        assert engine.images.get(sides.image).id == bundled
    finally:
        engine.api.remove_image(other, force=True)


def test_what_cannot_be_packed_is_told(
    sides: Sides,
    engine: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Images that are missing, of others, under names of others, or for other machines."""
    monkeypatch.setenv("JUPYTER_PATH", sides.here["JUPYTER_PATH"])
    foreign, renamed = f"{sides.image.partition(':')[0]}-foreign", f"x-{sides.image}"
    engine.api.import_image_from_data(tar_of({"a": b"1"}), repository=foreign, tag="latest")
    engine.images.get(sides.image).tag(renamed)
    try:
        for words, code, told in (
            (["--image", "executor-ml-none"], 72, "the image executor-ml-none:latest is not on"),
            (["--image", foreign], 65, "is refused: executor-ml build has not made it"),
            (["--image", renamed], 65, "is refused: a bundle has images named executor-ml..."),
            (["--platform", "manylinux2014_s390x"], 65, "and the packages for s390x"),
            (["--kernelspec", "none"], 78, "there is no sandboxed kernel named 'none'"),
        ):
            assert cli.main(["bundle", str(sides.here_folder / "b.tar"), *words]) == code
            error = capsys.readouterr().err
            assert told in error
            assert "\nFix: " in error
            assert not list(sides.here_folder.iterdir())
    finally:
        for name in (foreign, renamed):
            engine.api.remove_image(name)


@pytest.mark.soak
@pytest.mark.skipif(
    os.geteuid() != 0 or engine_host.dockerd_path() is None,
    reason="only root can start an engine, and dockerd must be installed",
)
def test_a_kernel_runs_on_a_machine_of_its_own(
    image: str, tmp_path: Path, own_folders: Path
) -> None:
    """With the real image, in an engine that had nothing, without a network."""
    there, bundle = tmp_path / "there", tmp_path / "sandbox.tar"
    there.mkdir()
    done = subprocess.run(
        [EXECUTOR_ML, "bundle", bundle, "--json"], capture_output=True, text=True, check=True
    )
    packed = json.loads(done.stdout)
    print(f"{packed['size'] / 1e6:.0f} MB in {packed['seconds']:.1f} s")
    assert packed["images"] == [image]
    home = EngineHome(data=tmp_path / "data", run=own_folders / "engine")
    engine_host.start(home)
    try:
        runtime = own_folders / "there"
        runtime.mkdir(mode=0o700)
        environ = bare(there, str(home.socket), runtime)
        bundle.rename(there / "sandbox.tar")
        shell(blocks()[1], environ, there)
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("import torch\ntorch.ones(3).sum().item()")]
        )
        nbformat.write(notebook, there / "notebook.ipynb")
        told = shell("sandbox/bin/executor-ml run notebook.ipynb --show", environ, there)
        assert "3.0" in told
        shutil.rmtree(runtime)
    finally:
        engine_host.stop(home)
        shutil.rmtree(home.run)
        shutil.rmtree(home.data)
        shutil.rmtree(there)
