"""The administrator's word in Jupyter's configuration, as servers and commands read it."""

import json
import re
from pathlib import Path

import pytest
from traitlets.config import Config, LoggingConfigurable

from kernel_provider import admin, cli
from kernel_provider.ceilings import MAXIMA
from kernel_provider.errors import ConfigFileError
from kernel_provider.provisioner import SandboxProvisioner


def said(**section: object) -> dict[str, tuple[str, object]]:
    """What a provisioner hears of a server's configuration."""
    server = LoggingConfigurable(config=Config({"SandboxProvisioner": section}))
    return dict(SandboxProvisioner(kernel_id="x", parent=server).said())


def test_every_ceiling_has_a_trait() -> None:
    """Under the name of the provisioner's class."""
    assert set(MAXIMA) < set(admin.AdminPolicy.class_trait_names(config=True))
    assert said() == {}
    assert said(max_memory="2g", max_loopback=False, allowed_images=["a"]) == {
        "max_memory": ("c.SandboxProvisioner.max_memory", "2g"),
        "max_loopback": ("c.SandboxProvisioner.max_loopback", False),
        "allowed_images": ("c.SandboxProvisioner.allowed_images", ["a"]),
    }


@pytest.mark.filterwarnings("ignore:Config option")
def test_a_misspelt_trait_is_not_lost() -> None:
    """Traitlets only warns of it: a ceiling would be none."""
    assert said(max_memroy="1g") == {"max_memroy": ("c.SandboxProvisioner.max_memroy", "1g")}


def test_a_kernelspec_cannot_set_traits() -> None:
    """Jupyter hands its config over as arguments, in which traits would take part."""
    made = SandboxProvisioner(kernel_id="x", max_memory="99g")
    assert made.said() == {}
    assert made.config_given["max_memory"] == "99g"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The only two folders of configuration: the first one counts more."""
    made = (tmp_path / "mine", tmp_path / "system")
    for folder in made:
        folder.mkdir()
    monkeypatch.setattr(admin, "jupyter_config_path", lambda: [str(f) for f in made])
    return made


def test_files_are_read_as_the_server_does(folders: tuple[Path, Path]) -> None:
    """With the file that said it; a person's own counts more."""
    mine, system = (folder / "jupyter_server_config.py" for folder in folders)
    system.write_text("c.SandboxProvisioner.max_cpus = 4\nc.SandboxProvisioner.max_memory = '4g'\n")
    mine.write_text(
        "c.SandboxProvisioner.max_cpus = 2\nc.SandboxProvisioner.allowed_images.append('a')\n"
    )
    assert admin.said_in_files() == {
        "max_cpus": (f"c.SandboxProvisioner.max_cpus in {mine}", 2),
        "max_memory": (f"c.SandboxProvisioner.max_memory in {system}", "4g"),
        "allowed_images": (f"c.SandboxProvisioner.allowed_images in {mine}", ["a"]),
    }


@pytest.mark.parametrize("text", ["1 / 0", "import sys; sys.exit('no')", "c.x.y ="])
def test_configuration_that_fails_is_an_error_of_ours(
    folders: tuple[Path, Path], text: str
) -> None:
    """The server would not start either."""
    (folders[0] / "jupyter_server_config.py").write_text(text)
    with pytest.raises(ConfigFileError, match="the Jupyter server's configuration cannot be read"):
        admin.said_in_files()


def test_the_policy_command_tells_who_set_what(
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of kernelspec, environment and configuration."""
    file = folders[1] / "jupyter_server_config.json"
    section = {"max_memory": "2g", "max_pids": 500, "defaults": {"pids": 64}}
    file.write_text(json.dumps({"SandboxProvisioner": section}))
    monkeypatch.setenv("EXECUTOR_ML_MAX_MEMORY", "1g")
    assert cli.main(["policy", "--json"]) == 0
    told = {s["key"]: s for s in json.loads(capsys.readouterr().out)["settings"]}
    assert told["memory"]["ceiling_source"] == "EXECUTOR_ML_MAX_MEMORY"
    assert told["memory"]["ceiling"] == 1 << 30
    assert told["pids"]["value"] == 64
    assert told["pids"]["source"] == f"c.SandboxProvisioner.defaults in {file}"
    assert told["pids"]["ceiling_source"] == f"c.SandboxProvisioner.max_pids in {file}"
    assert (told["loopback"]["value"], told["loopback"]["source"]) == (False, "default")
    assert cli.main(["policy"]) == 0
    assert re.search("^loopback +false ", capsys.readouterr().out, re.MULTILINE)
