"""What is done to a Debian system, and undone."""

from pathlib import Path

import pytest

from kernel_provider.setup import debian


def test_nothing_is_ever_removed() -> None:
    """Apt must fail rather than remove a package of the person's."""
    command = debian.install_command(["a", "b"])
    assert {"--no-remove", "--no-install-recommends"} < set(command)
    assert command[-2:] == ["a", "b"]


def test_services_are_held_and_let_go(tmp_path: Path) -> None:
    """Meanwhile a policy forbids starting them; afterwards it is gone, on errors too."""
    policy = tmp_path / "policy-rc.d"

    def fail() -> None:
        with debian.services_held(policy):
            assert policy.stat().st_mode & 0o777 == 0o755
            assert policy.read_text().endswith("exit 101\n")
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        fail()
    assert not policy.exists()


def test_an_administrators_policy_stays(tmp_path: Path) -> None:
    """Somebody else's policy is neither replaced nor removed."""
    policy = tmp_path / "policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 0\n")
    with debian.services_held(policy):
        pass
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_a_policy_that_a_killed_run_left_goes(tmp_path: Path) -> None:
    """Ours is recognised by its text."""
    policy = tmp_path / "policy-rc.d"
    with debian.services_held(policy):
        ours = policy.read_text()
    policy.write_text(ours)
    with debian.services_held(policy):
        pass
    assert not policy.exists()


def test_a_package_is_told_by_a_file_of_it(tmp_path: Path) -> None:
    """No package manager is asked: whoever has a chromium of their own needs none."""
    assert debian.missing(debian.BROWSER, tmp_path) == tuple(debian.BROWSER)
    for there in ("usr/bin/chromium", "usr/lib/x86_64-linux-gnu/libatomic.so.1"):
        (tmp_path / there).parent.mkdir(parents=True)
        (tmp_path / there).touch()
    assert debian.missing(debian.BROWSER, tmp_path) == ("fonts-dejavu-core",)


def test_debian_is_told_by_its_own_file(tmp_path: Path) -> None:
    """Apt alone, as on some macOS machines, does not count."""
    assert not debian.is_debian(tmp_path)
