"""Models in an image: found by their plain ids with nothing mounted."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from kernels import kernel, run
from sandboxes import value
from small_models import gpt2

from kernel_provider import cli, names

pytestmark = pytest.mark.container

ID = "test-lab/baked"


@pytest.fixture(scope="module")
def baked(
    image: str, engine: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """An image with a model, whose registry is gone."""
    assert image
    folder = tmp_path_factory.mktemp("baked")
    tag = f"executor-ml-test-{secrets.token_hex(4)}:latest"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXECUTOR_ML_MODELS", str(folder / "registry"))
        assert cli.main(["models", "add", f"{ID}@v1", str(gpt2(folder / "m"))]) == 0
        assert cli.main(["build", "--model", ID, "--tag", tag]) == 0
        try:
            yield tag
        finally:
            engine.images.remove(tag)


@pytest.mark.soak
def test_a_pipeline_finds_it_by_its_id(baked: str) -> None:
    """Offline; by id, revision and path, and nobody can write there."""
    code = f"""
import os
from transformers import AutoModelForCausalLM, pipeline
chat = pipeline("text-generation", model={ID!r})
said = chat("the cat sat", max_new_tokens=5, do_sample=False)[0]["generated_text"]
assert said.startswith("the cat sat"), said
for name, more in (({ID!r}, {{"revision": "v1"}}), ("/models/baked", {{}})):
    AutoModelForCausalLM.from_pretrained(name, **more)
"""
    with kernel({"image": baked}) as (_, client):
        outcome = run(client, code, timeout=120)
        assert outcome.status == "ok", outcome.error
        assert value(client, "sorted(os.listdir('/models'))") == ["baked", "hub"]
        mounts = value(client, "[l for l in open('/proc/self/mountinfo') if ' /models' in l]")
        assert mounts == []
        for attempt in ("open('/models/baked/x', 'w')", "os.remove('/models/baked/config.json')"):
            assert run(client, attempt).error["ename"] in {"OSError", "PermissionError"}


def test_it_costs_its_models_and_says_which(
    baked: str, image: str, engine: docker.DockerClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """All layers but one are the usual image's; a second build has nothing to do."""
    below, above = engine.images.get(image), engine.images.get(baked)
    layers = below.attrs["RootFS"]["Layers"]
    assert above.attrs["RootFS"]["Layers"][:-1] == layers
    assert above.attrs["Size"] - below.attrs["Size"] < 100_000
    assert above.labels[names.LABEL_MODELS] == f"{ID}@v1"
    assert above.labels[names.LABEL] == names.KIND_IMAGE
    assert cli.main(["build", "--model", ID, "--tag", baked, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["image"], told["image_id"], told["reused"]) == (baked, above.id, True)


def test_a_model_that_is_not_there_builds_nothing(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is looked for first."""
    assert image
    monkeypatch.setenv("EXECUTOR_ML_MODELS", str(tmp_path))
    assert cli.main(["build", "--model", "org/none", "--tag", "executor-ml-none"]) == 78
    assert "executor-ml build: there is no model 'org/none'" in capsys.readouterr().err
