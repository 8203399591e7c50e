"""Connection files: what is obeyed, and what is refused with a remedy."""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kernel_provider import cli
from kernel_provider import connection as module
from kernel_provider.connection import ConnectionInfoError, bind, read_connection
from kernel_provider.warden.rendezvous import CHANNELS

SAID: dict[str, Any] = {
    **{f"{channel}_port": 9000 + number for number, channel in enumerate(CHANNELS)},
    "ip": "127.0.0.1",
    "key": "b7cf6f5e-6f6e-4a1c-8f0e-8f3d0ce8bb5f",
    "transport": "tcp",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "executor-ml",
}


def write(folder: Path, /, **said: Any) -> str:
    """A connection file; None leaves something out."""
    path = folder / "kernel.json"
    wanted = {key: value for key, value in {**SAID, **said}.items() if value is not None}
    path.write_text(json.dumps(wanted))
    return str(path)


def test_what_a_client_says_is_read(tmp_path: Path) -> None:
    """Ports in the order of the channels; what is left out is as Jupyter has it."""
    told = read_connection(write(tmp_path))
    assert told.ports == (9000, 9001, 9002, 9003, 9004)
    assert (told.transport, told.ip, told.kernel_name) == ("tcp", "127.0.0.1", "executor-ml")
    assert told.key == SAID["key"]
    less = read_connection(
        write(tmp_path, ip=None, transport=None, signature_scheme=None, kernel_name=None)
    )
    assert (less.transport, less.ip, less.kernel_name) == ("tcp", "127.0.0.1", "")


@pytest.mark.parametrize("ip", ["127.0.0.1", "localhost", "127.8.8.8", ""])
def test_loopback_by_any_name(tmp_path: Path, ip: str) -> None:
    """An address of this machine that no other machine reaches."""
    assert read_connection(write(tmp_path, ip=ip)).ip.startswith("127.")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another machine's address": ({"ip": "192.0.2.1"}, "'192.0.2.1' is no address of"),
    "all addresses": ({"ip": "0.0.0.0"}, "'0.0.0.0' is no address of"),  # noqa: S104  refused
    "a name": ({"ip": "example.org"}, "'example.org' is no address of"),
    "IPv6": ({"ip": "::1"}, "'::1' is no address of"),
    "a number": ({"ip": 2130706433.5}, "is no address of"),
    "ipc without a path": ({"transport": "ipc", "ip": None}, "None is no address of"),
    "another transport": ({"transport": "inproc"}, "the transport 'inproc' is not supported"),
    "encryption": ({"curve_publickey": "x", "curve_secretkey": "y"}, "CurveZMQ encryption is not"),
    "another signature": ({"signature_scheme": "hmac-md5"}, "signed by 'hmac-md5' are not"),
    "no key": ({"key": None}, "it has no key"),
    "an empty key": ({"key": ""}, "it has no key"),
    "a key that is no text": ({"key": 5}, "it has no key"),
    "no port": ({"hb_port": None}, "hb_port is None, which is no port"),
    "any port": ({"shell_port": 0}, "shell_port is 0, which is no port"),
    "too large a port": ({"iopub_port": 65536}, "iopub_port is 65536, which is no port"),
    "a port in words": ({"stdin_port": "9002"}, "stdin_port is '9002', which is no port"),
    "a port that is a truth": ({"stdin_port": True}, "stdin_port is True, which is no port"),
    "one port for two": ({"hb_port": 9000}, "two of its channels have the same port"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_obeyed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """With exit code 65, the reason in the first 100 characters, and a remedy."""
    said, reason = REFUSED[what]
    assert cli.main(["launch", "--kernel", "executor-ml", write(tmp_path, **said)]) == 65
    told = capsys.readouterr().err
    assert reason in told[:130]
    assert "\nFix: in the client's settings for kernels, " in told
    assert SAID["key"] not in told


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "is not JSON"), ("[1]", "holds no JSON object"), ("\0\xff", "is not JSON")],
)
def test_files_of_another_kind_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    """Whatever is in them."""
    (tmp_path / "kernel.json").write_text(text)
    with pytest.raises(ConnectionInfoError, match=reason):
        read_connection(str(tmp_path / "kernel.json"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """By its path, and by why it can't be read."""
    with pytest.raises(ConnectionInfoError, match=r"No such file or directory.*gone\.json"):
        read_connection(str(tmp_path / "gone.json"))


def test_somebody_must_say_which_kernelspec(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another one's settings might be weaker: none is guessed."""
    assert cli.main(["launch", write(tmp_path, kernel_name=None)]) == 65
    assert "executor-ml install --name NAME --replace" in capsys.readouterr().err
    assert cli.main(["launch", write(tmp_path, kernel_name="no-such")]) == 78
    assert "no sandboxed kernel named 'no-such'" in capsys.readouterr().err


# --- ports --------------------------------------------------------------------------------


def free_ports() -> dict[str, int]:
    """Five that nobody has now."""
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in CHANNELS]
    ports = {
        f"{channel}_port": probe.getsockname()[1]
        for channel, probe in zip(CHANNELS, probes, strict=True)
    }
    for probe in probes:
        probe.close()
    return ports


def test_ports_are_held_and_answer_nobody_yet(tmp_path: Path) -> None:
    """A client that looks whether its ports are taken learns when there is a kernel."""
    ports = free_ports()
    outer = bind(read_connection(write(tmp_path, **ports)))
    try:
        for listener, port in zip(outer.listeners, ports.values(), strict=True):
            assert listener.getsockname() == ("127.0.0.1", port)
            with socket.socket() as client:
                assert client.connect_ex(("127.0.0.1", port)) != 0
            with socket.socket() as other, pytest.raises(OSError, match="in use"):
                other.bind(("127.0.0.1", port))
    finally:
        outer.close()


def test_a_port_that_is_about_to_be_free_is_waited_for(tmp_path: Path) -> None:
    """After a kill, a warden takes a moment to let go of its kernel's ports."""
    ports = free_ports()
    with socket.create_server(("127.0.0.1", ports["hb_port"])) as taken:
        threading.Timer(0.3, taken.close).start()
        began = time.monotonic()
        bind(read_connection(write(tmp_path, **ports))).close()
        assert time.monotonic() - began >= 0.25


def test_a_port_that_stays_taken_lets_go_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names it, and the four that were had are free again."""
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    ports = free_ports()
    with socket.create_server(("127.0.0.1", ports["hb_port"])):
        with pytest.raises(ConnectionInfoError, match=f"port {ports['hb_port']} of 127.0.0.1"):
            bind(read_connection(write(tmp_path, **ports)))
        with socket.socket() as other:
            other.bind(("127.0.0.1", ports["shell_port"]))


def test_paths_are_made_anew_for_this_user(tmp_path: Path) -> None:
    """An earlier kernel's sockets go; what is no socket stays, and is an error."""
    folder = Path(f"/tmp/exu-ipc-{os.getpid()}")
    folder.mkdir()
    said: dict[str, Any] = {"transport": "ipc", "ip": f"{folder}/k"}
    said |= {f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)}
    try:
        with socket.socket(socket.AF_UNIX) as earlier:
            earlier.bind(f"{folder}/k-1")
        outer = bind(read_connection(write(tmp_path, **said)))
        assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
        outer.close()
        assert not list(folder.iterdir())
        (folder / "k-3").write_text("a person's")
        with pytest.raises(ConnectionInfoError, match="k-3"):
            bind(read_connection(write(tmp_path, **said)))
        assert (folder / "k-3").read_text() == "a person's"
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
