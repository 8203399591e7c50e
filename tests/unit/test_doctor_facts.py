"""How the doctor looks: the engine's answers, Jupyter's files, kernelspecs, leftovers."""

import http.server
import json
import os
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel_provider import admin, kernelspecs, names
from kernel_provider.ceilings import Machine
from kernel_provider.doctor import gather, host, jupyter
from kernel_provider.doctor.engine import ask
from kernel_provider.doctor.model import GpuFacts, ServerSettings
from kernel_provider.engines import ContainerSummary
from kernel_provider.errors import (
    EngineError,
    EngineUnreachableError,
    ImageMissingError,
    SandboxError,
)
from kernel_provider.warden import cgroup

INFO: dict[str, Any] = {
    "MemoryLimit": True,
    "SwapLimit": False,
    "CpuCfsPeriod": True,
    "CpuCfsQuota": False,
    "PidsLimit": True,
    "CgroupVersion": "2",
    "CgroupDriver": "systemd",
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"],
    "DockerRootDir": "/home/me/.local/share/docker",
    "NCPU": 8,
    "MemTotal": 1 << 34,
    "Runtimes": {"runc": {}, "nvidia": {}},
}
VERSION = {"Version": "29.0", "ApiVersion": "1.52", "MinAPIVersion": "1.44"}


class Answers(http.server.BaseHTTPRequestHandler):
    """Docker, as far as the doctor asks; ``pages`` maps paths to status and body."""

    def do_GET(self) -> None:
        """Answer, 404 for what is not there."""
        pages: dict[str, tuple[int, bytes]] = getattr(self.server, "pages")  # noqa: B009
        status, body = pages.get(self.path, (404, b'{"message": "no such thing"}'))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        """Nobody: a unix socket has no address."""
        return ""

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[tuple[str, dict[str, tuple[int, bytes]]]]:
    """A socket where Docker seems to answer, and its pages, to be changed."""
    path = str(tmp_path / "d.sock")
    pages = {
        "/v1.41/version": (200, json.dumps(VERSION).encode()),
        "/v1.41/info": (200, json.dumps(INFO).encode()),
        "/v1.41/containers/json?all=1&filters=%7B%22label%22:%20%5B%22executor-ml%3Dkernel%22"
        "%5D%7D": (200, b"[]"),
    }
    with socketserver.ThreadingUnixStreamServer(path, Answers) as server:
        setattr(server, "pages", pages)  # noqa: B010
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield path, pages
        server.shutdown()
        thread.join()


def test_the_engine_is_described(docker: tuple[str, dict[str, tuple[int, bytes]]]) -> None:
    """Limits that it can't hold have our names, each once."""
    found = ask(docker[0])
    assert found.lacking == ("swap", "cpus")
    assert (found.seccomp, found.rootless) == (True, True)
    assert (found.api, found.oldest_api, found.version) == ("1.52", "1.44", "29.0")
    assert found.machine == Machine(cpus=8, memory=1 << 34)
    assert found.data_root == "/home/me/.local/share/docker"
    assert found.runtimes == {"runc", "nvidia"}


