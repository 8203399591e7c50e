"""Look at Jupyter as it is installed here: entry points, programs, configuration."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from traitlets.config import Config

from kernel_provider.admin import server_files
from kernel_provider.doctor.model import Listing, ServerSettings
from kernel_provider.kernelspecs import PROVISIONER

GROUP: Final = "jupyter_client.kernel_provisioners"
LIST_WITHIN: Final = 60.0

MANAGERS: Final = ("MultiKernelManager", "MappingKernelManager", "AsyncMappingKernelManager")


def provisioner_problem() -> str:
    """Import the provisioner as Jupyter would; what Jupyter hides is the answer."""
    entries = metadata.entry_points(group=GROUP, name=PROVISIONER)
    if not entries:
        return f"{PROVISIONER} is not registered in the environment {sys.prefix}"
    try:
        next(iter(entries)).load()
    except Exception as error:  # noqa: BLE001  any error of any import is what is looked for
        return f"{type(error).__name__}: {error}"
    return ""


def version_of(package: str) -> str | None:
    """Version of an installed package, None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def is_older(version: str, than: tuple[int, ...]) -> bool:
    """Whether a version's leading numbers come before those of ``than``."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[: len(than)])
    return numbers < than


def jupyters(path: str) -> tuple[Listing, ...]:
    """Ask the ``jupyter`` on ``path`` for its kernelspecs, and that of this environment."""
    beside = shutil.which("jupyter", path=str(Path(sys.executable).parent))
    programs = [p for p in (shutil.which("jupyter", path=path), beside) if p]
    distinct = {os.path.realpath(p): p for p in reversed(programs)}
    return tuple(_list_kernelspecs(p) for p in reversed(distinct.values()))


def _list_kernelspecs(program: str) -> Listing:
    try:
        done = subprocess.run(
            [program, "kernelspec", "list", "--json"],
            capture_output=True,
            text=True,
            timeout=LIST_WITHIN,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        names = frozenset(json.loads(done.stdout)["kernelspecs"])
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        return Listing(program=program, problem=lines[-1])
    except subprocess.TimeoutExpired:
        return Listing(program=program, problem=f"no answer within {LIST_WITHIN:g} s")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Listing(program=program, problem=str(error))
    return Listing(program=program, names=names)


def server_settings() -> ServerSettings | None:
    """Read the server's configuration files as it would; None without a server."""
    if version_of("jupyter_server") is None:
        return None
    config = Config()
    try:
        for _, loaded in server_files():
            config.merge(loaded)
    except (Exception, SystemExit) as error:  # noqa: BLE001  configuration files are programs
        return ServerSettings(problem=f"{type(error).__name__}: {error}")
    buffers: object = True
    for name in MANAGERS:
        buffers = config.get(name, {}).get("buffer_offline_messages", buffers)
    server: dict[str, Any] = config.get("ServerApp", {})
    extensions: dict[str, Any] = server.get("jpserver_extensions", {})
    terminals = server.get("terminals_enabled", True) and extensions.get(
        "jupyter_server_terminals", version_of("jupyter_server_terminals") is not None
    )
    manager = config.get("LabApp", {}).get("extension_manager", "pypi")
    return ServerSettings(
        buffers_offline=bool(buffers),
        terminals=bool(terminals),
        installs=version_of("jupyterlab") is not None and manager != "readonly",
    )
