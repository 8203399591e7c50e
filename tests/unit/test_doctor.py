"""What the doctor makes of what it finds: each check, each remedy, the report."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kernel_provider import cli
from kernel_provider.builder.model import BuildRequest, BuildResult, Event, Phase, Report
from kernel_provider.ceilings import Ceilings, Machine
from kernel_provider.commands.doctor import mend, report, wants_colour
from kernel_provider.doctor import CheckResult, Facts, Status, examine
from kernel_provider.doctor import mend as mending
from kernel_provider.doctor.model import EngineFacts, GpuFacts, Listing, ServerSettings, Space
from kernel_provider.engines import ImageFacts
from kernel_provider.errors import (
    ConfigError,
    EngineAddressError,
    EnginePermissionError,
    EngineUnreachableError,
    ImageMissingError,
    RuntimeFolderError,
)
from kernel_provider.kernelspecs import Kernelspec
from kernel_provider.steps import SetupError, Steps
from kernel_provider.values import MIB

ENGINE = EngineFacts(
    socket="/run/docker.sock",
    version="27.0",
    api="1.46",
    oldest_api="1.24",
    cgroup_version="2",
    cgroup_driver="systemd",
    lacking=(),
    seccomp=True,
    rootless=False,
    data_root="/var/lib/docker",
    machine=Machine(cpus=4, memory=8192 * MIB),
)
SPEC = Kernelspec(
    name="executor-ml",
    folder="/kernels/executor-ml",
    argv=("executor-ml", "launch", "--kernel", "executor-ml", "{connection_file}"),
    config={"memory": "1g"},
)
IMAGE = "executor-ml:latest"
GOOD = Facts(
    engine=ENGINE,
    ceilings=Ceilings(limits={"memory": 2048 * MIB}),
    images={IMAGE: ImageFacts(id="sha256:1", labels={"executor-ml.protocol": "1"})},
    kernelspecs=(SPEC,),
    jupyters=(Listing(program="/bin/jupyter", names=frozenset({"executor-ml"})),),
    orjson="3.9.15",
    server=ServerSettings(buffers_offline=False, terminals=False, installs=False),
    runtime="/run/user/1/executor-ml",
    runtime_space=Space(folder="/run/user/1/executor-ml", free=100 * MIB),
    engine_space=Space(folder="/var/lib/docker", free=10_000 * MIB),
    leftovers=(),
)


def result(facts: Facts, name: str) -> CheckResult:
    """The one result of that name."""
    (found,) = [r for r in examine(facts) if r.name == name]
    return found


def with_engine(**changes: Any) -> Facts:
    """The good machine with another engine."""
    return replace(GOOD, engine=replace(ENGINE, **changes))


def with_spec(**changes: Any) -> Facts:
    """The good machine with another kernelspec."""
    return replace(GOOD, kernelspecs=(replace(SPEC, **changes),))


def test_a_good_machine_has_nothing_to_mend() -> None:
    """Every check is ok and none has a remedy; names are unique."""
    results = examine(GOOD)
    assert {r.status for r in results} == {Status.OK}
    assert not any(r.fix for r in results)
    assert len({r.name for r in results}) == len(results) == 18


UNREACHABLE = EngineUnreachableError(socket="/x", reason="Connection refused")
BAD: list[tuple[Facts, str, Status, str, str]] = [
    (
        replace(GOOD, engine=UNREACHABLE),
        "engine",
        Status.FAIL,
        "no container engine answers at /x (Connection refused)",
        "start Docker",
    ),
    (
        replace(GOOD, engine=EnginePermissionError(socket="/x")),
        "engine",
        Status.FAIL,
        "this user may not use the container engine at /x",
        "join the group",
    ),
    (
        replace(GOOD, engine=EngineAddressError(address="tcp://a:1")),
        "engine",
        Status.FAIL,
        "tcp://a:1",
        "unix://",
    ),
    (with_engine(api="1.40"), "engine API", Status.FAIL, "1.24 to 1.40", "20.10 or newer"),
    (with_engine(cgroup_version=""), "control groups", Status.FAIL, "has none", "run the engine"),
    (
        with_engine(lacking=("swap", "pids")),
        "limits",
        Status.FAIL,
        "cannot hold: swap, pids",
        "swapaccount=1",
    ),
    (with_engine(lacking=("cpus",), rootless=True), "limits", Status.FAIL, "cpus", "delegate"),
    (with_engine(seccomp=False), "seccomp", Status.FAIL, "cannot filter", "CONFIG_SECCOMP"),
    (
        replace(GOOD, images={IMAGE: ImageMissingError(image=IMAGE)}),
        f"image {IMAGE}",
        Status.FAIL,
        "is not on this machine",
        "executor-ml build",
    ),
    (
        replace(GOOD, images={IMAGE: ImageFacts(id="i", labels={"executor-ml.protocol": "0"})}),
        f"image {IMAGE}",
        Status.FAIL,
        "speaks protocol 0",
        "executor-ml build",
    ),
    (
        replace(GOOD, ceilings=ConfigError(source="/etc/p", key="k", value=1, reason="bad")),
        "ceilings",
        Status.FAIL,
        "/etc/p: k = 1",
        "change k in /etc/p",
    ),
    (
        with_spec(config={"gpus": "all"}),
        "kernelspec executor-ml",
        Status.FAIL,
        "no driver of NVIDIA's on this machine and no container toolkit of NVIDIA's",
        "install NVIDIA's driver and container toolkit",
    ),
    (
        replace(with_spec(config={"gpus": 1}), gpus=GpuFacts(driver=True, cdi=True)),
        "kernelspec executor-ml",
        Status.FAIL,
        "it asks for GPUs, and there is no container toolkit of NVIDIA's in the engine",
        "nvidia-ctk runtime configure",
    ),
    (
        replace(
            with_spec(config={"gpus": ["nvidia.com/gpu=0"]}),
            gpus=GpuFacts(driver=True, toolkit=True),
        ),
        "kernelspec executor-ml",
        Status.FAIL,
        "no specification of them in /etc/cdi (nvidia-ctk cdi generate)",
        "install NVIDIA's driver and container toolkit",
    ),
    (
        replace(GOOD, kernelspecs=()),
        "kernelspecs",
        Status.FAIL,
        "no kernelspec asks for a sandbox",
        "executor-ml install",
    ),
    (
        with_spec(problem="line 7, column 3: not JSON: Expecting value"),
        "kernelspec executor-ml",
        Status.FAIL,
        "/kernels/executor-ml/kernel.json: line 7, column 3: not JSON",
        "mend that file, or remove its folder",
    ),
    (
        with_spec(problem="not JSON: it is no text"),
        "kernelspecs",
        Status.FAIL,
        "no kernelspec asks for a sandbox",
        "executor-ml install",
    ),
    (
        with_spec(argv=("python", "-m", "ipykernel_launcher", "-f", "{connection_file}")),
        "kernelspec executor-ml",
        Status.FAIL,
        "outside a sandbox",
        '["executor-ml", "launch", "--kernel", "executor-ml", "{connection_file}"]',
    ),
    (
        with_spec(argv=("executor-ml", "launch", "--kernel", "ml-1g", "{connection_file}")),
        "kernelspec executor-ml",
        Status.WARN,
        "the settings of another kernelspec",
        'set argv to ["executor-ml", "launch", "--kernel", "executor-ml", "{connection_file}"]',
    ),
    (
        with_spec(config={"memroy": "1g"}),
        "kernelspec executor-ml",
        Status.FAIL,
        "did you mean 'memory'?",
        "remove 'memroy'",
    ),
    (
        with_spec(config={"memory": "3g"}),
        "kernelspec executor-ml",
        Status.FAIL,
        "above the ceiling of 2 GB",
        "at most 2 GB",
    ),
    (
        with_spec(config={"cpus": 5}),
        "kernelspec executor-ml",
        Status.FAIL,
        "cpus = 5 is more than this machine has: 4 processors",
        "ask for at most 4 processors",
    ),
    (
        replace(
            with_engine(machine=replace(ENGINE.machine, cgroup=1)),
            kernelspecs=(replace(SPEC, config={"loopback": True}),),
        ),
        "kernelspec executor-ml",
        Status.FAIL,
        "sockets hold unread data outside of the memory limit",
        'set loopback to "insist" in kernelspec executor-ml',
    ),
    (
        with_engine(machine=Machine(cpus=4, memory=768 * MIB)),
        "kernelspec executor-ml",
        Status.FAIL,
        "memory = 1 GB is more than this machine has: 768 MB",
        "ask for at most 768 MB",
    ),
    (
        with_spec(argv=("/gone/executor-ml", "launch", "{connection_file}")),
        "kernelspec executor-ml",
        Status.WARN,
        "/gone/executor-ml is gone",
        "executor-ml install --name executor-ml --replace",
    ),
    (
        replace(GOOD, provisioner_problem="ImportError: no docker"),
        "provisioner",
        Status.FAIL,
        "ImportError: no docker",
        "pip install executor-ml-kernel",
    ),
    (replace(GOOD, jupyters=()), "jupyter", Status.WARN, "no jupyter program", "jupyterlab"),
    (
        replace(GOOD, jupyters=(Listing(program="/j", problem="broken"),)),
        "jupyter",
        Status.FAIL,
        "/j does not list executor-ml (broken)",
        "see what it says: /j kernelspec list",
    ),
    (
        replace(GOOD, jupyters=(Listing(program="/j"),)),
        "jupyter",
        Status.FAIL,
        "/j does not list executor-ml",
        "provisioner and kernelspecs",
    ),
    (
        replace(GOOD, jupyters=(Listing(program="/other/jupyter"), *GOOD.jupyters)),
        "jupyter",
        Status.WARN,
        "/other/jupyter does not list executor-ml",
        "start /bin/jupyter",
    ),
    (replace(GOOD, orjson="3.9.14"), "orjson", Status.FAIL, "3.9.14", "--upgrade orjson"),
    (
        replace(GOOD, server=ServerSettings()),
        "server settings",
        Status.WARN,
        "buffered without bound",
        (
            "c.MappingKernelManager.buffer_offline_messages = False; "
            "c.ServerApp.terminals_enabled = False; "
            'c.LabApp.extension_manager = "readonly"'
        ),
    ),
    (
        replace(GOOD, other_kernels=("ir", "python3")),
        "other kernels",
        Status.WARN,
        "outside of any sandbox: ir, python3",
        "executor-ml install --sys-prefix --name ir --replace",
    ),
    (
        replace(GOOD, server=ServerSettings(problem="NameError: x")),
        "server settings",
        Status.WARN,
        "cannot be read: NameError: x",
        "jupyter --paths",
    ),
    (
        replace(GOOD, runtime=RuntimeFolderError(path="/r", reason="it is open to others")),
        "runtime folder",
        Status.FAIL,
        "/r, cannot be used: it is open to others",
        "EXECUTOR_ML_RUNTIME_DIR",
    ),
    (
        replace(GOOD, engine_space=Space(folder="/d", free=100 * MIB)),
        "engine's disk",
        Status.FAIL,
        "100 MB free at /d",
        "free some room",
    ),
    (
        replace(GOOD, engine_space=Space(folder="/d", free=1000 * MIB)),
        "engine's disk",
        Status.WARN,
        "1000 MB free at /d",
        "free some room",
    ),
    (
        replace(GOOD, runtime_space=Space(folder="/r", free=0)),
        "runtime disk",
        Status.FAIL,
        "0 MB free at /r",
        "free some room",
    ),
    (
        replace(GOOD, leftovers=("a", "b", "c", "d", "e")),
        "leftovers",
        Status.WARN,
        "a, b, c, d and 1 more",
        "executor-ml prune",
    ),
]


@pytest.mark.parametrize(
    ("wanted", "there"),
    [
        ("all", GpuFacts(driver=True, toolkit=True)),
        (["0"], GpuFacts(driver=True, toolkit=True)),
        (["nvidia.com/gpu=0"], GpuFacts(driver=True, cdi=True)),
    ],
)
def test_gpus_need_nothing_that_is_there(wanted: object, there: GpuFacts) -> None:
    """By either way of the engine to them."""
    told = result(replace(with_spec(config={"gpus": wanted}), gpus=there), "kernelspec executor-ml")
    assert (told.status, told.fix) == (Status.OK, "")


@pytest.mark.parametrize(("facts", "name", "status", "found", "fix"), BAD)
def test_what_is_wrong_is_said_with_its_remedy(
    facts: Facts, name: str, status: Status, found: str, fix: str
) -> None:
    """One line of what was found, one of what to do."""
    told = result(facts, name)
    assert told.status is status
    assert found in told.found
    assert fix in told.fix
    assert "\n" not in told.found + told.fix


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (replace(GOOD, engine=UNREACHABLE), "limits"),
        (replace(GOOD, engine=UNREACHABLE), "seccomp"),
        (replace(GOOD, ceilings=UNREACHABLE), "kernelspec executor-ml"),
        (replace(GOOD, kernelspecs=()), "jupyter"),
        (replace(GOOD, server=None), "server settings"),
        (replace(GOOD, engine_space=Space(folder="/d", free=None)), "engine's disk"),
        (replace(GOOD, engine_space=None), "engine's disk"),
        (replace(GOOD, leftovers=None), "leftovers"),
    ],
)
def test_what_cannot_be_looked_at_is_no_failure(facts: Facts, name: str) -> None:
    """It is skipped, and says so; what is at fault is another line."""
    assert result(facts, name).status is Status.SKIP


def test_without_orjson_there_is_nothing_to_fear() -> None:
    """Not installed is fine."""
    assert result(replace(GOOD, orjson=None), "orjson").status is Status.OK


# --- the report ---------------------------------------------------------------------------

RESULTS = (
    CheckResult(name="a", status=Status.OK, found="fine"),
    CheckResult(name="longer", status=Status.FAIL, found="not fine at all", fix="mend it, do"),
)


def test_in_a_pipe_the_report_is_plain_and_one_line_each() -> None:
    """Aligned, without colours, with the counts at the end."""
    assert report(RESULTS, colour=False, width=0).splitlines() == [
        "ok    a       fine",
        "fail  longer  not fine at all",
        "              Fix: mend it, do",
        "1 ok, 1 fail",
    ]


def test_on_a_terminal_it_has_colours_and_keeps_its_column() -> None:
    """Long lines break between words and go on under their beginning."""
    text = report(RESULTS, colour=True, width=36)
    assert "\x1b[31mfail\x1b[0m  longer  not fine at all\n" in text
    wide = (replace(RESULTS[0], found="word " * 10),)
    lines = report(wide, colour=False, width=30).splitlines()
    assert lines[0] == "ok    a  word word word word"
    assert lines[1] == "         word word word word"


# --- the command --------------------------------------------------------------------------


def test_a_failed_check_is_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an engine that is not there; the JSON says the same."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    assert cli.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("fail  engine")
    assert "no container engine answers at /nowhere/docker.sock" in out
    assert "Fix: start Docker" in out
    assert "\x1b" not in out
    assert cli.main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["checks"][0]["status"] == "fail"


def test_warnings_are_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0 where nothing failed."""
    warned = replace(GOOD, leftovers=("x",))
    monkeypatch.setattr("kernel_provider.commands.doctor.gather", lambda _environ: warned)
    assert cli.main(["doctor"]) == 0
    assert "17 ok, 1 warn" in capsys.readouterr().out