def test_what_gpus_need_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver, the toolkit as a runtime or as its program, a specification for CDI."""
    driver, cdi, programs = tmp_path / "version", tmp_path / "cdi", tmp_path / "bin"
    monkeypatch.setattr(host, "DRIVER", driver)
    monkeypatch.setattr(host, "CDI", (cdi,))
    monkeypatch.setenv("PATH", str(programs))
    assert host.gpus(["runc"]) == GpuFacts()
    assert host.gpus(["runc", "nvidia"]) == GpuFacts(toolkit=True)
    for path in (driver, cdi / "nvidia.yaml", programs / host.HOOK):
        path.parent.mkdir(exist_ok=True)
        path.touch(0o755)
    assert host.gpus(["runc"]) == GpuFacts(driver=True, toolkit=True, cdi=True)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ((500, b'{"message": "broken inside"}'), "broken inside"),
        ((500, b"{}"), "status 500"),
        ((200, b"not json"), "not JSON"),
        ((200, b"[]"), "not Docker at"),
    ],
)
def test_an_engine_that_says_nonsense_is_an_error(
    docker: tuple[str, dict[str, tuple[int, bytes]]], page: tuple[int, bytes], words: str
) -> None:
    """With what it said, as far as it can be read."""
    docker[1]["/v1.41/info"] = page
    with pytest.raises(EngineError, match=words):
        ask(docker[0])


def test_nobody_at_the_socket_is_told_apart(tmp_path: Path) -> None:
    """No file is not "no permission"."""
    with pytest.raises(EngineUnreachableError, match="No such file"):
        ask(str(tmp_path / "none"))


def test_everything_is_gathered(docker: tuple[str, dict[str, tuple[int, bytes]]]) -> None:
    """Errors stand where values would; nothing is raised."""
    facts = gather({**os.environ, "DOCKER_HOST": f"unix://{docker[0]}"})
    assert not isinstance(facts.engine, SandboxError)
    assert isinstance(facts.images[names.IMAGE], ImageMissingError)
    assert facts.leftovers == ()
    assert facts.provisioner_problem == ""
    assert "executor-ml" in {spec.name for spec in facts.kernelspecs}
    assert facts.engine_space is not None
    assert facts.engine_space.free is None


def test_nothing_that_is_broken_stops_the_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Engine, ceilings and runtime folder are errors, and all else is still found."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    facts = gather(
        {
            "DOCKER_HOST": "tcp://elsewhere:1",
            "EXECUTOR_ML_MAX_MEMORY": "much",
            "EXECUTOR_ML_RUNTIME_DIR": "/" + "x" * 200,
        }
    )
    assert "tcp://elsewhere:1" in str(facts.engine)
    assert "EXECUTOR_ML_MAX_MEMORY: memory = 'much'" in str(facts.ceilings)
    assert "and 74 are possible" in str(facts.runtime)
    assert (facts.leftovers, facts.images) == (None, {})


# --- Jupyter ------------------------------------------------------------------------------


def test_the_real_import_error_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter says "not available" and hides what the import said."""
    assert jupyter.provisioner_problem() == ""
    monkeypatch.setitem(sys.modules, "kernel_provider.provisioner", None)
    problem = jupyter.provisioner_problem()
    assert problem.startswith("ModuleNotFoundError: ")
    assert "kernel_provider.provisioner" in problem


def test_a_package_that_is_not_installed_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No entry point: the environment is named."""
    monkeypatch.setattr(jupyter, "PROVISIONER", "no-such-provisioner")
    assert f"is not registered in the environment {sys.prefix}" in jupyter.provisioner_problem()


@pytest.mark.parametrize(
    ("version", "older"), [("3.9.14", True), ("3.9.15", False), ("3.10.0", False), ("2", True)]
)
def test_versions_compare_by_numbers(version: str, older: bool) -> None:  # noqa: FBT001
    """3.10 comes after 3.9.15."""
    assert jupyter.is_older(version, (3, 9, 15)) is older


@pytest.fixture
def configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The only two folders of configuration: the first one counts more."""
    folders = (tmp_path / "mine", tmp_path / "system")
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(admin, "jupyter_config_path", lambda: [str(f) for f in folders])
    return folders


def test_without_configuration_the_servers_defaults_count(configs: tuple[Path, Path]) -> None:
    """It buffers, has terminals, and lets a page install packages."""
    assert configs
    assert jupyter.server_settings() == ServerSettings(
        buffers_offline=True, terminals=True, installs=True
    )


def test_configuration_is_read_as_the_server_does(configs: tuple[Path, Path]) -> None:
    """Python and JSON, of Jupyter, server and lab; a person's own counts more."""
    mine, system = configs
    (system / "jupyter_server_config.py").write_text(
        "c.MappingKernelManager.buffer_offline_messages = True\n"
        "c.ServerApp.terminals_enabled = False\n"
    )
    (system / "jupyter_lab_config.py").write_text('c.LabApp.extension_manager = "readonly"\n')
    (mine / "jupyter_config.json").write_text(
        '{"AsyncMappingKernelManager": {"buffer_offline_messages": false}}'
    )
    assert jupyter.server_settings() == ServerSettings(
        buffers_offline=False, terminals=False, installs=False
    )


def test_terminals_can_be_off_as_an_extension(configs: tuple[Path, Path]) -> None:
    """What ``jupyter server extension disable`` writes is understood."""
    drop_in = configs[0] / "jupyter_server_config.d"
    drop_in.mkdir()
    (drop_in / "terminals.json").write_text(
        '{"ServerApp": {"jpserver_extensions": {"jupyter_server_terminals": false}}}'
    )
    found = jupyter.server_settings()
    assert found is not None
    assert not found.terminals


@pytest.mark.parametrize("text", ["1 / 0", "import sys; sys.exit('no')"])
def test_configuration_that_fails_is_told(configs: tuple[Path, Path], text: str) -> None:
    """It is a program, and may do anything but stop the doctor."""
    (configs[0] / "jupyter_server_config.py").write_text(text)
    found = jupyter.server_settings()
    assert found is not None
    assert found.problem in {"ZeroDivisionError: division by zero", "SystemExit: no"}


