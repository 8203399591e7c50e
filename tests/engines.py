"""A second engine for drills that no shared one may suffer, with the images of the first."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker

from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import EngineError
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome
from kernel_provider.warden import cgroup

START = 60.0
END = 40.0
"""Seconds; an engine gives what it runs 10 s to end, and tries again with SIGKILL."""

LINK = """
set -e
mount --bind / "$1"
cd "$1$2"
mkdir -p "$1$3/image/overlay2"
cp -al overlay2 "$1$3/overlay2"
cd image/overlay2
cp -al distribution imagedb repositories.json "$1$3/image/overlay2"
mkdir "$1$3/image/overlay2/layerdb"
cp -al layerdb/sha256 "$1$3/image/overlay2/layerdb"
"""
"""Hard links of one engine's layers into another's folder, beneath the engine's own mount
of its folder; layers are only read, and records of containers are left out."""


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
passed = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execve(sys.argv[2], sys.argv[2:], {**os.environ, **passed})
"""
"""https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html"""


def share_images(data: Path) -> None:
    """Give an engine that is yet to start what the tests' engine has: in two seconds.

    Both folders are to be on one disk.
    """
    client = docker.DockerClient(base_url=f"unix://{find_socket(os.environ)}")
    try:
        source = str(client.info()["DockerRootDir"])
    finally:
        client.close()
    with tempfile.TemporaryDirectory() as place:
        command = ["unshare", "--mount", "sh", "-c", LINK, "sh", place, source, str(data)]
        subprocess.run(command, check=True, capture_output=True)


@contextmanager
def twin_engine(home: EngineHome) -> Iterator[str]:
    """A second engine with all named images of the first, and its DOCKER_HOST.

    Nothing of it is left. Where layers can't be linked they are copied: about a minute.
    """
    try:
        try:
            share_images(home.data)
            linked = True
        except (OSError, subprocess.CalledProcessError):
            shutil.rmtree(home.data, ignore_errors=True)
            linked = False
        with own_engine(home) as made:
            for image in [] if linked else _tags():
                copy_image(image, made.address)
            yield made.address
    finally:
        shutil.rmtree(home.data, ignore_errors=True)


def _tags() -> list[str]:
    client = docker.DockerClient(base_url=f"unix://{find_socket(os.environ)}")
    try:
        return [tag for image in client.images.list() for tag in image.tags]
    finally:
        client.close()


def copy_image(image: str, address: str) -> None:
    """Carry an image over to a running engine, whatever it makes of the files' owners."""
    source = docker.DockerClient(base_url=f"unix://{find_socket(os.environ)}", timeout=300)
    target = docker.DockerClient(base_url=address, timeout=300)
    try:
        stream: Any = source.images.get(image).save(named=image)
        target.images.load(stream)
    finally:
        source.close()
        target.close()


@contextmanager
def held_socket(home: EngineHome) -> Iterator[socket.socket]:
    """Listen in an engine's place, whether it runs or not, as systemd does."""
    home.run.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(home.socket))
        held.listen(128)
        yield held


class OwnEngine:
    """An engine that can be told to end, or killed, and started again."""

    def __init__(
        self,
        home: EngineHome,
        *options: str,
        within: Sequence[str] = (),
        held: socket.socket | None = None,
    ) -> None:
        """``within`` is what runs the engine's own command line, given at its end.

        A listener that is ``held`` is passed to it, as systemd does.
        """
        self.home = home
        self._options = options
        self._within = within
        self._held = held
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """What DOCKER_HOST is to be."""
        return f"unix://{self.home.socket}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        dockerd = engine_host.dockerd_path()
        assert dockerd is not None
        self.home.run.mkdir(exist_ok=True)
        (self.home.run / "daemon.json").write_text("{}")
        self._forget_containerd()
        command, passed = self.home.command(dockerd), []
        if self._held is not None:
            passed = [self._held.fileno()]
            host = f"--host={self.address}"
            command = ["--host=fd://" if word == host else word for word in command]
            command = [sys.executable, "-c", ACTIVATE, str(passed[0]), *command]
        with self.home.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._within, *command, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=passed,
                start_new_session=True,
            )
        deadline = time.monotonic() + START
        while True:
            assert self._process.poll() is None, self.home.log.read_text()[-2000:]
            try:
                DockerEngine(str(self.home.socket)).by(time.monotonic() + 2).version()
            except EngineError:
                assert time.monotonic() < deadline, self.home.log.read_text()[-2000:]
                time.sleep(0.05)
            else:
                return

    def _forget_containerd(self) -> None:
        """A zombie is no containerd, and where PID 1 reaps none dockerd waits for it."""
        file = self.home.exec_root / "containerd" / "containerd.pid"
        if file.exists() and not cgroup.is_alive(int(file.read_text())):
            file.unlink()

    def end(self, number: int) -> None:
        """Send the engine a signal that ends it, and wait until it has."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(END)
        self._process = None

    def close(self) -> None:
        """End it, whatever became of it, and take its mounts off."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(END)
        engine_host.stop(self.home)


@contextmanager
def own_engine(
    home: EngineHome,
    *options: str,
    within: Sequence[str] = (),
    held: socket.socket | None = None,
) -> Iterator[OwnEngine]:
    """A running engine; its data stay, all else goes."""
    made = OwnEngine(home, *options, within=within, held=held)
    try:
        made.start()
        yield made
    finally:
        made.close()
        shutil.rmtree(home.run, ignore_errors=True)
