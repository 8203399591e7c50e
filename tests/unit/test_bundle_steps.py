"""What packing, setting up and unpacking decide, without an engine."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import docker.errors
import pytest
import requests
from bundles import IMAGE, LABELS, LAYERS, write_bundle

from kernel_provider import cli, names
from kernel_provider.builder.images import Images, read_load
from kernel_provider.bundle import install as installer
from kernel_provider.bundle import setup
from kernel_provider.bundle.errors import (
    BundleWriteError,
    NoRoomError,
    ThereAlreadyError,
    WheelsUnfitError,
)
from kernel_provider.bundle.model import (
    BundledImage,
    Target,
    is_our_name,
    this_machine,
    with_tag,
)
from kernel_provider.bundle.pack import BundleRequest, wanted_images, written
from kernel_provider.bundle.room import need_room
from kernel_provider.bundle.unpack import UnbundleRequest, missing_images
from kernel_provider.errors import EngineError
from kernel_provider.kernelspecs import Kernelspec

HERE = Target(python="3.11", platform="manylinux_2_28_x86_64")


@pytest.mark.parametrize(
    ("python", "platform", "runs"),
    [
        ("3.11", "manylinux_2_28_x86_64", True),
        ("3.11", "manylinux_2_5_x86_64", True),
        ("3.11", "manylinux_2_29_x86_64", False),
        ("3.11", "manylinux_2_28_aarch64", False),
        ("3.11", "musllinux_1_2_x86_64", False),
        ("3.12", "manylinux_2_28_x86_64", False),
        ("3.11t", "manylinux_2_28_x86_64", False),
    ],
)
def test_wheels_fit_or_both_pythons_are_named(python: str, platform: str, *, runs: bool) -> None:
    """The remedy is the command that makes a bundle that fits."""
    theirs = Target(python=python, platform=platform)
    assert theirs.runs_on(HERE) is runs
    if runs:
        setup.refuse_unfit(theirs, HERE, Path("b.tar"))
        return
    with pytest.raises(WheelsUnfitError) as caught:
        setup.refuse_unfit(theirs, HERE, Path("b.tar"))
    assert str(caught.value) == (
        f"the wheels in b.tar are for Python {python}, {platform}, "
        "and this is Python 3.11, manylinux_2_28_x86_64\n"
        "Fix: use that Python here, or bundle again there: "
        "executor-ml bundle FILE --python 3.11 --platform manylinux_2_28_x86_64"
    )


def test_this_machine_is_one_that_wheels_are_for() -> None:
    """Its platform can be read, and its own wheels fit."""
    assert this_machine().parts[2] == os.uname().machine
    assert this_machine().runs_on(this_machine())


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("executor-ml:latest", True),
        ("executor-ml-nlp:1.0", True),
        ("executor-base:latest", True),
        ("registry.local:5000/team/executor-ml:latest", True),
        ("executor-ml", False),
        ("executor-mlx:latest", False),
        ("my-executor-ml:latest", False),
        ("executor-ml/debian:latest", False),
        ("debian:latest", False),
        ("executor-ml:latest\n", False),
    ],
)
def test_only_our_names_are_given(name: str, *, ours: bool) -> None:
    """A bundle can't take the name of an image that others rely on."""
    assert is_our_name(name) is ours


def test_a_name_without_a_tag_is_the_latest() -> None:
    """Also where the registry has a port."""
    assert with_tag("executor-ml") == "executor-ml:latest"
    assert with_tag("local:5000/executor-ml") == "local:5000/executor-ml:latest"
    assert with_tag("executor-ml:1") == "executor-ml:1"


def spec(name: str, **config: Any) -> Kernelspec:
    """A kernelspec with that configuration."""
    return Kernelspec(name=name, folder="/", config=config)


def test_images_are_those_that_kernelspecs_ask_for() -> None:
    """Each once, with those that are named beside them."""
    specs = [spec("a"), spec("b", image="executor-ml-nlp"), spec("c", image="executor-ml:latest")]
    assert wanted_images(specs, []) == ["executor-ml:latest", "executor-ml-nlp:latest"]
    assert wanted_images(specs[1:2], ["executor-base"]) == [
        "executor-ml-nlp:latest",
        "executor-base:latest",
    ]
    assert wanted_images([], []) == ["executor-ml:latest"]


def request_for(path: Path, *, force: bool = False) -> BundleRequest:
    """A request that only names its file."""
    return BundleRequest(file=path, target=HERE, force=force)


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), EngineError(action="a", reason="b")])
def test_what_is_cut_short_leaves_nothing(tmp_path: Path, reason: BaseException) -> None:
    """Neither half a bundle nor a lost one."""
    path = tmp_path / "b.tar"
    path.write_text("old")

    def cut() -> None:
        with written(request_for(path, force=True)) as (file, part):
            file.write(b"half")
            assert part.parent == tmp_path
            raise reason

    with pytest.raises(type(reason)):
        cut()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("b.tar", "old")]


