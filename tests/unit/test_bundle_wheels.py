"""Which wheels a bundle carries, and for whom."""

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from kernel_provider.bundle.errors import WheelsError
from kernel_provider.bundle.model import Target, this_machine
from kernel_provider.bundle.repack import repack
from kernel_provider.bundle.wheels import (
    PACKAGE,
    closure,
    collect,
    environment,
    least,
    platforms,
    read_target,
)

LINUX = "manylinux_2_28_x86_64"

NEEDS: Mapping[str, Sequence[str]] = {
    "root": [
        "everywhere>=1",
        "Old_One; python_version < '3.12'",
        "new; python_full_version >= '3.12.0'",
        "windows; sys_platform == 'win32'",
        "arm; platform_machine == 'aarch64'",
        "extra-one; extra == 'more'",
        "inner[deep]",
    ],
    "inner": ["root", "deep-one; extra == 'deep'", "not-this; extra == 'other'"],
}


def names_for(python: str, platform: str = LINUX) -> set[str]:
    """What the root needs there."""
    there = environment(Target(python=python, platform=platform))
    return set(closure([Requirement("root")], there, lambda name: NEEDS.get(name, ())))


def test_conditions_are_asked_of_the_other_machine() -> None:
    """Whatever runs this: Python, processor, and the extras that are asked for."""
    always = {"root", "everywhere", "inner", "deep-one"}
    assert names_for("3.11") == always | {"old-one"}
    assert names_for("3.12") == always | {"new"}
    assert names_for("3.12", "manylinux_2_28_aarch64") == always | {"new", "arm"}


def test_versions_are_those_that_are_here() -> None:
    """What is not here is asked for as its user asks."""
    found = closure(
        [Requirement("pytest>=1"), Requirement("no-such-thing>=2,<3")],
        environment(this_machine()),
        lambda _: (),
    )
    assert found["pytest"] == f"pytest=={metadata.version('pytest')}"
    assert found["no-such-thing"] == "no-such-thing<3,>=2"


def test_older_platforms_count_as_well() -> None:
    """The best first; nothing newer than the machine has."""
    found = platforms(Target(python="3.12", platform=LINUX))
    assert found[0] == LINUX
    assert {"manylinux2014_x86_64", "manylinux_2_5_x86_64", "manylinux1_x86_64"} < set(found)
    assert "manylinux2014_x86_64" not in platforms(Target(python="3.12", platform=OLD))
    musl = Target(python="3.12", platform="musllinux_1_2_aarch64")
    assert platforms(musl) == [f"musllinux_1_{minor}_aarch64" for minor in (2, 1, 0)]


OLD = "manylinux_2_12_x86_64"


def test_the_oldest_platform_that_will_do_is_told() -> None:
    """A bundle made on a new system is not refused by an older one without need."""
    target = Target(python="3.12", platform="manylinux_2_36_x86_64")

    def told(*wheels: str) -> str:
        return least([Path(f"{name}.whl") for name in wheels], target).platform

    pure = "a-1-py3-none-any"
    assert told(pure) == "manylinux_2_5_x86_64"
    assert told(pure, "b-1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64") == (
        "manylinux_2_17_x86_64"
    )
    assert told("c-1-cp311-abi3-manylinux_2_28_x86_64.manylinux2010_x86_64") == OLD
    assert told(pure, "d-1-cp312-cp312-linux_x86_64") == target.platform
    musl = Target(python="3.12", platform="musllinux_1_2_x86_64")
    assert least([Path("a-1-py3-none-any.whl")], musl) == musl


def test_the_other_machine_is_this_one_by_default() -> None:
    """And older names of platforms mean the same."""
    assert read_target(None, None) == this_machine()
    assert read_target("3.13", "manylinux2014_aarch64") == Target(
        python="3.13", platform="manylinux_2_17_aarch64"
    )


@pytest.mark.parametrize(
    ("python", "platform", "told", "remedy"),
    [
        ("3.10", None, "for CPython 3.11 or newer, and not for 3.10", "such as --python 3.12"),
        ("3.11-pypy", None, "and not for 3.11-pypy", "such as --python 3.12"),
        (None, "win_amd64", "win_amd64 is no platform", "--platform manylinux_2_28_x86_64"),
    ],
)
def test_a_machine_that_cannot_be_is_refused(
    python: str | None, platform: str | None, told: str, remedy: str
) -> None:
    """Before anything is downloaded."""
    with pytest.raises(WheelsError) as caught:
        read_target(python, platform)
    assert told in str(caught.value).splitlines()[0]
    assert remedy in str(caught.value).splitlines()[1]