class Lines:
    """A stream that keeps what is printed."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        """Keep it."""
        self.text += text

    def flush(self) -> None:
        """Nothing to do."""

    def isatty(self) -> bool:
        """A log."""
        return False


def test_fix_names_what_each_failure_needs() -> None:
    """In the order in which they are needed, each once, and nothing of the healthy."""
    bad = replace(GOOD, engine=UNREACHABLE, kernelspecs=(), leftovers=("x",))
    done: list[str] = []
    while (found := mending.needed(examine(bad), done)) is not None:
        done.append(found[0])
    assert done == ["engine", "kernelspecs", "leftovers"]
    assert mending.needed(examine(GOOD), []) is None


def test_an_engine_is_started_by_root_on_debian_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Others are told whom to ask, and nothing else is stopped by it."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    monkeypatch.setattr(
        "kernel_provider.commands.doctor.gather",
        lambda _environ: replace(GOOD, engine=UNREACHABLE),
    )
    stream: Any = Lines()
    results = mend(examine(replace(GOOD, engine=UNREACHABLE)), Steps(stream))
    assert "mending engine:" in stream.text
    assert "not mended: an engine can be started here by root on Debian only" in stream.text
    assert "Fix: start Docker" in stream.text
    assert any(r.status is Status.FAIL for r in results)


def test_an_engine_of_others_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where DOCKER_HOST names one that can't be used, starting another does not help."""
    monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    stream: Any = Lines()
    with pytest.raises(SetupError, match="DOCKER_HOST is tcp://elsewhere:2375"):
        mending.start_engine(Steps(stream))


