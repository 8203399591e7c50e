"""What a kernelspec's file asks for, once all who have a say were heard."""

import json
from pathlib import Path
from typing import Any

import pytest

from kernel_provider.errors import CeilingError, ConfigError
from kernel_provider.kernelspecs import PROVISIONER, Kernelspec, read_file


def spec(folder: Path, config: dict[str, Any], env: dict[str, str] | None = None) -> Kernelspec:
    """One that was written there."""
    stanza = {"provisioner_name": PROVISIONER, "config": config}
    text = {
        "argv": ["executor-ml", "launch", "--kernel", "mine", "{connection_file}"],
        "display_name": "Mine",
        "language": "python",
        "env": env or {},
        "metadata": {"kernel_provisioner": stanza},
    }
    (folder / "kernel.json").write_text(json.dumps(text))
    found = read_file("mine", folder)
    assert found is not None
    return found


def test_a_launch_of_ours_has_the_kernelspecs_own_variables(tmp_path: Path) -> None:
    """Filled in as Jupyter does; they count more than the setting of the same name."""
    mine = spec(tmp_path, {"env": {"A": "1", "B": "1"}}, {"B": "at ${HERE}", "C": "${GONE}"})
    assert mine.launched({"HERE": "home"}).env == {"A": "1", "B": "at home", "C": "${GONE}"}


def test_ceilings_hold_a_launch_of_ours(tmp_path: Path) -> None:
    """Those of the environment, as in a Jupyter server."""
    with pytest.raises(CeilingError, match="above the ceiling of 256 MB"):
        spec(tmp_path, {"memory": "1g"}).launched({"EXECUTOR_ML_MAX_MEMORY": "256m"})


def test_the_kernelspecs_variables_obey_the_rules_of_the_setting(tmp_path: Path) -> None:
    """LD_PRELOAD would change the process that watches over the kernel."""
    with pytest.raises(ConfigError, match="LD_PRELOAD"):
        spec(tmp_path, {}, {"LD_PRELOAD": "/tmp/x.so"}).launched({})
