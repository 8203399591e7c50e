import io
import tarfile
from pathlib import Path

import pytest

from kernel_provider.builder import BuildRequest
from kernel_provider.builder.context import (
    base_digest,
    find_folder,
    image_digest,
    read_context,
    write_base_tar,
    write_tar,
)
from kernel_provider.errors import BuildError, ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small image folder with two stacks and a variant."""
    files = {
        "Dockerfile": "# words\nARG BASE_IMAGE\nARG BELOW=base\n\nFROM a AS root\n# more\n"
        "FROM ${BELOW} AS below\nFROM below\n",
        "launcher/guardian.py": "pass\n",
        "steps/strip_root.sh": "true\n",
        "steps/skeleton.sh": "true\n",
        "steps/trim.py": "pass\n",
        "stacks/pip.lock": "pip==1\n",
        "stacks/current/common.in": "numpy\n",
        "stacks/current/common.lock": "numpy==1\n",
        "stacks/current/ml.in": "-r common.in\ntorch\n",
        "stacks/current/ml.lock": "torch==1\n",
        "stacks/current/nlp.in": "-r ml.in  # has torch\nDatasets[x]>1\n",
        "stacks/current/nlp.lock": "datasets==1\nxxhash==1\n",
        "stacks/2023/common.in": "numpy\n",
        "stacks/2023/common.lock": "numpy==0\n",
        "stacks/2023/ml.in": "torch\n",
        "stacks/2023/ml.lock": "transformers==1\n",
        "stacks/2023/ml.unhashed": "torch==2.0.1+cpu\n",
        "wheels/README.md": "nothing\n",
    }
    for name, text in files.items():
        path = tmp_path / "image" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "image"


def digests(folder: Path, **changes: str) -> tuple[str, str]:
    """Digests of base and image for a request."""
    request = BuildRequest(context=folder, **changes)  # type: ignore[arg-type]
    context = read_context(request)
    return base_digest(context, request), image_digest(context, request)


def names_of(folder: Path, variant: str) -> list[str]:
    """The layers of a variant, the lowest first."""
    layers = read_context(BuildRequest(context=folder, variant=variant)).layers
    return [layer.name for layer in layers]


def test_an_unknown_stack_or_variant_is_refused_with_those_there_are(folder: Path) -> None:
    """A typing error does not start a build."""
    with pytest.raises(ConfigError, match="2023, current") as caught:
        read_context(BuildRequest(context=folder, stack="2024"))
    assert "--" not in str(caught.value)
    for variant in ("npl", "common"):
        with pytest.raises(ConfigError, match="there is ml, nlp, or a file"):
            read_context(BuildRequest(context=folder, variant=variant))


def test_variants_are_for_the_current_stack(folder: Path) -> None:
    """The error says so, whether the other one would know the variant or not."""
    with pytest.raises(ConfigError, match="2023 has ml only; variants are for current"):
        read_context(BuildRequest(context=folder, stack="2023", variant="nlp"))


def test_a_variant_is_a_layer_on_what_its_file_names(folder: Path) -> None:
    """Its pins are what no layer below has; its image has a name of its own."""
    top = read_context(BuildRequest(context=folder, variant="nlp")).layers[-1]
    assert names_of(folder, "nlp") == ["common", "ml", "nlp"]
    assert top.pins() == {"datasets": "1", "xxhash": "1"}
    assert top.pins_below() == {"numpy": "1", "torch": "1"}
    assert top.named() == ("datasets",)
    assert BuildRequest(variant="nlp").image == "executor-ml-nlp:latest"
    assert BuildRequest().image == "executor-ml:latest"
    assert BuildRequest(tag="mine:1").image == "mine:1"


def test_one_file_in_the_folder_is_a_variant(folder: Path) -> None:
    """Without a word on what it stands on, it stands on the lowest layer."""
    (folder / "stacks/current/geo.in").write_text("shapely\n")
    assert names_of(folder, "geo") == ["common", "geo"]


def test_a_persons_own_file_is_a_variant_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    """Its lock belongs beside it."""
    own = tmp_path / "geo.in"
    own.write_text("-r ml.in\nshapely\n")
    request = BuildRequest(context=folder, variant=str(own))
    top = read_context(request).layers[-1]
    assert names_of(folder, str(own)) == ["common", "ml", "geo"]
    assert (top.ours, top.lock) == (False, tmp_path / "geo.lock")
    assert request.image == "executor-ml-geo:latest"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("gone.in", None, "there is no such file"),
        ("nlp.in", "shapely", "nlp is a variant already"),
        ("Geo.in", "shapely", "called NAME.in, with letters"),
        ("./geo.txt", "shapely", "called NAME.in, with letters"),
        ("geo.in", "-r gpu.in", "geo.in can stand on one of common, ml, nlp: -r NAME.in"),
        ("geo.in", "-r ml.in\n-r nlp.in", "can stand on one of"),
        ("geo.in", "# gpu: rocm\nshapely", "asks for rocm: the line is # gpu: cuda"),
        ("geo.in", "# gpu: cuda\n-r ml.in", "ml has the PyTorch for processors: put it on common"),
        ("geo.in", "-r nlp.in\n# gpu: cuda", "put it on common"),
    ],
)
def test_a_file_that_is_no_variant_says_why(
    name: str, text: str | None, reason: str, folder: Path, tmp_path: Path
) -> None:
    """Before anything is downloaded."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_context(BuildRequest(context=folder, variant=f"{tmp_path}/{name}"))