def test_without_a_server_there_is_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package works with jupyter_client alone."""
    monkeypatch.setattr(jupyter, "version_of", lambda _name: None)
    assert jupyter.server_settings() is None


@pytest.mark.parametrize(
    ("script", "listed", "problem"),
    [
        ('echo \'{"kernelspecs": {"executor-ml": {}}}\'', {"executor-ml"}, ""),
        ("echo nonsense", set(), "Expecting value"),
        ("echo one >&2; echo two >&2; exit 3", set(), "two"),
        ("exit 3", set(), "exit code 3"),
    ],
)
def test_the_jupyter_on_path_is_asked_first(
    tmp_path: Path, script: str, listed: set[str], problem: str
) -> None:
    """What it lists, or the last line of why it lists nothing."""
    program = tmp_path / "jupyter"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    first = jupyter.jupyters(str(tmp_path))[0]
    assert first.program == str(program)
    assert first.names == listed
    assert problem in first.problem


# --- kernelspecs --------------------------------------------------------------------------


def folder(root: Path, text: str) -> Path:
    """A kernelspec's folder."""
    (root / "kernel.json").write_text(text)
    return root


def spec(**changes: Any) -> str:
    """A kernel.json of ours, with changes."""
    wanted = {"provisioner_name": kernelspecs.PROVISIONER, "config": {"cpus": 1}, **changes}
    return json.dumps({"argv": ["x"], "metadata": {"kernel_provisioner": wanted}})


def test_ours_is_read_and_others_are_left_alone(tmp_path: Path) -> None:
    """By the provisioner that it names."""
    found = kernelspecs.read_file("mine", folder(tmp_path, spec()))
    assert found is not None
    assert (found.name, found.config, found.problem) == ("mine", {"cpus": 1}, "")
    other = spec(provisioner_name="other", note=kernelspecs.PROVISIONER)
    assert kernelspecs.read_file("mine", folder(tmp_path, other)) is None
    assert kernelspecs.read_file("mine", folder(tmp_path, '{"argv": []}')) is None
    assert kernelspecs.read_file("mine", tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"{{ {kernelspecs.PROVISIONER}", "line 1, column 3: not JSON: Expecting"),
        ("", "line 1, column 1: not JSON"),
        ('{"argv": [],\n "metadata": {},}', "line 2, column 1"),
        (json.dumps({"argv": [], "metadata": kernelspecs.PROVISIONER}), "TypeError"),
        (spec(config=[]), "its config is no object"),
    ],
)
def test_ours_that_is_broken_says_why(tmp_path: Path, text: str, problem: str) -> None:
    """Jupyter would just not list it; whose one is that is not JSON nobody can tell."""
    found = kernelspecs.read_file("mine", folder(tmp_path, text))
    assert found is not None
    assert problem in found.problem


# --- leftovers ----------------------------------------------------------------------------


def container(name: str, warden: str, state: str = "running") -> ContainerSummary:
    """A sandbox as the engine lists it."""
    return ContainerSummary(id=name, name=name, state=state, labels={names.LABEL_WARDEN: warden})


def test_only_sandboxes_of_dead_wardens_are_leftovers() -> None:
    """Ours that lives stays; one from elsewhere is left over when it has ended."""
    mine = cgroup.identity(os.getpid())
    dead = ":".join([*mine.split(":")[:3], "1"])
    found = host.abandoned_containers(
        [
            container("alive", mine),
            container("dead", dead),
            container("foreign", "boot:1:2:3"),
            container("ended", "boot:1:2:3", "exited"),
        ]
    )
    assert found == ("dead", "ended")


def test_only_folders_of_the_dead_are_leftovers(tmp_path: Path) -> None:
    """Told by pid and start time in their name, and by nobody listening."""
    me = f"{os.getpid()}-{cgroup.start_time(os.getpid())}"
    for name in (f"w-{me}-aa", f"w-{os.getpid()}-1-bb", "s-999999999-1-cc", "uids", "x-1-2-3"):
        (tmp_path / name).mkdir()
    assert host.abandoned_folders(str(tmp_path)) == ("s-999999999-1-cc", f"w-{os.getpid()}-1-bb")


def test_a_disk_that_cannot_be_seen_is_unknown() -> None:
    """An engine's folder may be out of sight."""
    assert host.space("/nowhere").free is None
    assert (host.space("/tmp").free or 0) > 0