def test_the_image_is_built_with_its_steps_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by ``executor-ml build``."""

    def build(request: BuildRequest, report: Report) -> BuildResult:
        report(Event(step="base", phase=Phase.STARTED))
        report(Event(step="base", phase=Phase.DONE))
        return BuildResult(
            image=request.image, image_id="sha256:123", digest="", size=1, seconds=1, reused=False
        )

    monkeypatch.setattr("kernel_provider.builder.build", build)
    stream: Any = Lines()
    mending.build_image(Steps(stream))
    lines = stream.text.splitlines()
    assert lines[0] == "  ... base "
    assert lines[1].startswith("  ok  image executor-ml:latest: sha256:123 (")


def test_nothing_to_mend_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a good machine ``--fix`` changes nothing."""
    monkeypatch.setattr("kernel_provider.commands.doctor.gather", lambda _environ: GOOD)
    stream: Any = Lines()
    assert list(mend(examine(GOOD), Steps(stream))) == list(examine(GOOD))
    assert "nothing that --fix can mend" in stream.text


def test_the_kernelspec_is_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``--fix`` writes the usual one where Jupyter looks."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    stream: Any = Lines()
    mending.install_kernelspec(Steps(stream))
    file = tmp_path / "venv/share/jupyter/kernels/executor-ml/kernel.json"
    assert file.exists()
    assert str(file) in stream.text


@pytest.mark.parametrize(
    ("terminal", "environ", "coloured"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colours_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,  # noqa: FBT001  a parameter of the table
    environ: dict[str, str],
    coloured: bool,  # noqa: FBT001
) -> None:
    """And only for those who want them."""
    stream: Any = Lines()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    assert wants_colour(stream, environ) is coloured