@pytest.mark.parametrize(
    ("extra", "told"),
    [("no-such-thing", "no-such-thing is not installed here"), ("a b", "'a b' is no requirement")],
)
def test_what_is_not_here_cannot_be_carried(tmp_path: Path, extra: str, told: str) -> None:
    """An extra is carried as it is here, or not at all."""
    with pytest.raises(WheelsError, match=told):
        collect([extra], this_machine(), tmp_path, lambda _: None)
    assert not list(tmp_path.iterdir())


def test_this_package_is_packed_from_its_installation(tmp_path: Path) -> None:
    """Code, image folder, kernelspec and entry points; nothing that pip made."""
    wheel = repack(metadata.distribution(PACKAGE), tmp_path)
    stem = f"executor_ml_kernel-{metadata.version(PACKAGE)}"
    assert wheel.name == f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        record = archive.read(f"{stem}.dist-info/RECORD").decode()
    assert {
        "kernel_provider/cli.py",
        "kernel_provider/bundle/README.txt",
        "kernel_provider/_data/image/Dockerfile",
        f"{stem}.data/data/share/jupyter/kernels/executor-ml/kernel.json",
        f"{stem}.dist-info/entry_points.txt",
        f"{stem}.dist-info/METADATA",
        f"{stem}.dist-info/WHEEL",
    } < set(inside)
    assert not [n for n in inside if ".pyc" in n or "/bin/" in n or "direct_url" in n]
    assert [line.partition(",")[0] for line in record.splitlines()] == inside
    assert repack(metadata.distribution(PACKAGE), tmp_path).read_bytes() == wheel.read_bytes()


def installed(site: Path, **direct_url: object) -> metadata.Distribution:
    """A package ``a`` as pip leaves it, with a module, a script and a kernelspec."""
    files = {
        "a.py": "",
        "../bin/a": "",
        "../share/jupyter/k.json": "{}",
        "a-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: a\nVersion: 1\n",
        "a-1.dist-info/direct_url.json": json.dumps(direct_url),
    }
    record = ""
    site.mkdir()
    for name, text in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode()
        record += f"{name},sha256={digest.rstrip('=')},{len(text)}\n"
    info = site / "a-1.dist-info"
    (info / "RECORD").write_text(record)
    return metadata.PathDistribution(info)


def test_a_kernelspec_that_was_changed_is_left_out(tmp_path: Path) -> None:
    """Its settings travel by themselves, and its program is one of this machine."""
    there = installed(tmp_path / "site")
    with zipfile.ZipFile(repack(there, tmp_path)) as archive:
        assert "a-1.data/data/share/jupyter/k.json" in archive.namelist()
    (tmp_path / "share" / "jupyter" / "k.json").write_text("{ }")
    with zipfile.ZipFile(repack(there, tmp_path)) as archive:
        assert archive.namelist() == ["a.py", "a-1.dist-info/METADATA", "a-1.dist-info/RECORD"]


def test_code_that_was_changed_is_not_carried(tmp_path: Path) -> None:
    """What was tested is carried, or nothing."""
    there = installed(tmp_path / "site")
    (tmp_path / "site" / "a.py").write_text("changed")
    with pytest.raises(WheelsError) as caught:
        repack(there, tmp_path)
    assert "site/a.py was changed since it was installed" in str(caught.value)
    assert "pip install --force-reinstall --no-deps a" in str(caught.value)
    (tmp_path / "site" / "a.py").unlink()
    with pytest.raises(WheelsError, match=r"site/a\.py is gone since"):
        repack(there, tmp_path)


def test_a_link_to_a_checkout_is_not_carried(tmp_path: Path) -> None:
    """It has no files of its own."""
    there = installed(tmp_path / "site", dir_info={"editable": True})
    with pytest.raises(WheelsError, match="it is a link to a checkout"):
        repack(there, tmp_path)


def test_without_its_list_of_files_nothing_is_carried(tmp_path: Path) -> None:
    """As some systems' own packages have none."""
    there = installed(tmp_path / "site")
    (tmp_path / "site" / "a-1.dist-info" / "RECORD").unlink()
    with pytest.raises(WheelsError, match="its list of files is gone"):
        repack(there, tmp_path)
