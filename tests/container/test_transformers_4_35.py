"""Transformers 4.35 in real sandboxes: models are found by their ids as with version 5.

The image is the stack 2023, but for its torch, whose build for processors is on PyTorch's
own index only: here it is the current stack's.
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from kernels import kernel, run
from sandboxes import look, session_of, value
from small_models import gpt2

from kernel_provider import cli, names
from kernel_provider.builder.bake import bake
from kernel_provider.builder.build import build
from kernel_provider.builder.context import find_folder
from kernel_provider.builder.model import BuildRequest

pytestmark = [pytest.mark.container, pytest.mark.soak, pytest.mark.usefixtures("image")]

ID = "test-lab/tiny-gpt2"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TALK = f"""
import os, torch, transformers
from transformers import pipeline
chat = pipeline("text-generation", model={ID!r})
said = chat("the cat sat", max_new_tokens=5, do_sample=False)[0]["generated_text"]
assert said.startswith("the cat sat") and len(said) > len("the cat sat"), said
assert os.getuid() > 60000 and os.getgid() > 60000
(transformers.__version__, torch.__version__.partition("+")[0])
"""
VERSIONS = ("4.35.0", "2.13.0")
WITHOUT_FLAGS = """
import os
for name in [name for name in os.environ if 'OFFLINE' in name]:
    del os.environ[name]
"""
ASK = """
import time
from transformers import AutoModel, AutoTokenizer, pipeline
took = []
for _ in range(2):  # the first one imports a good part of the library
    begun = time.monotonic()
    try:
        {call}
    except OSError as error:
        said = f'{{type(error).__name__}}: {{error}}'
    took.append(time.monotonic() - begun)
(said, min(took))
"""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """What is built, and its image."""

    request: BuildRequest
    image: str


@pytest.fixture(scope="module")
def stack(
    image: str, engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The stack 2023 with the current torch, as a variant with a name of its own."""
    assert image
    folder = tmp_path_factory.mktemp("stack") / "image"
    shutil.copytree(find_folder(), folder)
    variant = f"test-{secrets.token_hex(4)}"
    current, old = folder / "stacks/current", folder / "stacks/2023"
    (torch,) = re.findall(
        r"^torch==.*(?:\\\n.*)*$", (current / "ml.lock").read_text(), re.MULTILINE
    )
    (old / f"{variant}.in").write_text("-r common.in\ntorch\ntransformers\n")
    (old / f"{variant}.lock").write_text(f"{(old / 'ml.lock').read_text()}{torch}\n")
    request = BuildRequest(stack="2023", variant=variant, context=folder)
    made = build(request, lambda _event: None)
    try:
        yield Stack(request=request, image=made.image)
    finally:
        engine.images.remove(made.image)
        engine.images.remove(f"{names.COMMON_IMAGE}:2023")


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with the model."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXECUTOR_ML_MODELS", str(folder / "registry"))
        assert cli.main(["models", "add", f"{ID}@v1", str(gpt2(folder / "m"))]) == 0
        yield folder / "registry"


def test_a_model_of_the_registry(stack: Stack, engine: docker.DockerClient) -> None:
    """Without a word on stderr of caches and networks, and nothing written but in /tmp."""
    with kernel({"image": stack.image, "models": [ID]}) as (km, client):
        container = look(session_of(km), engine).container
        before = engine.api.diff(container)
        outcome = run(client, TALK, timeout=180)
        assert outcome.status == "ok", outcome.error
        assert outcome.result == repr(VERSIONS)
        assert "offline" not in outcome.stderr.lower()
        assert "cache" not in outcome.stderr.lower()
        assert engine.api.diff(container) == before
        engine.close()


def test_two_kernels_with_one_cache_of_the_host(stack: Stack, tmp_path: Path) -> None:
    """A folder as Hugging Face's library leaves it, links and all, mounted for both."""
    cache = tmp_path / "hub"
    model = cache / "models--test-lab--tiny-gpt2"
    blobs = gpt2(tmp_path / "blobs")
    shutil.copytree(blobs, model / "blobs")
    (model / "snapshots" / COMMIT).mkdir(parents=True)
    for blob in (model / "blobs").iterdir():
        (model / "snapshots" / COMMIT / blob.name).symlink_to(f"../../blobs/{blob.name}")
    (model / "refs").mkdir()
    (model / "refs/main").write_text(COMMIT)
    seen = sorted(path.relative_to(cache) for path in cache.rglob("*"))
    shared = {"image": stack.image, "mounts": {"/models/hub": str(cache)}}
    with kernel(shared) as (_, one), kernel(shared) as (_, other):
        for client in (one, other):
            outcome = run(client, TALK, timeout=180)
            assert outcome.status == "ok", outcome.error
            assert outcome.result == repr(VERSIONS)
    assert sorted(path.relative_to(cache) for path in cache.rglob("*")) == seen


def test_a_model_in_the_image(stack: Stack, engine: docker.DockerClient) -> None:
    """Baked in, with nothing mounted."""
    tag = f"executor-ml-test-{secrets.token_hex(4)}:latest"
    request = BuildRequest(
        stack="2023",
        variant=stack.request.variant,
        context=stack.request.context,
        models=(ID,),
        tag=tag,
    )
    made = bake(request, lambda _event: None)
    try:
        with kernel({"image": made.image}) as (_, client):
            outcome = run(client, TALK, timeout=180)
            assert outcome.status == "ok", outcome.error
            assert outcome.result == repr(VERSIONS)
    finally:
        engine.images.remove(made.image)


@pytest.mark.parametrize("setup", ["", WITHOUT_FLAGS], ids=["offline", "flags unset"])
def test_a_model_that_is_not_there_is_told_at_once(setup: str, stack: Stack) -> None:
    """Which are there, and how to add one, in under 2 s."""
    calls = {
        "pipeline('text-generation', model='distilgpt2')": "distilgpt2",
        "AutoModel.from_pretrained('org/other')": "org/other",
        "AutoTokenizer.from_pretrained('org/other', local_files_only=False)": "org/other",
    }
    with kernel({"image": stack.image, "models": [ID], "cpus": 1}) as (_, client):
        assert run(client, setup).status == "ok"
        for call, wanted in calls.items():
            said, took = value(client, ASK.format(call=call))
            assert f"The model {wanted} is not in this sandbox" in said
            assert f"Mounted are: {ID}." in said
            assert took < 2
