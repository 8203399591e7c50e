import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest
from image_files import (
    building_material,
    closed,
    files_of,
    forbidden_programs,
    installer_modules,
    privileged,
)
from pages import typed

from kernel_provider import names
from kernel_provider.builder import BuildRequest, Event, base, build
from kernel_provider.builder.build import OFFLINE
from kernel_provider.builder.context import read_context
from kernel_provider.builder.images import Images
from kernel_provider.builder.wheels import cache_folder, collect
from kernel_provider.engines.docker import find_socket

pytestmark = pytest.mark.container

IMPORTS = """
import warnings
warnings.simplefilter("error")
import bz2, ctypes, curses, lzma, multiprocessing, readline, sqlite3, ssl, uuid, zlib
import zoneinfo
zoneinfo.ZoneInfo("Europe/Paris")
sqlite3.connect("/tmp/a.db").execute("create table t (a)")
warnings.simplefilter("default")
import accelerate, gguf, ipykernel.kernelapp, ipywidgets, numpy, safetensors.torch
import pandas, torch, tqdm.auto, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.savefig("/tmp/a.png")
plt.savefig("/tmp/a.pdf")
model = torch.nn.Linear(2, 2)
model(torch.ones(2)).sum().backward()
assert pandas.DataFrame({"a": numpy.arange(3)}).describe().loc["mean", "a"] == 1
"""

ENVIRONMENT = {
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": "/tmp/transformers_cache",
    "HF_HUB_CACHE": "/models/hub",
    "HUGGINGFACE_HUB_CACHE": "/models/hub",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HOME": "/tmp/home",
    "USER": "sandbox",
    "LOGNAME": "sandbox",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, kw_only=True)
class Output:
    """How a program in the image ended, and what it wrote."""

    code: int
    out: str
    err: str


def run(engine: docker.DockerClient, image: str, program: str) -> Output:
    """Run a Python program as any user, without a network, on a read-only root."""
    container = engine.containers.create(
        image,
        ["-c", program],
        entrypoint=[names.SANDBOX_PYTHON],
        labels={names.LABEL: "test"},
        user="12345:12345",
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        tmpfs={"/tmp": "rw,nosuid,nodev,size=128m"},
    )
    try:
        container.start()
        code = container.wait(timeout=120)["StatusCode"]
        out = container.logs(stdout=True, stderr=False).decode()
        err = container.logs(stdout=False, stderr=True).decode()
    finally:
        container.remove(force=True)
    return Output(code=code, out=out, err=err)


@pytest.fixture(scope="module", autouse=True)
def connections(engine: docker.DockerClient) -> Iterator[None]:
    """The SDK keeps up to 25 connections; give them back. It opens new ones later."""
    yield
    engine.close()


@pytest.fixture(scope="module")
def files(engine: docker.DockerClient, image: str) -> list[tarfile.TarInfo]:
    """Every file of the image, as the engine exports it."""
    return files_of(engine, image)


def test_no_installer_compiler_or_privileged_program_is_in_the_image(
    files: list[tarfile.TarInfo],
) -> None:
    """What could install, build, fetch or raise rights is gone, not hidden."""
    assert forbidden_programs(files) == []


def test_no_installer_is_importable(
    engine: docker.DockerClient, image: str, files: list[tarfile.TarInfo]
) -> None:
    """No module of an installer, nowhere; Python agrees."""
    assert installer_modules(files) == []
    program = "import importlib.util as u; print([m for m in {} if u.find_spec(m)])"
    modules = (
        "pip",
        "setuptools",
        "ensurepip",
        "pkg_resources",
        "easy_install",
        "_distutils_hack",
    )
    assert run(engine, image, program.format(modules)).out.strip() == "[]"


def test_no_headers_objects_or_package_lists_are_in_the_image(
    files: list[tarfile.TarInfo],
) -> None:
    """Nothing to compile with, and no trace of a package manager."""
    assert building_material(files) == []


def test_nothing_in_the_image_raises_rights(files: list[tarfile.TarInfo]) -> None:
    """No setuid or setgid file, no device node, and only /tmp is open to everyone."""
    assert privileged(files) == []


def test_everybody_can_read_what_a_kernel_needs(files: list[tarfile.TarInfo]) -> None:
    """The uid in a sandbox is one that the image has never heard of."""
    assert closed(files) == []


def test_bytecode_is_there_and_stays_valid(
    engine: docker.DockerClient, image: str, files: list[tarfile.TarInfo]
) -> None:
    """What a kernel imports at its start is compiled, and no time stamp is compared."""
    compiled = {file.name for file in files if file.name.endswith(".pyc")}
    packages = (
        "torch/__init__",
        "transformers/__init__",
        "ipykernel/kernelapp",
        "zmq/__init__",
    )
    for module in packages:
        folder, _, name = module.rpartition("/")
        assert any(f"{folder}/__pycache__/{name}.cpython-311.pyc" in path for path in compiled)
    program = (
        "import pathlib, struct, torch, json\n"
        "kinds = [struct.unpack('<I', p.read_bytes()[4:8])[0]"
        " for p in pathlib.Path('/opt/venv').rglob('*.pyc')]\n"
        "print(json.dumps([len(kinds), sorted(set(kinds))]))"
    )
    count, kinds = json.loads(run(engine, image, program).out)
    assert count > 1000
    assert kinds == [1]


def test_everything_imports_quietly_as_any_user(engine: docker.DockerClient, image: str) -> None:
    """Read-only root, unknown uid, empty /tmp, no network: no error and no warning."""
    result = run(engine, image, IMPORTS)
    assert result == Output(code=0, out="", err="")


def test_a_model_is_made_saved_loaded_and_asked(engine: docker.DockerClient, image: str) -> None:
    """The removals left what inference, data loaders and completion need."""
    program = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel, AutoModelForCausalLM
