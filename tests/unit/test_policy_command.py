"""``executor-ml policy``: what is in force, and who says so."""

import json
import re
from pathlib import Path

import pytest

from kernel_provider import cli
from kernel_provider.ceilings import Ceilings, read_ceilings
from kernel_provider.commands.policy import Setting, in_force, table
from kernel_provider.commands.policy import text as shown
from kernel_provider.kernelspecs import Kernelspec
from kernel_provider.values import MIB

SPEC = Kernelspec(name="mine", folder="/k/mine", config={"memory": "1g", "preload": ["numpy"]})


def test_each_value_has_its_source() -> None:
    """A kernelspec's own, else the default; a ceiling with who set it."""
    ceilings = Ceilings(
        limits={"memory": 2048 * MIB, "cpus": 1.0},
        sources={
            "memory": "/etc/p.toml",
            "cpus": "EXECUTOR_ML_MAX_CPUS",
            "allowed_images": "c.SandboxProvisioner.allowed_images in /etc/j.py",
            "mount_sources": "/etc/p.toml",
        },
        images=("executor-ml:latest",),
        mount_sources=("/srv",),
        defaults={"pids": ("/etc/p.toml", 64), "memory": ("/etc/p.toml", "128m")},
    )
    found = {s.key: s for s in in_force(SPEC, ceilings)}
    assert found["memory"] == Setting(
        key="memory",
        value=1024 * MIB,
        in_server=1024 * MIB,
        source="/k/mine/kernel.json",
        ceiling=2048 * MIB,
        ceiling_source="/etc/p.toml",
    )
    assert found["cpus"] == Setting(
        key="cpus",
        value=0.5,
        in_server=0.5,
        source="default",
        ceiling=1.0,
        ceiling_source="EXECUTOR_ML_MAX_CPUS",
    )
    assert found["image"].ceiling == ("executor-ml:latest",)
    assert found["image"].ceiling_source == "c.SandboxProvisioner.allowed_images in /etc/j.py"
    assert (found["mounts"].ceiling, found["mounts"].ceiling_source) == (("/srv",), "/etc/p.toml")
    assert (found["pids"].value, found["pids"].source) == (64, "/etc/p.toml")
    assert found["pids"].ceiling is None
    assert found["cell_timeout"].value is None
    assert found["preload"].value == ("numpy",)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({}, "128 MB (32 MB in a server)"),
        ({"output_limit": ("/etc/p.toml", "64m")}, "64 MB"),
    ],
)
def test_a_servers_own_default_is_shown_beside_the_others(
    said: dict[str, tuple[str, object]], shown: str
) -> None:
    """Unless somebody said what it is to be: that holds everywhere."""
    settings = in_force(SPEC, Ceilings(defaults=said))
    (line,) = [row for row in table(settings).splitlines() if row.startswith("output_limit ")]
    assert shown in re.split("  +", line)
    differing = [s.key for s in settings if s.in_server != s.value]
    assert differing == [key for key in ("output_limit", "message_rate") if key not in said]


def test_a_limit_that_a_ceiling_has_made_is_told_as_the_ceilings() -> None:
    """A kernelspec that says nothing has it by that, and not by default."""
    said = read_ceilings({"EXECUTOR_ML_MAX_CELL_TIMEOUT": "60"}, policy_file="/none")
    (line,) = [row for row in table(in_force(SPEC, said)).splitlines() if "cell_timeout" in row]
    who = "EXECUTOR_ML_MAX_CELL_TIMEOUT"
    assert re.split("  +", line) == ["cell_timeout", "60", who, "60", who]
    (free,) = [
        row for row in table(in_force(SPEC, Ceilings())).splitlines() if "cell_timeout" in row
    ]
    assert re.split("  +", free) == ["cell_timeout", "none", "default", "-", "-"]


def test_the_table_is_aligned_and_readable() -> None:
    """Values as people write them, a dash for no ceiling."""
    lines = table(in_force(SPEC, Ceilings())).splitlines()
    assert lines[0].split("  ")[0] == "setting"
    (memory,) = [line for line in lines if line.startswith("memory ")]
    assert re.split("  +", memory) == ["memory", "1 GB", "/k/mine/kernel.json", "-", "-"]
    assert memory.index("/k/mine") == lines[0].index("set by")
    assert any(line.startswith("mounts") and " none " in line for line in lines)
    assert any(line.startswith("preload") and " numpy " in line for line in lines)


def user_kernel(folder: Path, text: str, name: str = "mine") -> None:
    """A kernelspec in the user's folder."""
    place = folder / "kernels" / name
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(text)


def text(config: object) -> str:
    """A kernel.json of ours."""
    wanted = {"provisioner_name": "executor-ml-provisioner", "config": config}
    return json.dumps({"argv": ["x"], "metadata": {"kernel_provisioner": wanted}})


def test_models_are_shown_by_name() -> None:
    """Where the registry keeps them is nobody's business; folders of one's own are."""
    models = {"org/tiny@main": "/views/x", "gpt2@v1": "/y"}
    assert shown("models", models) == "org/tiny@main gpt2@v1"
    assert shown("models", {}) == "none"
    assert shown("mounts", {"/data/x": "/srv/x"}) == "/data/x=/srv/x"


def test_the_command_shows_a_named_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a table and as JSON."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EXECUTOR_ML_MAX_PIDS", "200")
    user_kernel(tmp_path, text({"env": {"A": "b"}}))
    assert cli.main(["policy", "--kernel", "mine"]) == 0
    assert "A=b" in capsys.readouterr().out
    assert cli.main(["policy", "--kernel", "mine", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    settings = {s["key"]: s for s in told["settings"]}
    assert told["kernel"] == "mine"
    assert settings["env"]["value"] == {"A": "b"}
    assert settings["pids"]["ceiling"] == 200
    assert settings["pids"]["ceiling_source"] == "EXECUTOR_ML_MAX_PIDS"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"memroy": "1g"}, "kernelspec mine: there is no setting 'memroy'; did you mean 'memory'?"),
        ({"cpus": 9}, "cpus = 9 is above the ceiling of 2 set in EXECUTOR_ML_MAX_CPUS"),
        ([], "/kernels/mine/kernel.json: its config is no object"),
    ],
)
def test_what_would_end_a_start_ends_this(
    config: object,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With the same words."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EXECUTOR_ML_MAX_CPUS", "2")
    user_kernel(tmp_path, text(config))
    assert cli.main(["policy", "--kernel", "mine"]) == 78
    assert words in capsys.readouterr().err


def test_a_name_that_is_no_sandbox_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """With the nearest one; a plain Python kernel has no policy either."""
    assert cli.main(["policy", "--kernel", "exector-ml"]) == 78
    err = capsys.readouterr().err
    assert "no sandboxed kernel named 'exector-ml'; did you mean 'executor-ml'?" in err
    assert "Fix: take one of: executor-ml" in err
    assert cli.main(["policy", "--kernel", "python3"]) == 78
