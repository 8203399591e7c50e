import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.builder.base import (
    debian_name,
    debootstrap_command,
    mounted_below,
    pack,
    remove_tree,
)
from kernel_provider.builder.images import last_json, read_build
from kernel_provider.builder.process import last_words
from kernel_provider.errors import BuildError


def account(*entries: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What an engine says during a build."""
    return iter(entries)


def test_a_build_that_succeeds_tells_its_steps_and_its_image() -> None:
    """The person sees steps and output, not the engine's own bookkeeping."""
    said: list[str] = []
    stream = account(
        {"stream": "Step 1/2 : FROM scratch"},
        {"stream": "\n"},
        {"stream": " ---> 0123456789ab\n"},
        {"stream": "Step 2/2 : RUN true"},
        {"stream": "kept 12 MB\n"},
        {"aux": {"ID": "sha256:abc"}},
        {"stream": "Successfully built abc\n"},
    )
    assert read_build(stream, image="i", say=said.append) == "sha256:abc"
    assert said == ["step 1 of 2: FROM scratch", "step 2 of 2: RUN true", "kept 12 MB"]


def test_a_failed_step_is_shown_with_its_last_lines() -> None:
    """What went wrong is in the error: the step, what it printed, what remains."""
    stream = account(
        {"stream": "Step 1/2 : RUN first"},
        {"stream": "of the first step\n"},
        {"stream": "\x1b[91mred\n\x1b[0m"},
        {"stream": "Step 2/2 : RUN sh /build/steps/install.sh"},
        *({"stream": f"line {number}\n"} for number in range(40)),
        {"error": "returned a non-zero code: 3", "errorDetail": {"code": 3}},
    )
    with pytest.raises(BuildError) as caught:
        read_build(stream, image="executor-ml:latest", say=lambda _: None)
    text = str(caught.value)
    assert "building executor-ml:latest failed at: step 2 of 2: RUN sh /build/steps" in text
    assert "line 39\n    returned a non-zero code: 3" in text
    assert "\x1b" not in text
    assert "line 20\n" not in text
    assert "of the first step" not in text
    assert "the old image is in place" in text


def test_an_answer_without_an_image_is_a_failure() -> None:
    """An engine that stops talking has built nothing."""
    with pytest.raises(BuildError, match="sending the context"):
        read_build(account(), image="i", say=lambda _: None)


def test_last_words_skip_what_is_empty() -> None:
    """The last lines are the last that say something."""
    assert last_words(["a", "", "b\n", "  "], 2) == "\n    a\n    b"


def test_versions_are_on_the_last_line() -> None:
    """A warning before it does no harm."""
    assert last_json('warning\n{"torch": "1"}\n') == {"torch": "1"}


def test_a_made_base_has_a_name_of_its_content() -> None:
    """The next build finds it; a package that changes its contents does not."""
    assert debian_name() == debian_name()
    assert debian_name().startswith("executor-ml-debian:bookworm-")
    assert debootstrap_command("/usr/sbin/debootstrap", Path("/r")) == [
        *("/usr/sbin/debootstrap", "--variant=minbase", "--include=python3"),
        *("bookworm", "/r"),
    ]


def test_only_mounts_inside_are_found() -> None:
    """A folder whose name begins alike is not inside."""
    line = "36 35 0:5 / {} rw - proc proc rw\n"
    places = ("/t/base/root/proc", "/t/base2/proc", "/", "/t/base/root/dev/pts")
    found = mounted_below(Path("/t/base"), "".join(map(line.format, places)))
    assert found == ["/t/base/root/dev/pts", "/t/base/root/proc"]


def test_a_root_is_packed_without_what_a_kernel_provides(tmp_path: Path) -> None:
    """Device nodes and the host's processes stay out; their folders are mount points."""
    root = tmp_path / "root"
    for name in ("dev/null", "proc/1", "sys/kernel", "etc/passwd", "usr/dev/kept"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    pack(root, tmp_path / "root.tar")
    with tarfile.open(tmp_path / "root.tar") as tar:
        names = set(tar.getnames())
    assert {"./dev", "./proc", "./sys", "./etc/passwd", "./usr/dev/kept"} < names
    assert not {"./dev/null", "./proc/1", "./sys/kernel"} & names


def test_a_tree_without_mounts_is_removed(tmp_path: Path) -> None:
    """Nothing of a made base is left on the disk."""
    (tmp_path / "made" / "root").mkdir(parents=True)
    remove_tree(tmp_path / "made")
    assert not (tmp_path / "made").exists()
