import hashlib
from pathlib import Path

import pytest

from kernel_provider.builder import BuildRequest
from kernel_provider.builder.context import find_folder, read_context
from kernel_provider.builder.layers import COMMON, GPU_LINE, Layer
from kernel_provider.builder.lock import is_of_cuda, read_lock, refuse_cuda, required
from kernel_provider.builder.locking import is_fresh
from kernel_provider.errors import BuildError, CudaTorchError, from_wire

CUDA_METADATA = """\
Metadata-Version: 2.1
Name: torch
Version: 2.0.1
Requires-Dist: filelock
Requires-Dist: typing-extensions
Requires-Dist: nvidia-cuda-nvrtc-cu11 (==11.7.99) ; platform_system == "Linux"
Requires-Dist: nvidia-cublas-cu11 (==11.10.3.66) ; platform_system == "Linux"
Requires-Dist: nvidia-nccl-cu11 (==2.14.3) ; platform_system == "Linux"
Requires-Dist: triton (==2.0.0) ; platform_system == "Linux"
Requires-Dist: opt-einsum (>=3.3) ; extra == 'opt-einsum'

PyTorch is a Python package that requires nvidia-driver only if you like.
"""

CPU_METADATA = """\
Metadata-Version: 2.4
Name: torch
Version: 2.13.0+cpu
Requires-Dist: filelock
Requires-Dist: typing-extensions>=4.10.0
Requires-Dist: nvidia-cudnn-cu12; extra == "gpu"
"""


def test_a_cuda_torch_is_refused_and_the_cpu_index_is_named() -> None:
    """Nobody gets gigabytes of CUDA by accident, and everybody learns the way out."""
    with pytest.raises(CudaTorchError) as caught:
        refuse_cuda("torch-2.0.1-cp311-linux_x86_64.whl", required(CUDA_METADATA))
    text = str(caught.value)
    assert "torch-2.0.1-cp311-linux_x86_64.whl" in text
    assert "nvidia-cublas-cu11, nvidia-cuda-nvrtc-cu11, nvidia-nccl-cu11, ..." in text
    assert "https://download.pytorch.org/whl/cpu" in text
    assert f"put the line {GPU_LINE} into your file of requirements" in text


def test_a_refusal_survives_the_wire() -> None:
    """Another process shows the same words."""
    error = CudaTorchError(what="a", packages="b", index="c")
    again = from_wire(error.to_wire())
    assert str(again) == str(error)
    assert isinstance(again, BuildError)


def test_a_cpu_torch_passes() -> None:
    """An extra that nobody asked for is no requirement."""
    assert required(CPU_METADATA) == ["filelock", "typing-extensions"]
    refuse_cuda("torch", required(CPU_METADATA))


@pytest.mark.parametrize("layer", ["ml", "cuda"])
def test_only_a_layer_for_gpus_has_a_torch_with_cuda(layer: str) -> None:
    """Of those that we ship: a lock that was written for the wrong one is found here."""
    (*_, top) = read_context(BuildRequest(variant=layer)).layers
    pins = top.pins()
    assert top.gpu is (layer == "cuda")
    assert pins["torch"].endswith("+cpu") is not top.gpu
    assert any(is_of_cuda(name) for name in pins) is top.gpu


@pytest.mark.parametrize("name", ["nvidia-nccl-cu12", "triton", "cuda-bindings", "NVIDIA_x"])
def test_each_kind_of_cuda_package_is_known(name: str) -> None:
    """Old and new names of what CUDA builds of torch require."""
    with pytest.raises(CudaTorchError):
        refuse_cuda("the lock", ["filelock", name])


def test_a_lock_is_read_by_normalised_name() -> None:
    """Hashes, comments and spelling do not get in the way; the later file wins."""
    first = "# comment\nJinja2==3.1.6 \\\n    --hash=sha256:00\nruamel.yaml==1.0\n"
    second = "ruamel_yaml==2.0 ; python_version > '3'\n"
    assert read_lock([first, second]) == {"jinja2": "3.1.6", "ruamel-yaml": "2.0"}


def locks() -> list[Path]:
    """All locks with hashes that we ship."""
    return sorted(find_folder().glob("stacks/**/*.lock"))


@pytest.mark.parametrize("path", locks(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_pin_of_our_locks_has_a_hash(path: Path) -> None:
    """Wheels that somebody has exchanged do not get into an image."""
    text = path.read_text()
    entries = [line for line in text.splitlines() if "==" in line]
    assert entries
    assert text.count("--hash=sha256:") == len(entries)
    length = len(hashlib.sha256().hexdigest())
    hashes = [line.rpartition("sha256:")[2] for line in text.splitlines() if "--hash" in line]
    assert all(len(digest) == length for digest in hashes)


def layers() -> list[Layer]:
    """All layers that we ship."""
    found: list[Layer] = []
    for path in sorted(find_folder().glob("stacks/*/*.in")):
        if path.stem != COMMON:
            request = BuildRequest(stack=path.parent.name, variant=path.stem)
            found += read_context(request).layers
    return list({layer.requirements: layer for layer in found}.values())


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: f"{layer.stack}-{layer.name}")
def test_each_lock_is_of_its_requirements_and_of_what_is_below(layer: Layer) -> None:
    """Who changes a requirement, or a layer, must write the locks again."""
    assert is_fresh(layer), f"run: python3 -m kernel_provider.builder.relock {layer.stack}"
    assert not set(layer.pins()) & set(layer.pins_below())
    assert set(layer.named()) <= {*layer.pins(), *layer.pins_below()}


def test_the_stacks_hold_what_was_promised() -> None:
    """Versions that documents name, and nothing that images must not hold."""
    stacks = find_folder() / "stacks"
    names = ("common.lock", "ml.lock", "ml.unhashed")
    files = {stack: [stacks / stack / name for name in names] for stack in ("current", "2023")}
    current, old = (
        read_lock(path.read_text() for path in files[stack] if path.exists()) for stack in files
    )
    assert current["torch"] == "2.13.0+cpu"
    assert old["torch"] == "2.0.1+cpu"
    assert old["transformers"] == "4.35.0"
    assert old["numpy"].startswith("1.")
    for lock in (current, old):
        refuse_cuda("the lock", lock)
        assert {
            "accelerate",
            "gguf",
            "ipykernel",
            "ipywidgets",
            "matplotlib",
            "numpy",
        } < set(lock)
        assert {"pandas", "safetensors", "torch", "tqdm", "transformers"} < set(lock)
        assert not {"pip", "setuptools", "wheel"} & set(lock)
