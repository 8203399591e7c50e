"""For all tests: folders of their own, and nothing left behind."""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep Jupyter's and our own files out of the home of whoever runs the tests.

    The folder for sockets is made by hand: its path must be short.
    """
    home = tmp_path_factory.mktemp("home")
    runtime = Path(f"/tmp/exml-{secrets.token_hex(3)}")
    runtime.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        for variable, name in {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }.items():
            patch.setenv(variable, str(home / name))
        patch.setenv("EXECUTOR_ML_RUNTIME_DIR", str(runtime))
        patch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
        for variable in [name for name in os.environ if name.startswith("EXECUTOR_ML_MAX_")]:
            patch.delenv(variable)
        yield runtime
        left = sorted(str(p.relative_to(runtime)) for p in runtime.rglob("*") if p.name != "uids")
        shutil.rmtree(runtime)
        assert not left, f"left in the folder for sockets: {left}"
