"""Variants: their names, and the kernelspecs that come along for them."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from kernel_provider import cli, variants
from kernel_provider.builder.context import find_folder
from kernel_provider.ceilings import Ceilings
from kernel_provider.commands.install import display_name_of
from kernel_provider.policy import parse_policy

PLACE = "share/jupyter/kernels"
SHIPPED = variants.shipped()


def written(prefix: Path, name: str) -> dict[str, Any]:
    """The kernel.json below a prefix."""
    spec: dict[str, Any] = json.loads((prefix / PLACE / name / "kernel.json").read_text())
    return spec


def test_each_requirement_file_has_what_belongs_to_it() -> None:
    """Lock, notebook, kernelspec; and no kernelspec is without a requirement file."""
    folder = find_folder() / "stacks/current"
    found = {path.stem for path in folder.glob("*.in")} - {"common", "ml"}
    assert sorted(found) == SHIPPED
    for name in found:
        assert (folder / f"{name}.lock").exists()
        assert (folder / f"{name}.ipynb").exists()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_kernelspec_is_what_install_writes(name: str, tmp_path: Path) -> None:
    """But for the launcher's path; its display name tells its limits."""
    assert cli.main(["install", "--prefix", str(tmp_path), "--variant", name]) == 0
    ours = f"executor-ml-{name}"
    spec = written(tmp_path, ours)
    folder = variants.folder_of(name)
    assert folder
    shipped = json.loads((folder / "kernel.json").read_text())
    assert spec["argv"][1:] == shipped["argv"][1:] == ["launch", "--kernel", ours, spec["argv"][4]]
    assert {**spec, "argv": 0} == {**shipped, "argv": 0}
    config = variants.config_of(folder)
    assert config["image"] == f"{ours}:latest"
    policy = parse_policy(config, ceilings=Ceilings(), source="test")
    assert spec["display_name"] == display_name_of(policy)
    assert spec["display_name"].startswith(f"Python ({name} sandbox, ")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_variant_has_logos_of_its_own(name: str, tmp_path: Path) -> None:
    """In the sizes that Jupyter shows; they are installed with it."""
    cli.main(["install", "--prefix", str(tmp_path), "--variant", name])
    installed = tmp_path / PLACE / f"executor-ml-{name}"
    usual = {path.name: path.read_bytes() for path in variants.logos(variants.DEFAULT)}
    assert sorted(usual) == ["logo-32x32.png", "logo-64x64.png", "logo-svg.svg"]
    for logo, other in usual.items():
        content = (installed / logo).read_bytes()
        assert content != other
        if logo.endswith(".png"):
            side = int(logo[5:7])
            assert struct.unpack(">II", content[16:24]) == (side, side)


def test_what_is_given_goes_before_the_variants_own(tmp_path: Path) -> None:
    """Limits, and the name."""
    words = ["install", "--prefix", str(tmp_path), "--variant", "grading"]
    assert cli.main([*words, "--memory", "3g", "--name", "mine"]) == 0
    spec = written(tmp_path, "mine")
    assert spec["display_name"].startswith("Python (grading sandbox, 3 GB, ")
    config = spec["metadata"]["kernel_provisioner"]["config"]
    assert (config["memory"], config["image"]) == ("3g", "executor-ml-grading:latest")


def test_a_persons_own_file_gets_a_kernelspec_with_the_usual_logo(tmp_path: Path) -> None:
    """Named after the file; its limits are those that are given."""
    words = ["install", "--prefix", str(tmp_path), "--variant", "./geo.in", "--cpus", "2"]
    assert cli.main(words) == 0
    spec = written(tmp_path, "executor-ml-geo")
    assert spec["display_name"] == "Python (geo sandbox, 512 MB, 2 CPU, offline)"
    config = spec["metadata"]["kernel_provisioner"]["config"]
    assert config == {"image": "executor-ml-geo:latest", "cpus": 2}
    assert (tmp_path / PLACE / "executor-ml-geo/logo-svg.svg").exists()


def test_an_unknown_variant_is_refused_with_those_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is written for a typing error."""
    assert cli.main(["install", "--prefix", str(tmp_path), "--variant", "gradnig"]) == 78
    assert f"there is ml, {', '.join(SHIPPED)}, or a file of your own" in capsys.readouterr().err
    assert not (tmp_path / "share").exists()


@pytest.mark.parametrize(
    ("image", "name"),
    [
        ("executor-ml-nlp:latest", "nlp"),
        ("executor-ml-nlp", "nlp"),
        ("executor-ml:latest", ""),
        ("executor-ml-nlp:1.0", ""),
        ("registry.example/executor-ml-nlp:latest", ""),
    ],
)
def test_only_a_usual_name_stands_for_a_variant(image: str, name: str) -> None:
    """Others are shown as they are."""
    assert variants.of_image(image) == name