def test_a_bundle_is_readable_for_others_and_has_its_name_at_the_end(tmp_path: Path) -> None:
    """It is made for carrying."""
    path = tmp_path / "b.tar"
    with written(request_for(path)) as (file, _):
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_there_is_kept(tmp_path: Path) -> None:
    """Unless told otherwise; also one that came while the bundle was written."""
    path = tmp_path / "b.tar"

    def write(*, before: bool) -> None:
        path.unlink(missing_ok=True)
        if before:
            path.write_text("theirs")
        with written(request_for(path)):
            path.write_text("theirs")

    for before in (True, False):
        with pytest.raises(ThereAlreadyError) as caught:
            write(before=before)
        assert str(caught.value) == (
            f"{path} is there already\nFix: add --force to write over it, or give another name"
        )
        assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("b.tar", "theirs")]


def test_a_disk_that_fills_up_is_told(tmp_path: Path) -> None:
    """In the engine's or the system's own words, and nothing is left."""
    path = tmp_path / "b.tar"

    def fill() -> None:
        with written(request_for(path)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(BundleWriteError) as caught:
        fill()
    assert f"the bundle {path} cannot be written: No space left on device" in str(caught.value)
    assert "Fix: give a file in a folder that you can write to" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "reason"), [("", "it is a folder"), ("no/b.tar", "No such file")])
def test_a_place_that_cannot_be_is_told_at_once(tmp_path: Path, name: str, reason: str) -> None:
    """Not after a minute of packing."""
    with (
        pytest.raises(BundleWriteError, match=reason),
        written(request_for(tmp_path / name, force=True)),
    ):
        pytest.fail("the body must not run")


def test_room_is_looked_for_first(tmp_path: Path) -> None:
    """Also below a folder that is still to be made; unseen disks are left to their writers."""
    with pytest.raises(NoRoomError) as caught:
        need_room("the bundle", tmp_path / "not" / "yet", 1e18)
    assert f"the bundle takes about 1000000000000 MB, and {tmp_path} has " in str(caught.value)
    assert f" MB free\nFix: free some room on the disk of {tmp_path}" in str(caught.value)
    need_room("the bundle", tmp_path, 1)


class OneImage:
    """An engine that has one image, or none."""

    def __init__(self, facts: Mapping[str, Any] | None) -> None:
        self._facts = facts

    def facts(self, _name: str) -> Mapping[str, Any] | None:
        """What it knows of any image."""
        return self._facts


WANTED = BundledImage(
    name=IMAGE, id="sha256:1", layers=LAYERS, labels=LABELS, size=1, member="images/0.tar.gz"
)


def facts(image_id: str, layers: tuple[str, ...], labels: Mapping[str, str]) -> dict[str, Any]:
    """An image as an engine tells of it."""
    return {"Id": image_id, "RootFS": {"Layers": list(layers)}, "Config": {"Labels": labels}}


@pytest.mark.parametrize(
    ("there", "loads"),
    [
        (None, True),
        (facts("sha256:1", LAYERS, LABELS), False),
        (facts("sha256:in-containerd", LAYERS, LABELS), False),
    ],
)
def test_only_missing_images_are_loaded(there: Mapping[str, Any] | None, *, loads: bool) -> None:
    """The same image is the same, whatever its engine calls it."""
    images = cast("Images", OneImage(there))
    found = missing_images(images, [WANTED], UnbundleRequest(file=Path("b.tar")))
    assert bool(found) is loads


@pytest.mark.parametrize(
    "there",
    [
        facts("sha256:2", ("sha256:other",), LABELS),
        facts("sha256:2", LAYERS, {**LABELS, names.LABEL_PROTOCOL: "0"}),
    ],
)
def test_another_image_keeps_its_name(there: Mapping[str, Any]) -> None:
    """Unless told otherwise."""
    images = cast("Images", OneImage(there))
    with pytest.raises(ThereAlreadyError) as caught:
        missing_images(images, [WANTED], UnbundleRequest(file=Path("b.tar")))
    assert str(caught.value) == (
        f"the image {IMAGE} is there already as sha256:2, and is sha256:1 in the bundle\n"
        "Fix: add --force to let that one have the name"
    )
    forced = UnbundleRequest(file=Path("b.tar"), force=True)
    assert missing_images(images, [WANTED], forced) == [WANTED]


def test_the_engines_account_of_loading_is_read() -> None:
    """The id at its end; progress before; an error in its words."""
    said: list[str] = []
    image_id = f"sha256:{'a' * 64}"
    stream: list[Mapping[str, Any]] = [
        {"status": "Loading layer", "progressDetail": {"current": 5_000_000, "total": 9}},
        {"status": "Loading layer", "progressDetail": {}},
        {"stream": f"Loaded image ID: {image_id}\n"},
    ]
    assert read_load(iter(stream), said.append) == image_id
    assert said == ["layer: 5 MB"]
    for entries, told in (
        ([{"error": "no space left on device"}], "no space left on device"),
        ([{"stream": "Loaded image: debian:latest"}], "it told of no image"),
    ):
        with pytest.raises(EngineError, match=f"failed to load an image: {told}"):
            read_load(iter(entries), said.append)


