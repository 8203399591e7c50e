"""What the README tells people to type works."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import blocks, commands, persons_folder, read, typed
from traitlets.config.loader import PyFileConfigLoader

from kernel_provider.ceilings import LIMITS, Ceilings, read_ceilings
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.warden import death

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("own_kernelspecs")]

README = read("README.md")
SETTINGS = read("docs/settings.md")

SHOWN_ELSEWHERE = {
    "make demo": "test_demo.py runs it in the venv that make made",
    "make test": "this is it",
    ".venv/bin/jupyter lab": "the browser tests drive it",
    "pip install .": "test_install.py does so in a fresh environment",
}


@pytest.mark.parametrize("command", [c for c in commands(README) if c not in SHOWN_ELSEWHERE])
def test_command_works(command: str, tmp_path: Path, image: str) -> None:
    """Each command ends with success, as typed, in a folder with a notebook."""
    assert image
    folder = persons_folder(tmp_path)
    done = typed(command, folder)
    assert done.returncode == 0, done.stderr
    if "notebook.ipynb" in command.split():
        results = [*folder.glob("result.ipynb"), *folder.glob("notebook*.ipynb")]
        texts = [path.read_text(encoding="utf-8") for path in results]
        assert command.startswith("jupyter execute") or any("42\\n" in text for text in texts)


def test_everything_is_run_or_shown_elsewhere() -> None:
    """No command of the README is exempt without being in it."""
    assert set(SHOWN_ELSEWHERE) <= set(commands(README))
    assert len(commands(README)) > len(SHOWN_ELSEWHERE) + 5


def test_python_works(image: str) -> None:
    """The Python example runs and prints a version of torch."""
    assert image
    (example,) = blocks(README, "python")
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\d+\.\d+", done.stdout)


def test_settings_are_real(tmp_path: Path) -> None:
    """The example is accepted, and the table names every setting with its default."""
    (example,) = blocks(README, "json")
    config = json.loads(example)
    config["mounts"] = dict.fromkeys(config["mounts"], str(tmp_path))
    assert parse_policy(config, ceilings=Ceilings()).cpus == 2
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", README, re.MULTILINE)
    named = dict(row for row in rows if row[0] in KernelPolicy.__dataclass_fields__)
    assert set(named) == set(KernelPolicy.__dataclass_fields__)
    given = {k: v.strip("`") for k, v in named.items() if v != "none"}
    for key in ("cpus", "pids", "startup_timeout"):
        given[key] = json.loads(given[key])
    assert parse_policy(given, ceilings=Ceilings()) == KernelPolicy()


def test_policy_file_is_real(tmp_path: Path) -> None:
    """The administrator's example is understood."""
    (example,) = blocks(README, "toml")
    file = tmp_path / "policy.toml"
    file.write_text(example, encoding="utf-8")
    ceilings = read_ceilings({}, policy_file=str(file))
    assert ceilings.limits == {"memory": 4 << 30, "cpus": 2, "loopback": False}
    assert tomllib.loads(example)["mount_sources"] == ["/srv/models"]


def fenced(language: str) -> str:
    """The code block of one language in docs/settings.md."""
    (block,) = blocks(SETTINGS, language)
    return block


def test_the_page_of_settings_is_real(tmp_path: Path) -> None:
    """It has every setting with the README's default, and its examples are understood."""
    rows, told = (
        dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", text, re.MULTILINE))
        for text in (SETTINGS, README)
    )
    assert set(rows) == set(KernelPolicy.__dataclass_fields__)
    assert rows.items() <= told.items()
    (tmp_path / "policy.toml").write_text(fenced("toml"), encoding="utf-8")
    file = PyFileConfigLoader("c.py", str(tmp_path))
    (tmp_path / "c.py").write_text(fenced("python"), encoding="utf-8")
    section = file.load_config()["SandboxProvisioner"]
    found = read_ceilings(
        {},
        policy_file=str(tmp_path / "policy.toml"),
        traits={name: (name, value) for name, value in section.items()},
    )
    assert found.limits["loopback"] is False
    assert found.images == ("executor-ml:latest",)
    assert parse_policy({}, ceilings=found).memory == 1 << 30
    variables = set(re.findall(r"EXECUTOR_ML_MAX_(\w+)", SETTINGS))
    assert variables == {key.upper() for key in LIMITS}


def test_causes_of_death_are_real() -> None:
    """The table names the causes that the code knows."""
    source = Path(death.__file__).read_text(encoding="utf-8")
    source += Path(death.__file__).parent.parent.joinpath("link.py").read_text("utf-8")
    named = set(re.findall(r'name="(\w+)"', source)) - {"KernelStopped"}
    table = README.partition("## When a kernel dies")[2].partition("## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == named