torch.manual_seed(0)
config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=9, eos_token_id=8)
GPT2LMHeadModel(config).save_pretrained("/tmp/model")
model = AutoModelForCausalLM.from_pretrained("/tmp/model")
print(model.generate(torch.tensor([[1, 2]]), max_new_tokens=3, do_sample=False).shape)
loader = torch.utils.data.DataLoader(list(range(10)), batch_size=2, num_workers=2)
print(len(list(loader)))
import jedi
print([c.name for c in jedi.Interpreter("import os; os.path.joi", [{}]).complete()])
"""
    result = run(engine, image, program)
    assert result.out == "torch.Size([1, 5])\n5\n['join']\n", result.err


def test_labels_say_what_the_image_is(image: str, facts: dict[str, Any]) -> None:
    """A host can tell whether it understands the image, without starting it."""
    assert image
    labels = facts["Config"]["Labels"]
    assert labels[names.LABEL] == names.KIND_IMAGE
    assert labels[names.LABEL_PROTOCOL] == str(names.PROTOCOL)
    assert labels[names.LABEL_STACK] == "current"
    assert labels[names.LABEL_VARIANT] == "ml"
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", labels[names.LABEL_LOCK])
    versions = dict(pair.split("=") for pair in labels[names.LABEL_VERSIONS].split())
    assert versions["python"].startswith("3.11.")
    assert {"torch", "transformers", "ipykernel"} < set(versions)


@pytest.fixture
def facts(engine: docker.DockerClient, image: str) -> dict[str, Any]:
    """What the engine says of the image."""
    found: dict[str, Any] = engine.images.get(image).attrs
    return found


def test_the_environment_keeps_libraries_offline_and_in_tmp(facts: dict[str, Any]) -> None:
    """Offline, no telemetry, one thread, and nothing written outside /tmp."""
    found = dict(line.split("=", 1) for line in facts["Config"]["Env"])
    assert ENVIRONMENT.items() <= found.items()
    assert "TRANSFORMERS_CACHE" not in found
    folders = {key for key in found if key.endswith(("_DIR", "DIR", "_HOME"))}
    folders -= {"TZDIR"}  # the one that is only read: where time zones are
    assert len(folders) > 10
    assert all(found[key].startswith("/tmp/") for key in folders)


def test_the_image_starts_the_guardian_as_nobody_in_particular(
    facts: dict[str, Any],
) -> None:
    """Not as root, even when somebody runs the image by hand."""
    assert facts["Config"]["User"] == "65532:65532"
    assert facts["Config"]["Entrypoint"] == [
        *(names.SANDBOX_PYTHON, "-I", "-S", names.SANDBOX_GUARDIAN),
    ]


def test_the_image_is_small_and_stands_on_the_base(
    engine: docker.DockerClient, facts: dict[str, Any]
) -> None:
    """At most 0.9 GB, in three layers, of which other images share the first two."""
    assert facts["Size"] <= 900_000_000
    base = engine.images.get(names.BASE_IMAGE).attrs
    assert base["Size"] < 120_000_000
    common = engine.images.get(f"{names.COMMON_IMAGE}:current").attrs
    layers, shared = (found["RootFS"]["Layers"] for found in (facts, common))
    assert layers[:-1] == shared
    assert shared[:-1] == base["RootFS"]["Layers"]
    assert base["Config"]["Labels"][names.LABEL_PROTOCOL] == str(names.PROTOCOL)


def test_the_base_has_python_and_the_guardian_and_nothing_installed(
    engine: docker.DockerClient, image: str
) -> None:
    """Every variant stands on the same bare interpreter."""
    assert image
    program = (
        "import importlib.metadata, os, sys\n"
        "assert sys.version_info[:2] == (3, 11)\n"
        f"assert os.access({names.SANDBOX_GUARDIAN!r}, os.R_OK)\n"
        "print([d.name for d in importlib.metadata.distributions()])"
    )
    assert run(engine, names.BASE_IMAGE, program) == Output(code=0, out="[]\n", err="")


def test_nothing_changed_means_nothing_is_built(image: str) -> None:
    """The second build answers in less than 3 s with the same image."""
    events: list[Event] = []
    result = build(BuildRequest(), events.append)
    assert result.reused
    assert result.image == image
    assert result.seconds < 3
    assert events == []


@pytest.mark.soak
def test_plain_docker_build_makes_the_same_from_wheels(
    engine: docker.DockerClient, image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the page's command, without a network; all but the base is one layer."""
    monkeypatch.setenv("DOCKER_BUILDKIT", "0")
    context = read_context(BuildRequest())
    folder = Path(shutil.copytree(context.folder, tmp_path / "image"))
    for layer in context.layers:
        for wheel in collect(layer, context.installer, image, cache_folder(os.environ), print):
            shutil.copy(wheel, folder / "wheels")
    tag = f"executor-ml-test-{secrets.token_hex(4)}:latest"
    with closing(Images(find_socket(os.environ))) as images:
        debian = base.resolve(BuildRequest(), images, print)
        options = f"--build-arg BASE_IMAGE={debian} --build-arg 'PIP_OPTIONS={OFFLINE}'"
        try:
            done = typed(f"docker build --network none {options} -t {tag} .", folder, within=900)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr
            made, usual = (engine.images.get(name).attrs for name in (tag, image))
            assert abs(made["Size"] - usual["Size"]) < 5_000_000
            assert len(made["RootFS"]["Layers"]) == 2
            assert run(engine, tag, IMPORTS).code == 0
        finally:
            for found in engine.images.list(tag):
                engine.images.remove(str(found.id), force=True)
            images.remove_unnamed(stages=True)
