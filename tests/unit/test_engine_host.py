"""Our own engine, as far as it can be shown without starting one."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kernel_provider.errors import EngineError, EngineUnreachableError
from kernel_provider.setup import engine_host
from kernel_provider.setup.engine_host import EngineHome, EngineStatus


@pytest.fixture
def home(tmp_path: Path) -> EngineHome:
    """A home for an engine that is never started."""
    return EngineHome(data=tmp_path / "data", run=tmp_path / "run")


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[None]:
    """Somebody at ``path`` who gives one caller this answer."""
    path.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(10)


GOOD = b'HTTP/1.0 200 OK\r\n\r\n{"Version": "20.10.24"}'


def test_an_engine_is_one_that_answers(home: EngineHome) -> None:
    """What DOCKER_HOST names is asked for its version."""
    with answering(home.socket, GOOD):
        found = engine_host.find({"DOCKER_HOST": f"unix://{home.socket}"}, home)
    assert found == EngineStatus(socket=str(home.socket), version="20.10.24", pid=None)


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-x\r\n", b"HTTP/1.0 200 OK\r\n\r\n[]", b"HTTP/1.0 404 No\r\n\r\nno"],
)
def test_something_else_is_not_an_engine(home: EngineHome, answer: bytes) -> None:
    """Whoever else listens there is not taken for Docker."""
    with answering(home.socket, answer), pytest.raises(EngineError, match="not Docker"):
        engine_host.version(str(home.socket))


def test_a_dead_socket_is_nobody(home: EngineHome) -> None:
    """A socket file that a killed engine left is not an engine."""
    home.run.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home.socket))
    with pytest.raises(EngineUnreachableError):
        engine_host.version(str(home.socket))


def test_another_process_is_never_taken_for_ours(home: EngineHome) -> None:
    """A pid file that names a process with another command line is stale."""
    home.run.mkdir()
    for text in (str(os.getpid()), "1", "999999999", "", "-1", "x"):
        home.pidfile.write_text(text)
        assert engine_host.running_pid(home) is None


def test_stopping_what_does_not_run_clears_up(home: EngineHome) -> None:
    """Stale files go, nobody is signalled, and False says that nothing ran; twice."""
    assert engine_host.stop(home) is False
    home.run.mkdir()
    home.pidfile.write_text(str(os.getpid()))
    home.socket.touch()
    assert engine_host.stop(home) is False
    assert not home.pidfile.exists()
    assert not home.socket.exists()


def test_it_shares_nothing_with_another_engine(home: EngineHome) -> None:
    """Data, state, socket, configuration and containerd namespace are its own."""
    command = " ".join(home.command("/usr/sbin/dockerd"))
    for own in (
        home.data,
        home.exec_root,
        home.pidfile,
        home.socket,
        home.run / "daemon.json",
    ):
        assert str(own) in command
    for off in ("--iptables=false", "--ip6tables=false", "--bridge=none"):
        assert off in command
    assert "--containerd-namespace=executor-ml" in command
