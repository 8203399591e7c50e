"""JupyterLab servers for tests in a browser, and what their kernelspecs are."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpecManager
from kernels import KERNEL
from sandboxes import until
from servers import Server, serving

from kernel_provider.folders import RUNTIME_VARIABLE

OUT: Final = Path(__file__).parent.parent / "out"
JUPYTERLAB: Final = (
    "jupyter-lab",
    "--LabApp.extension_manager=readonly",
    "--ContentsManager.hide_globs=log",  # the server's own, beside the notebooks
)


@dataclass(frozen=True, kw_only=True)
class Lab:
    """A JupyterLab server on this machine, and the folder that it shows."""

    server: Server
    folder: Path

    def page_url(self, path: str = "", *, port: int = 0) -> str:
        """A fresh workspace, at one of the folder's files if one is named.

        ``port`` is another way to the server.
        """
        place = f"http://127.0.0.1:{port or self.server.port}/lab/workspaces"
        tree = f"/tree/{path}" if path else ""
        return f"{place}/{secrets.token_hex(4)}{tree}?token={self.server.token}"

    def ask(self, path: str, *, method: str = "GET") -> Any:
        """What its REST API answers."""
        status, body = self.server.ask(method, f"/api/{path}")
        assert status < 400, (path, status, body)
        return json.loads(body) if body else None

    def sessions(self) -> set[str]:
        """Ids of what runs in it."""
        return {session["id"] for session in self.ask("sessions")}

    def end_sessions(self, keep: set[str]) -> None:
        """Shut all other kernels down, as a closed notebook does not."""
        for session in self.sessions() - keep:
            self.ask(f"sessions/{session}", method="DELETE")


@contextmanager
def serving_lab(
    folder: Path, home: Path, *, environ: Mapping[str, str] | None = None
) -> Iterator[Lab]:
    """A server that shows ``folder`` and keeps its own files in ``home``.

    Its log is to be found in ``out``, by the name of ``home``. It is killed: SIGTERM does
    not end every server in which a start has failed, since jupyter_client goes on counting
    such a kernel as pending. Nothing may be left of its sandboxes all the same.
    """
    set_up(Path(os.environ["JUPYTER_CONFIG_DIR"]))
    OUT.mkdir(exist_ok=True)
    runtime = Path(os.environ[RUNTIME_VARIABLE], secrets.token_hex(2))
    runtime.mkdir(mode=0o700)
    environ = {RUNTIME_VARIABLE: str(runtime), **(environ or {})}
    places = (
        f"--LabApp.workspaces_dir={home}/workspaces",
        f"--LabApp.user_settings_dir={home}/settings",
    )
    command = (*JUPYTERLAB, *places)
    with serving(folder, command=command, environ=environ, kill=True) as server:
        try:
            yield Lab(server=server, folder=folder)
        finally:
            shutil.copyfile(server.log, OUT / f"{home.name}.log")
    assert until(lambda: not left_in(runtime), 60), left_in(runtime)
    shutil.rmtree(runtime)


def left_in(runtime: Path) -> set[str]:
    """What lies in a folder for sockets, but for what is kept there on purpose."""
    return {path.name for path in runtime.iterdir()} - {"uids", "deaths"}


def set_up(config: Path) -> None:
    """Have JupyterLab not ask whether it may fetch news."""
    settings = config / "labconfig"
    settings.mkdir(parents=True, exist_ok=True)
    news = {"@jupyterlab/apputils-extension:announcements": True}
    (settings / "page_config.json").write_text(json.dumps({"disabledExtensions": news}))


@contextmanager
def kernelspec(name: str, display_name: str, config: Mapping[str, object]) -> Iterator[str]:
    """A kernelspec of a user's own; its display name."""
    spec: dict[str, Any] = KernelSpecManager().get_kernel_spec(KERNEL).to_dict()
    spec["display_name"] = display_name
    spec["metadata"]["kernel_provisioner"]["config"] = dict(config)
    folder = Path(os.environ["JUPYTER_DATA_DIR"], "kernels", name)
    folder.mkdir(parents=True)
    try:
        (folder / "kernel.json").write_text(json.dumps(spec))
        yield display_name
    finally:
        shutil.rmtree(folder)
