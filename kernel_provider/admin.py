"""The administrator's word in Jupyter's configuration, ``c.SandboxProvisioner.*``.

A server hands it to its provisioners as traits; commands read the server's files. At
the rim: this imports traitlets.
"""

import logging
from pathlib import Path
from typing import Any, Final

from jupyter_core.paths import jupyter_config_path
from traitlets import Any as AnyTrait
from traitlets.config import Config, Configurable
from traitlets.config.loader import (
    ConfigFileNotFound,
    JSONFileConfigLoader,
    LazyConfigValue,
    PyFileConfigLoader,
)

from kernel_provider.ceilings import Said
from kernel_provider.errors import ConfigFileError

SECTION: Final = "SandboxProvisioner"
SERVER_FILES: Final = ("jupyter_config", "jupyter_server_config", "jupyter_lab_config")


def _trait(meaning: str) -> Any:
    """A trait that is nothing until somebody sets it; what it holds is checked later."""
    return AnyTrait(None, allow_none=True, help=meaning).tag(config=True)


class AdminPolicy(Configurable):
    """What an administrator may set, under the name of the class that inherits it."""

    max_memory = _trait("all memory of a kernel")
    max_cpus = _trait("processors of a kernel")
    max_pids = _trait("processes and threads of a kernel")
    max_tmp_size = _trait("its /tmp")
    max_shm_size = _trait("its /dev/shm")
    max_workspace = _trait("what it may see of the notebook's folder")
    max_workspace_size = _trait("bytes of that at most")
    max_output_limit = _trait("bytes of output for each cell")
    max_output_rate = _trait("bytes of output a second, on top of that")
    max_message_size = _trait("bytes of one message")
    max_message_rate = _trait("messages a second")
    max_message_parts = _trait("parts of one message")
    max_command_size = _trait("bytes of a command between two sockets")
    max_handshake_timeout = _trait("seconds for its half of a handshake")
    max_cell_timeout = _trait("seconds that a cell may run")
    max_loopback = _trait("whether it may have loopback")
    max_gpus = _trait("GPUs of a kernel")
    allowed_images = _trait("list of the images that kernels may have")
    mount_sources = _trait("list of the folders that kernels may be shown")
    defaults = _trait("settings for kernelspecs that do not set them")

    def said(self) -> Said:
        """What is set, and what is misspelt: whoever reads it refuses that."""
        known = AdminPolicy.class_trait_names(config=True)
        found = {name: getattr(self, name) for name in known}
        section = dict(self.config.get(SECTION, {}))
        found |= {name: value for name, value in section.items() if name not in known}
        return {
            name: (f"c.{SECTION}.{name}", value)
            for name, value in found.items()
            if value is not None
        }


def server_files() -> list[tuple[str, Config]]:
    """The server's configuration, file by file: a later one counts more.

    Raises whatever a file raises, since configuration files are programs.
    """
    log = logging.getLogger(__name__)
    found: list[tuple[str, Config]] = []
    for folder in reversed(jupyter_config_path()):
        for name in SERVER_FILES:
            # drop-in files come before the file that they add to
            for drop_in in sorted(Path(folder, f"{name}.d").glob("*.json")):
                loaded = JSONFileConfigLoader(drop_in.name, str(drop_in.parent)).load_config()
                found.append((str(drop_in), loaded))
            for loader, suffix in ((PyFileConfigLoader, "py"), (JSONFileConfigLoader, "json")):
                file = f"{name}.{suffix}"
                try:
                    loaded = loader(file, folder, log=log).load_config()
                except ConfigFileNotFound:
                    continue
                found.append((f"{folder}/{file}", loaded))
    return found


def said_in_files() -> Said:
    """What a server that starts now would hand to its provisioners, with the files.

    Raises ConfigFileError where that server would not start.
    """
    said: dict[str, tuple[str, object]] = {}
    try:
        files = server_files()
    except (Exception, SystemExit) as error:  # configuration files are programs
        reason = f"{type(error).__name__}: {error}"
        raise ConfigFileError(source="the Jupyter server's configuration", reason=reason) from error
    for file, config in files:
        for name, value in dict(config.get(SECTION, {})).items():
            told = value.get_value([]) if isinstance(value, LazyConfigValue) else value
            said[name] = (f"c.{SECTION}.{name} in {file}", told)
    return said