def test_a_file_says_that_it_is_for_gpus(folder: Path, tmp_path: Path) -> None:
    """By a line of its own, or by what it stands on; a remark on GPUs is a remark."""
    (folder / "stacks/current/cuda.in").write_text("# gpu: cuda\n-r common.in\ntorch\n")
    own = tmp_path / "geo.in"
    for text, gpu in {
        "shapely\n": False,
        "# gpu: none needed here\nshapely\n": False,
        "shapely  # gpu: cuda\n": False,
        "# gpu: cuda\nshapely\n": True,
        "# mine\n#gpu:cuda \n-r common.in\nshapely\n": True,
        "-r cuda.in\nshapely\n": True,
    }.items():
        own.write_text(text)
        *below, top = read_context(BuildRequest(context=folder, variant=str(own))).layers
        assert top.gpu is gpu, text
        assert [layer.gpu for layer in below] == [layer.name == "cuda" for layer in below]
        assert top.named() == ("shapely",)


def test_a_pin_without_a_hash_counts_too(folder: Path) -> None:
    """What could not be hashed is still part of the stack and of its digest."""
    top = read_context(BuildRequest(context=folder, stack="2023")).layers[-1]
    assert top.pins() == {"transformers": "1", "torch": "2.0.1+cpu"}
    before = digests(folder, stack="2023")
    (folder / "stacks/2023/ml.unhashed").write_text("torch==2.0.2+cpu\n")
    assert digests(folder, stack="2023")[1] != before[1]


@pytest.mark.parametrize(
    ("name", "base_too"),
    [
        ("Dockerfile", True),
        ("launcher/guardian.py", True),
        ("steps/strip_root.sh", True),
        ("steps/trim.py", False),
        ("stacks/pip.lock", False),
        ("stacks/current/common.lock", False),
        ("stacks/current/ml.lock", False),
        ("stacks/current/ml.ipynb", False),
    ],
)
def test_a_changed_input_changes_the_digest(folder: Path, name: str, *, base_too: bool) -> None:
    """Nothing that goes into an image can change behind the digest's back."""
    base, image = digests(folder)
    (folder / name).write_text("changed\n")
    new_base, new_image = digests(folder)
    assert new_image != image
    assert (new_base != base) is base_too


def test_what_is_not_an_input_leaves_the_digest(folder: Path, tmp_path: Path) -> None:
    """Bytecode, other stacks and variants, and the place of the folder cause no build."""
    before = digests(folder)
    (folder / "launcher/__pycache__").mkdir()
    (folder / "launcher/__pycache__/guardian.pyc").write_text("x")
    (folder / "stacks/2023/ml.lock").write_text("numpy==2\n")
    (folder / "stacks/current/nlp.lock").write_text("datasets==2\n")
    assert digests(folder) == before
    assert digests(folder.rename(tmp_path / "elsewhere")) == before


def test_the_request_is_part_of_the_digest(folder: Path) -> None:
    """Another base is another image."""
    assert digests(folder, base="python:3.11-slim") != digests(folder)
    assert digests(folder, variant="nlp")[1] != digests(folder)[1]


def test_the_tar_is_the_same_on_every_machine(folder: Path, tmp_path: Path) -> None:
    """The engine's cache answers for what did not change: no owner, mode or time is in."""
    wheel = tmp_path / "a-1-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    (folder / "wheels" / "stale-1-py3-none-any.whl").write_bytes(b"not this one")
    request = BuildRequest(context=folder)
    first, second = io.BytesIO(), io.BytesIO()
    context = read_context(request)
    write_tar(context, context.layers[-1], [wheel], first)
    (folder / "Dockerfile").touch()
    (folder / "Dockerfile").chmod(0o600)
    size = write_tar(context, context.layers[-1], [wheel], second)
    assert first.getvalue() == second.getvalue()
    assert size == len(second.getvalue())
    with tarfile.open(fileobj=second) as tar:
        names = tar.getnames()
        assert {member.mtime for member in tar} == {0}
        dockerfile = tar.extractfile("Dockerfile")
        assert dockerfile
        assert dockerfile.read().decode().splitlines() == [
            *("ARG BASE_IMAGE", "ARG BELOW=base"),
            *("FROM ${BELOW} AS below", "FROM below"),
        ]
    assert "wheels/a-1-py3-none-any.whl" in names
    assert "wheels/stale-1-py3-none-any.whl" not in names
    assert {"steps/trim.py", "stacks/current/ml.lock", "stacks/pip.lock"} < set(names)
    assert not {"launcher/guardian.py", "stacks/current/nlp.lock"} & set(names)


def test_the_base_is_sent_what_it_needs(folder: Path) -> None:
    """All of the Dockerfile, and no locks."""
    target = io.BytesIO()
    write_base_tar(read_context(BuildRequest(context=folder)), target)
    with tarfile.open(fileobj=target) as tar:
        names = set(tar.getnames())
    assert {"Dockerfile", "launcher/guardian.py", "steps/trim.py"} < names
    assert not [name for name in names if name.startswith("stacks")]


def test_a_package_without_its_image_folder_says_so(tmp_path: Path) -> None:
    """A broken installation is told from a broken build."""
    with pytest.raises(BuildError, match="install executor-ml-kernel again"):
        find_folder([tmp_path])


def test_the_first_place_that_has_a_dockerfile_is_taken(folder: Path, tmp_path: Path) -> None:
    """An installed package brings its own folder; a checkout has it beside the package."""
    assert find_folder([tmp_path / "missing", folder]) == folder
