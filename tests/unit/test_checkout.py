"""When a virtual environment is made anew, and when it is left alone."""

from pathlib import Path

import pytest

from kernel_provider.setup import checkout
from kernel_provider.setup.checkout import Checkout


@pytest.fixture
def tree(tmp_path: Path) -> Checkout:
    """A small checkout whose virtual environment claims to be up to date."""
    for name in ("pyproject.toml", "tests/requirements.lock", "kernel_provider/a.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / ".venv").mkdir()
    _stamp(tmp_path)
    return Checkout(root=tmp_path)


def _stamp(root: Path) -> None:
    (root / ".venv/stamp-lock").write_text(checkout.lock_digest(root))
    (root / ".venv/stamp-package").write_text(checkout.source_digest(root))


def test_current_means_nothing_to_do(tree: Checkout) -> None:
    """Times, caches and files that the package is not built from don't count."""
    (tree.root / "kernel_provider/a.py").touch()
    (tree.root / "kernel_provider/__pycache__").mkdir()
    (tree.root / "kernel_provider/__pycache__/a.pyc").write_bytes(b"1")
    (tree.root / "tests/test_a.py").write_text("1")
    assert tree.state() == "current"


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("kernel_provider/a.py", "package"),
        ("image/Dockerfile", "package"),
        ("kernelspecs/executor-ml/kernel.json", "package"),
        ("pyproject.toml", "package"),
        ("tests/requirements.lock", "all"),
    ],
)
def test_changed_content_is_noticed(tree: Checkout, name: str, state: str) -> None:
    """Sources mean a new installation, the lock a new environment."""
    path = tree.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed")
    assert tree.state() == state


def test_moved_content_is_noticed(tree: Checkout) -> None:
    """The same bytes in another file are another package."""
    (tree.root / "kernel_provider/a.py").rename(tree.root / "kernel_provider/b.py")
    assert tree.state() == "package"


def test_an_interrupted_installation_is_repeated(tree: Checkout) -> None:
    """Stamps are written last, so none means from the start."""
    (tree.venv / "stamp-lock").unlink()
    assert tree.state() == "all"


def test_a_moved_checkout_is_made_anew(tree: Checkout, tmp_path: Path) -> None:
    """Scripts in a virtual environment name its folder."""
    moved = tree.root.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    assert Checkout(root=moved).state() == "all"


def test_the_base_interpreter_is_not_the_environments_own() -> None:
    """Making ``.venv`` anew must not run the interpreter that is being removed."""
    assert ".venv" not in checkout.base_python().parts
    assert checkout.base_python().exists()
