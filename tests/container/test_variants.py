"""Variants: layers that are shared, a person's own of one file, and those that come along."""

import json
import secrets
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest
from image_files import files_of, rule_breakers
from kernels import kernel, manager, run
from pages import read, rows, typed
from sandboxes import value

from kernel_provider import cli, names, variants
from kernel_provider.builder import BuildRequest
from kernel_provider.builder.context import read_context
from kernel_provider.ceilings import Ceilings
from kernel_provider.commands.install import gpus_of
from kernel_provider.errors import GpuError
from kernel_provider.policy import parse_policy
from kernel_provider.values import show

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]

SHIPPED = variants.shipped()
CUDA = "cuda"
TORCHS_CUDA = "13.0"
ARCHITECTURES = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"
"""What docs/images.md says of drivers and GPUs is for these."""


@pytest.fixture(scope="module", autouse=True)
def connections(engine: docker.DockerClient) -> Iterator[None]:
    """The SDK keeps up to 25 connections; give them back. It opens new ones later."""
    yield
    engine.close()


def wheel(folder: Path, name: str, *requires: str) -> None:
    """A wheel of one module, as ``pip wheel`` makes it."""
    info = f"{name}-1.0.dist-info"
    needs = "".join(f"Requires-Dist: {other}\n" for other in requires)
    texts = {
        f"{name}.py": f"import numpy\nVALUE = numpy.arange(3).sum()\nNAME = {name!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*texts, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in {**texts, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A person's file of requirements, whose packages are in a folder of wheels of theirs."""
    folder = tmp_path_factory.mktemp("own")
    wheel(folder / "wheels", "tinyone", "numpy>=1", "tinytwo")
    wheel(folder / "wheels", "tinytwo")
    (folder / "tiny.in").write_text("# mine\ntinyone\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", str(folder / "wheels"))
        yield folder / "tiny.in"


@pytest.fixture(scope="module")
def tiny(own: Path, engine: docker.DockerClient) -> Iterator[str]:
    """An image of it, on what every kernel's image stands on."""
    tag = f"executor-ml-test-{secrets.token_hex(4)}:latest"
    assert cli.main(["build", "--variant", str(own), "--tag", tag]) == 0
    try:
        yield tag
    finally:
        engine.images.remove(tag)


def layers(engine: docker.DockerClient, image: str) -> list[str]:
    """Digests of an image's layers, the lowest first."""
    found: list[str] = engine.images.get(image).attrs["RootFS"]["Layers"]
    return found


def test_one_file_makes_a_kernel(tiny: str) -> None:
    """What the file names can be imported, with what that needs, and nothing can be written."""
    with kernel({"image": tiny}) as (_, client):
        assert value(client, "[__import__(n).NAME for n in ('tinyone', 'tinytwo')]") == [
            *("tinyone", "tinytwo"),
        ]
        assert value(client, "__import__('importlib').util.find_spec('torch') is None")
        assert run(client, "open(tinyone.__file__, 'a')").status == "error"


def test_its_versions_are_locked_beside_it_with_hashes(tiny: str, own: Path) -> None:
    """Nothing that a layer below has is named again."""
    assert tiny
    lines = own.with_suffix(".lock").read_text().splitlines()
    assert [line for line in lines if "==" in line] == ["tinyone==1.0 \\", "tinytwo==1.0 \\"]
    assert sum("--hash=sha256:" in line for line in lines) == 2


def test_an_image_costs_what_is_new_and_shares_the_rest(
    tiny: str, image: str, engine: docker.DockerClient
) -> None:
    """By its layers, by its size, and by what the engine says is on the disk."""
    common = f"{names.COMMON_IMAGE}:current"
    shared = layers(engine, common)
    assert layers(engine, tiny)[:-1] == shared
    assert layers(engine, image)[: len(shared)] == shared
    assert layers(engine, common)[:-1] == layers(engine, names.BASE_IMAGE)
    below, above = (engine.images.get(name).attrs for name in (common, tiny))
    assert 0 < above["Size"] - below["Size"] < 20_000
    disk = {tag: row for row in engine.df()["Images"] for tag in row["RepoTags"] or ()}
    assert disk[tiny]["SharedSize"] == below["Size"]
    assert disk[tiny]["Size"] - disk[tiny]["SharedSize"] == above["Size"] - below["Size"]


def test_nothing_changed_means_nothing_is_built(
    tiny: str, own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the image nor the lock."""
    before = own.with_suffix(".lock").stat().st_mtime_ns
    assert cli.main(["build", "--variant", str(own), "--tag", tiny, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reused"]
    assert told["seconds"] < 3
    assert told["versions"]["tinyone"] == "1.0"
    assert own.with_suffix(".lock").stat().st_mtime_ns == before


def test_what_no_index_has_is_named(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the platform that it was looked for, before anything is built."""
    wheel(tmp_path / "wheels", "tinyold")
    (name,) = (tmp_path / "wheels").iterdir()
    name.rename(name.with_name("tinyold-1.0-cp27-cp27m-win32.whl"))
    other = tmp_path / "other.in"
    other.write_text("tinyold\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_FIND_LINKS", f"{own.parent}/wheels {tmp_path}/wheels")
        patch.setenv("PIP_NO_INDEX", "1")
        assert cli.main(["build", "--variant", str(other)]) == 65
    told = capsys.readouterr().err
    assert "finding versions for other.in: there is no wheel of tinyold for CPython 3.11" in told


# --- for GPUs -------------------------------------------------------------------------------


@pytest.fixture
def tinygpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's file whose package needs CUDA's, and wheels of both."""
    wheel(tmp_path / "wheels", "tinygpu", "nvidia-tiny-cu13")
    wheel(tmp_path / "wheels", "nvidia_tiny_cu13")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    (tmp_path / "tinygpu.in").write_text("tinygpu\n")
    return tmp_path / "tinygpu.in"


def test_what_needs_cuda_is_refused(tinygpu: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the line that a person would have to write; nothing is built."""
    assert cli.main(["build", "--variant", str(tinygpu)]) == 65
    told = capsys.readouterr().err
    assert "brings in CUDA packages that this image has no use for: nvidia-tiny-cu13" in told
    assert "put the line # gpu: cuda into your file" in told


@pytest.mark.soak
def test_with_that_line_it_is_built(tinygpu: Path, engine: docker.DockerClient) -> None:
    """On what every image stands on, and imported."""
    tinygpu.write_text(f"# gpu: cuda\n{tinygpu.read_text()}")
    tag = f"executor-ml-test-{secrets.token_hex(4)}:latest"
    assert cli.main(["build", "--variant", str(tinygpu), "--tag", tag]) == 0
    try:
        assert layers(engine, tag)[:-1] == layers(engine, f"{names.COMMON_IMAGE}:current")
        with kernel({"image": tag}) as (_, client):
            found = "[__import__(n).NAME for n in ('tinygpu', 'nvidia_tiny_cu13')]"
            assert value(client, found) == ["tinygpu", "nvidia_tiny_cu13"]
    finally:
        engine.images.remove(tag)


def test_the_kernelspec_for_gpus_does_not_start_without_one(
    image: str, engine: docker.DockerClient
) -> None:
    """In place of its image, which only the soak builds, stands the usual one."""
    if "nvidia" in engine.info()["Runtimes"]:
        pytest.skip("this engine may have GPUs to give")
    folder = variants.folder_of(CUDA)
    assert folder
    with pytest.raises(GpuError, match="the engine did not start a sandbox with GPUs: "):
        manager({**variants.config_of(folder), "image": image}).start_kernel()


@pytest.mark.soak
def test_its_torch_has_cuda_and_computes_without_a_gpu() -> None:
    """On the processor, at once: a look for GPUs that are not there does not hang."""
    assert cli.main(["build", "--variant", CUDA]) == 0
    with kernel({"image": variants.image_of(CUDA), "memory": "1g"}) as (_, client):
        assert value(client, "import torch; torch.version.cuda") == TORCHS_CUDA
        begun = time.monotonic()
        assert value(client, "torch.cuda.is_available(), torch.cuda.device_count()") == (False, 0)
        assert time.monotonic() - begun < 5
        assert value(client, "(torch.ones(3) * 2).tolist()") == [2.0, 2.0, 2.0]
        assert value(client, "torch._C._cuda_getArchFlags()") == ARCHITECTURES
        assert "NVIDIA driver" in run(client, "torch.ones(1, device='cuda')").error["evalue"]


# --- those that come along ------------------------------------------------------------------

STACK = Path("image/stacks/current")
HEAD = ("variant", "size", "on", "least memory", "limits")
TABLE = {row[0]: dict(zip(HEAD, row, strict=True)) for row in rows(read("docs/images.md"), *HEAD)}


@pytest.fixture(scope="module", params=SHIPPED)
def variant(request: pytest.FixtureRequest) -> str:
    """Each variant, built if it is not there."""
    name: str = request.param
    assert cli.main(["build", "--variant", name]) == 0
    return name


def without_gpus(variant: str, engine: docker.DockerClient) -> list[str]:
    """What installs a kernelspec that starts here, where it asks for what is not there."""
    folder = variants.folder_of(variant)
    assert folder
    asks = "gpus" in variants.config_of(folder) and "nvidia" not in engine.info()["Runtimes"]
    return ["--gpus", "none"] if asks else []


@pytest.mark.soak
def test_its_notebook_runs_in_its_kernel_within_its_limits(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: docker.DockerClient
) -> None:
    """By the commands of the page: install it, run the notebook."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    install = ["install", "--user", "--variant", variant]
    assert cli.main([*install, *without_gpus(variant, engine)]) == 0
    notebook = STACK.absolute() / f"{variant}.ipynb"
    words = f"executor-ml run {notebook} --kernel executor-ml-{variant} -o out.ipynb --json"
    done = typed(words, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["status"] == "success"


@pytest.mark.soak
def test_it_has_nothing_that_an_image_must_not_have(
    variant: str, engine: docker.DockerClient
) -> None:
    """As the usual image: installers, compilers, headers, programs that raise rights."""
    assert rule_breakers(files_of(engine, variants.image_of(variant))) == []


@pytest.mark.soak
def test_its_size_is_the_documented_one_and_the_rest_is_shared(
    variant: str, engine: docker.DockerClient
) -> None:
    """One layer on the image that its file names."""
    row = TABLE[variant]
    size = engine.images.get(variants.image_of(variant)).attrs["Size"] / 1e6
    assert abs(size - float(row["size"].split()[0])) < 5, f"it has {size:.0f} MB"
    below = names.IMAGE if row["on"] == "ml" else f"{names.COMMON_IMAGE}:current"
    assert layers(engine, variants.image_of(variant))[:-1] == layers(engine, below)


def test_the_page_has_the_limits_that_kernelspecs_give() -> None:
    """Of each variant that comes along, and of no other."""
    assert sorted(TABLE) == SHIPPED
    for name, row in TABLE.items():
        folder = variants.folder_of(name)
        assert folder
        policy = parse_policy(variants.config_of(folder), ceilings=Ceilings(), source="test")
        told = f"{show('memory', policy.memory)}, {policy.cpus:g} CPU"
        assert row["limits"] == (f"{told}, {gpus_of(policy.gpus)}" if policy.gpus else told)
        assert row["on"] == read_context(BuildRequest(variant=name)).layers[-2].name