def test_pip_hears_nobody_but_the_bundle() -> None:
    """No index, no constraint, no other place of this machine's configuration."""
    environ = {"PIP_INDEX_URL": "http://x", "PIP_TARGET": "/x", "PYTHONPATH": "/x", "HOME": "/h"}
    assert setup.pip_environment(environ) == {"HOME": "/h", "PIP_CONFIG_FILE": os.devnull}
    wheels = [Path("/w/a-1-py3-none-any.whl"), Path("/w/pip-26-py3-none-any.whl")]
    command = setup.pip_command(Path("v"), wheels)
    assert command[:3] == ["v/bin/python", "/w/pip-26-py3-none-any.whl/pip", "install"]
    assert "--no-index" in command
    assert command[-2:] == list(map(str, wheels))


@pytest.mark.parametrize("venv", ["empty-but-for-a-file", "venv"])
def test_a_folder_that_is_there_is_not_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], venv: str
) -> None:
    """With --force only if it is a virtual environment; without it, never."""
    bundle, folder = tmp_path / "b.tar", tmp_path / venv
    write_bundle(bundle)
    folder.mkdir()
    (folder / ("pyvenv.cfg" if venv == "venv" else "letter.txt")).write_text("")
    words = [str(bundle), "--venv", str(folder)]
    for more in ([], ["--force"] if venv != "venv" else []):
        assert setup.run([*words, *more]) == 73
        told = capsys.readouterr().err
        assert told.startswith(f"install.py: {folder} is there already")
        assert "give another folder with --venv" in told
        assert len(list(folder.iterdir())) == 1


def test_install_py_teaches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without a file, with a wrong one, and with an old Python."""
    for words, code in ([], 2), (["--help"], 0):
        monkeypatch.setattr("sys.argv", ["install.py", *words])
        assert installer.main() == code
        told = capsys.readouterr()
        assert "python3 install.py FILE [--venv DIR]" in (told.err if code else told.out)
    wrong = tmp_path / "wrong"
    wrong.write_text("text")
    for path in (wrong, tmp_path / "missing"):
        monkeypatch.setattr("sys.argv", ["install.py", str(path)])
        assert installer.main() == 2
        assert f"install.py: {path} is no bundle" in capsys.readouterr().err
    monkeypatch.setattr("sys.version_info", (3, 10, 0))
    assert installer.main() == 2
    assert "Python 3.11 or newer is needed, and this is Python 3.10" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bundled", "words", "told"),
    [
        ({"protocol": 99}, [], "the bundle speaks protocol 99, this version"),
        (
            {"target": Target(python="3.11", platform="manylinux_2_17_s390x")},
            [],
            "the bundle is for s390x, and this machine is",
        ),
        ({"config": {"memroy": "1g"}}, [], "kernelspec tiny: there is no setting 'memroy'"),
        (
            {"config": {"mounts": {"/data/x": "/no/such"}}},
            [],
            "kernelspec tiny: cannot mount /no/such",
        ),
        ({}, ["--kernelspec", "other"], "there is no kernelspec 'other' in"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_changed(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bundled: dict[str, Any],
    words: list[str],
    told: str,
) -> None:
    """No engine is asked yet, and nothing is written."""
    bundle = tmp_path / "b.tar"
    write_bundle(bundle, **bundled)
    place = tmp_path / "prefix"
    assert cli.main(["unbundle", str(bundle), "--prefix", str(place), *words]) != 0
    error = capsys.readouterr().err
    assert told in error
    assert "\nFix: " in error
    assert not place.exists()


def test_a_kernelspec_with_other_settings_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same one, and the one that the package brings, are no obstacle."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    bundle = tmp_path / "b.tar"
    write_bundle(bundle, config={"memory": "1g"})
    words = ["unbundle", str(bundle), "--prefix", str(tmp_path / "p")]
    install = ["install", "--name", "tiny", "--prefix", str(tmp_path / "p"), "--replace"]
    for options, taken in ([], False), (["--memory", "1g"], False), (["--memory", "2g"], True):
        assert cli.main([*install, *options]) == 0
        capsys.readouterr()
        code = cli.main(words)
        error = capsys.readouterr().err
        assert ("kernels/tiny is there already, with other settings" in error) is taken
        assert (code == 73) is taken
        if not taken:
            assert "no container engine answers" in error
    assert cli.main([*words, "--force"]) == 69


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            requests.ConnectionError("Connection aborted.", OSError(111, "x")),
            "it closed the connection, or did not answer (ConnectionError)",
        ),
        (docker.errors.APIError("500", explanation="no space left"), "no space left"),
    ],
)
def test_an_engine_that_stops_talking_is_told_in_words(error: Exception, told: str) -> None:
    """Of its own errors, its own words; of a lost connection, no Python."""

    def answer(_image: str) -> object:
        raise error

    images = Images.__new__(Images)
    images._api = cast("docker.APIClient", SimpleNamespace(get_image=answer))  # noqa: SLF001
    with pytest.raises(EngineError) as caught:
        list(images.export("sha256:1"))
    first = str(caught.value).splitlines()[0]
    assert first == f"the container engine failed to export sha256:1: {told}"
