"""Transformers 4.35 in real sandboxes: models are found by their ids as with version 5.

The image is the stack 2023, but for its torch, whose build for processors is on PyTorch's
own index only: here it is the current stack's.
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from kernels import kernel, run
from sandboxes import look, session_of, value, written
from small_models import ASK, gpt2, hub_cache

from kernel_provider import cli, names
from kernel_provider.builder.bake import bake_on
from kernel_provider.builder.build import build
from kernel_provider.builder.context import find_folder
from kernel_provider.builder.model import BuildRequest, BuildResult

pytestmark = [pytest.mark.container, pytest.mark.soak, pytest.mark.usefixtures("image")]

ID = "test-lab/tiny-gpt2"
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


@pytest.fixture(scope="module")
def stack(
    image: str, engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BuildResult]:
    """The image: a stack like 2023 with the current torch, under a name of its own."""
    assert image
    folder = tmp_path_factory.mktemp("stack") / "image"
    shutil.copytree(find_folder(), folder)
    name = f"test-{secrets.token_hex(4)}"
    stack = folder / "stacks" / name
    shutil.copytree(folder / "stacks/2023", stack)
    (stack / "ml.unhashed").unlink()
    current = (folder / "stacks/current/ml.lock").read_text()
    (torch,) = re.findall(r"^torch==(?:.*\\\n)*.*$", current, re.MULTILINE)
    with (stack / "ml.lock").open("a") as lock:
        lock.write(f"{torch}\n")
    request = BuildRequest(stack=name, tag=f"executor-ml-{name}:latest", context=folder)
    try:
        yield build(request, lambda _event: None)
    finally:
        for made in (request.image, f"{names.COMMON_IMAGE}:{name}"):
            if engine.images.list(name=made):
                engine.images.remove(made)


@pytest.fixture(scope="module", autouse=True)
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with the model."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXECUTOR_ML_MODELS", str(folder / "registry"))
        assert cli.main(["models", "add", f"{ID}@v1", str(gpt2(folder / "m"))]) == 0
        yield folder / "registry"


def test_a_model_of_the_registry(stack: BuildResult, engine: docker.DockerClient) -> None:
    """Without a word on stderr of caches and networks, and nothing written but in /tmp."""
    with kernel({"image": stack.image, "models": [ID]}) as (km, client):
        container = look(session_of(km), engine).container
        before = written(container, engine)
        outcome = run(client, TALK, timeout=300)
        assert outcome.status == "ok", outcome.error
        assert outcome.result == repr(VERSIONS)
        assert "offline" not in outcome.stderr.lower()
        assert "cache" not in outcome.stderr.lower()
        assert written(container, engine) == before


def test_two_kernels_with_one_cache_of_the_host(stack: BuildResult, tmp_path: Path) -> None:
    """A folder as Hugging Face's library leaves it, links and all, mounted for both."""
    cache = hub_cache(tmp_path / "hub", ID)
    seen = sorted(path.relative_to(cache) for path in cache.rglob("*"))
    shared = {"image": stack.image, "mounts": {"/models/hub": str(cache)}}
    with kernel(shared) as (_, one), kernel(shared) as (_, other):
        for client in (one, other):
            outcome = run(client, TALK, timeout=300)
            assert outcome.status == "ok", outcome.error
            assert outcome.result == repr(VERSIONS)
    assert sorted(path.relative_to(cache) for path in cache.rglob("*")) == seen


def test_a_model_in_the_image(stack: BuildResult, engine: docker.DockerClient) -> None:
    """Baked in, with nothing mounted."""
    tag = f"executor-ml-test-{secrets.token_hex(4)}:latest"
    made = bake_on(stack, BuildRequest(models=(ID,), tag=tag), lambda _event: None)
    try:
        with kernel({"image": made.image}) as (_, client):
            outcome = run(client, TALK, timeout=300)
            assert outcome.status == "ok", outcome.error
            assert outcome.result == repr(VERSIONS)
    finally:
        engine.images.remove(made.image)


@pytest.mark.parametrize("setup", ["", WITHOUT_FLAGS], ids=["offline", "flags unset"])
def test_a_model_that_is_not_there_is_told_at_once(setup: str, stack: BuildResult) -> None:
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
