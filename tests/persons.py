"""A person who is not root: folders, a Jupyter server and an engine that tests can take away."""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import nbformat
from proxy import EngineProxy, proxied
from sandboxes import until
from servers import BARE, Server, serving

from kernel_provider.engines.docker import find_socket
from kernel_provider.folders import RUNTIME_VARIABLE
from kernel_provider.kernelspecs import PROVISIONER
from kernel_provider.pool.keeper import CEILING_VARIABLE

COMMAND: Final = Path(sys.executable).with_name("executor-ml")
ROOT: Final = os.geteuid() == 0
PERSON: Final = 64_321 if ROOT else os.getuid()
_RIGHTS: Final = ("inh-caps", "ambient-caps", "bounding-set")
AS_PERSON: Final = (
    (
        *("/usr/bin/setpriv", f"--reuid={PERSON}", f"--regid={PERSON}", "--clear-groups"),
        *(f"--{rights}=-all,+dac_read_search" for rights in _RIGHTS),
    )
    if ROOT
    else ()
)
"""Starts a command as them. They may read everything, since this checkout and its Python may
lie in root's home; what is somebody else's to write or to connect to is closed to them."""


@dataclass(frozen=True, kw_only=True)
class Typed:
    """What a command brought."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, kw_only=True)
class Person:
    """Where they are, and what they have: their engine is a proxy before the real one."""

    folder: Path
    environ: Mapping[str, str]
    server: Server
    proxy: EngineProxy

    @property
    def socket(self) -> Path:
        """What their DOCKER_HOST names: a link that the tests turn."""
        return self.folder / "docker.sock"

    @property
    def runtime(self) -> Path:
        """Their folder for sockets."""
        return self.folder / "run"

    @contextmanager
    def engine_at(self, path: Path | None) -> Iterator[None]:
        """For a while, another engine, or none."""
        self.socket.unlink(missing_ok=True)
        if path is not None:
            self.socket.symlink_to(path)
        try:
            yield
        finally:
            self.usual_engine()

    def usual_engine(self) -> None:
        """The one that works."""
        self.socket.unlink(missing_ok=True)
        self.socket.symlink_to(self.proxy.path)

    @contextmanager
    def kernelspec(self, name: str, config: Mapping[str, object]) -> Iterator[None]:
        """One of theirs, for a while."""
        wanted = {"provisioner_name": PROVISIONER, "config": config}
        spec = {
            "argv": ["executor-ml", "launch", "{connection_file}"],
            "display_name": name,
            "language": "python",
            "interrupt_mode": "message",
            "metadata": {"kernel_provisioner": wanted},
        }
        folder = self.folder / "data" / "kernels" / name
        folder.mkdir(parents=True)
        (folder / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        try:
            yield
        finally:
            shutil.rmtree(folder)

    def begin(self, *words: str, environ: Mapping[str, str] | None = None) -> "Process":
        """Start a command of ours as they would."""
        return subprocess.Popen(
            [*AS_PERSON, COMMAND, *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environ, **(environ or {})},
        )

    def types(self, *words: str, environ: Mapping[str, str] | None = None) -> Typed:
        """The same, until it ends."""
        with self.begin(*words, environ=environ) as process:
            out, err = process.communicate(timeout=120)
        return Typed(code=process.returncode, out=out, err=err)

    def notebook(self, source: str) -> str:
        """A notebook with one cell."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(book, self.folder / "n.ipynb")
        return "n.ipynb"

    def left(self) -> set[str]:
        """What lies in the folder for sockets, but for what is kept there on purpose."""
        return {path.name for path in self.runtime.iterdir()} - {"uids", "deaths"}

    def own(self, folder: Path) -> Path:
        """Make a folder that nobody else may enter."""
        folder.mkdir(mode=0o700)
        give(folder)
        return folder


Process = subprocess.Popen[str]


def give(path: Path) -> None:
    """Make it theirs."""
    os.chown(path, PERSON, -1)


@contextmanager
def person(environ: Mapping[str, str], *, command: Sequence[str] = BARE) -> Iterator[Person]:
    """One with a running server; nothing of theirs may be left in the end."""
    folder = Path(f"/tmp/exw-{secrets.token_hex(3)}")
    folder.mkdir(mode=0o755)
    own = {
        "HOME": f"{folder}",
        "DOCKER_HOST": f"unix://{folder}/docker.sock",
        RUNTIME_VARIABLE: f"{folder}/run",
        "JUPYTER_CONFIG_DIR": f"{folder}/config",
        "JUPYTER_DATA_DIR": f"{folder}/data",
        "JUPYTER_RUNTIME_DIR": f"{folder}/jupyter",
        "IPYTHONDIR": f"{folder}/ipython",
        CEILING_VARIABLE: "0",  # what is left is looked at: nothing is parked beside it
        **environ,
    }
    try:
        give(folder)
        with proxied(find_socket(os.environ), everybody=True) as proxy:
            # killed: SIGTERM does not end every server in which a start has failed, since
            # jupyter_client goes on counting such a kernel as pending
            with serving(
                folder, environ=own, prefix=AS_PERSON, kill=True, command=command
            ) as server:
                made = Person(folder=folder, environ=own, server=server, proxy=proxy)
                made.own(made.runtime)
                made.usual_engine()
                yield made
            gone = until(lambda: not made.left(), 10)
            left = made.left()
            assert made.types("prune").code == 0
        assert gone, f"left in the folder for sockets: {left}"
    finally:
        shutil.rmtree(folder)
