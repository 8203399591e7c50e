"""The hub's libraries in a sandbox: they look at what is mounted, and nowhere else."""

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import sandbox_models

HUB = {
    "__init__": "",
    "constants": """
        import os
        HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"
        HUGGINGFACE_HUB_CACHE = {cache!r}
        {new}
        """,
    "file_download": """
        from . import constants
        def hf_hub_download(repo_id, filename, *, local_files_only=False, **kwargs):
            return (repo_id, filename, local_files_only, constants.HF_HUB_OFFLINE)
        """,
    "_snapshot_download": """
        from .file_download import hf_hub_download
        def snapshot_download(repo_id, *, local_files_only=False, **kwargs):
            return (repo_id, local_files_only)
        """,
    "other": "",
}
NEW = "HF_HUB_CACHE = HUGGINGFACE_HUB_CACHE\n        is_offline_mode = lambda: HF_HUB_OFFLINE"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with two models, one of them at a revision."""
    for path in ("models--org--tiny/refs", "models--gpt2/snapshots", "datasets--x/refs"):
        (tmp_path / "hub" / path).mkdir(parents=True)
    (tmp_path / "hub/models--org--tiny/refs/v1").touch()
    return tmp_path / "hub"


@pytest.fixture(params=["", NEW], ids=["2023", "current"])
def hub(
    request: pytest.FixtureRequest, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A library like the hub's, old or new, imported after the sandbox set itself up."""
    package = tmp_path / "site/huggingface_hub"
    package.mkdir(parents=True)
    for name, text in HUB.items():
        lines = text.replace("{cache!r}", repr(str(cache))).replace("{new}", request.param)
        plain = "\n".join(line.removeprefix("        ") for line in lines.splitlines())
        (package / f"{name}.py").write_text(plain)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.syspath_prepend(str(package.parent))
    sandbox_models.install()
    yield
    for name in [name for name in sys.modules if name.startswith("huggingface_hub")]:
        del sys.modules[name]


def download(*args: Any, **kwargs: Any) -> Any:
    """Ask for a file, or, without its name, for all of them."""
    if len(args) == 1:
        module = import_module("huggingface_hub._snapshot_download")
        return module.snapshot_download(*args, **kwargs)
    return import_module("huggingface_hub.file_download").hf_hub_download(*args, **kwargs)


@pytest.mark.usefixtures("hub")
class TestAsking:
    """In the old library and in the new."""

    def test_it_is_offline_whatever_the_notebook_says(self) -> None:
        """From the import on, and for each call."""
        assert download("org/tiny", "config.json", local_files_only=False) == (
            "org/tiny",
            "config.json",
            True,
            True,
        )
        assert download("org/tiny", revision="v1") == ("org/tiny", True)
        constants: Any = import_module("huggingface_hub.constants")
        constants.HF_HUB_OFFLINE = False
        assert download("gpt2", "x")[2]
        assert not hasattr(constants, "is_offline_mode") or constants.is_offline_mode()
        assert import_module("huggingface_hub.other").__name__ == "huggingface_hub.other"

    @pytest.mark.parametrize("what", [["org/other"], ["org/other", "config.json"]])
    def test_a_model_that_is_not_there_is_told(self, what: list[str]) -> None:
        """With those that are, and what to type."""
        with pytest.raises(sandbox_models.NotMountedError) as caught:
            download(*what)
        text = str(caught.value)
        assert "The model org/other is not in this sandbox" in text
        assert "Mounted are: gpt2, org/tiny." in text
        assert "executor-ml models add org/other FOLDER" in text
        assert "executor-ml install --name NAME --model org/other" in text

    def test_a_revision_that_is_not_there_is_told(self) -> None:
        """It is not the model that is missing."""
        with pytest.raises(sandbox_models.NotMountedError, match="but not its revision v2"):
            download("org/tiny", "config.json", revision="v2")

    def test_other_kinds_are_told(self) -> None:
        """No command adds a dataset."""
        assert download("x", repo_type="dataset") == ("x", True)
        with pytest.raises(sandbox_models.NotMountedError, match=r'dataset y .*"mounts"'):
            download("y", repo_type="dataset")

    def test_a_cache_of_the_notebooks_own_counts(self, tmp_path: Path) -> None:
        """And where there is none, that is told as well."""
        (tmp_path / "own/models--mine").mkdir(parents=True)
        (tmp_path / "own/models--mine/refs").mkdir()
        assert download("mine", cache_dir=tmp_path / "own") == ("mine", True)
        assert download("other", local_dir=tmp_path) == ("other", True)
        with pytest.raises(sandbox_models.NotMountedError, match="Mounted are: none"):
            download("mine", cache_dir=tmp_path / "nowhere")

    @pytest.mark.parametrize("name", ["./nowhere", "a/b/c", "", None, 7])
    def test_what_is_no_id_is_the_librarys_to_refuse(self, name: Any) -> None:
        """It has its own words for that."""
        assert download(name)[0] == name
