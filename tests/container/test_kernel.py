"""What a person sees of a sandboxed kernel through an ordinary Jupyter client."""

import ast
import base64
import itertools
import os
import time
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import KernelManager
from kernels import Outcome, collect, kernel, manager, run, started

pytestmark = [pytest.mark.container, pytest.mark.usefixtures("image")]
Pair = tuple[KernelManager, BlockingKernelClient]


def answer(message: dict[str, Any]) -> dict[str, Any]:
    """The content of a reply that went well."""
    content: dict[str, Any] = message["content"]
    assert content["status"] == "ok", content
    return content


def displayed(outcome: Outcome, kind: str = "display_data") -> list[dict[str, Any]]:
    """The contents of one kind of message."""
    return [m["content"] for m in outcome.messages if m["msg_type"] == kind]


# --- cells --------------------------------------------------------------------------------


def test_runs_code(shared_kernel: Pair) -> None:
    """A cell runs and its value comes back."""
    outcome = run(shared_kernel[1], "print('hello'); 6 * 7")
    assert (outcome.status, outcome.stdout, outcome.result) == ("ok", "hello\n", "42")


def test_errors_are_the_cells(shared_kernel: Pair) -> None:
    """Stderr is told apart, and an exception has name, value and traceback."""
    outcome = run(shared_kernel[1], "import sys; print('bad', file=sys.stderr); 1 / 0")
    assert (outcome.status, outcome.stderr) == ("error", "bad\n")
    assert outcome.error["ename"] == "ZeroDivisionError"
    assert "division by zero" in outcome.error["traceback"][-1]
    assert "sys.stderr" in "".join(outcome.error["traceback"])


def test_output_arrives_while_the_cell_runs(shared_kernel: Pair) -> None:
    """A flushed print is seen at once, not at the end."""
    _, client = shared_kernel
    times: list[float] = []

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            times.append(time.monotonic())

    code = "import time\nfor n in range(4): print(n, flush=True); time.sleep(0.3)"
    client.execute_interactive(code, timeout=20, output_hook=hook)
    assert len(times) == 4
    assert all(0.15 < late - early < 0.6 for early, late in itertools.pairwise(times))


def test_state_and_counts_go_on(shared_kernel: Pair) -> None:
    """In, Out and _ work, and the counter counts."""
    _, client = shared_kernel
    first = answer(client.execute("40 + 2", reply=True, timeout=20))["execution_count"]
    outcome = run(client, "_, Out[max(Out)], In[-2]")
    assert outcome.result == "(42, 42, '40 + 2')"
    assert displayed(outcome, "execute_result")[0]["execution_count"] == first + 1


def test_an_asynchronous_cell(shared_kernel: Pair) -> None:
    """Top-level await works, and a task goes on after its cell."""
    _, client = shared_kernel
    code = "import asyncio\nasync def f():\n    await asyncio.sleep(0.05); return 'awaited'\n"
    assert run(client, code + "await f()").result == "'awaited'"
    run(client, "task = asyncio.create_task(f())")
    assert run(client, "await task").result == "'awaited'"


def test_magics(shared_kernel: Pair) -> None:
    """%timeit measures, %%bash runs a shell, %cd and ! work."""
    _, client = shared_kernel
    assert "per loop" in run(client, "%timeit -n 2 -r 2 sum(range(10))").stdout
    assert run(client, "%%bash\necho $((6 * 7))").stdout == "42\n"
    assert run(client, "!echo one; echo two >&2").stdout.split() == ["one", "two"]
    outcome = run(client, "import os; here = os.getcwd()\n%cd -q ~\nhome = os.getcwd()\n%cd -q -\n")
    assert outcome.status == "ok"
    assert run(client, "here, home, os.getcwd() == here").result == (
        "('/tmp/work', '/tmp/home', True)"
    )


@pytest.mark.parametrize("line", ["!pip install six", "%pip install six"])
def test_a_cell_that_would_install_says_what_there_is_instead(
    shared_kernel: Pair, line: str
) -> None:
    """Behind what the shell or Python says of pip; other cells say nothing of it."""
    _, client = shared_kernel
    outcome = run(client, f"x = 1\n{line}")
    assert outcome.status == "ok"
    assert "pip: not found" in outcome.stdout or "No module named pip" in outcome.stdout
    hint = outcome.stderr.strip()
    assert hint.startswith("Hint: the sandbox has no network and no pip. To add packages, on the")
    assert hint.endswith("executor-ml install --variant ./NAME.in, and take that kernel.")
    assert run(client, "!echo pip").stderr == ""


def test_history_is_kept_in_memory(shared_kernel: Pair) -> None:
    """history_request gives the session's cells; no file is written."""
    _, client = shared_kernel
    run(client, "remembered = 'line'")
    reply = answer(client.history(hist_access_type="tail", n=3, reply=True, timeout=20))
    assert "remembered = 'line'" in [source for _, _, source in reply["history"]]
    assert run(client, "get_ipython().history_manager.hist_file").result == "':memory:'"


def test_a_person_can_work_where_the_kernel_starts(shared_kernel: Pair) -> None:
    """The working directory is private, writable and first on the path for imports."""
    _, client = shared_kernel
    run(client, "%%writefile own_module.py\nvalue = 42")
    assert run(client, "import own_module; own_module.value").result == "42"
    for folder in ("~", "/tmp", "~/.cache", "$XDG_CACHE_HOME", "$HF_HOME", "$MPLCONFIGDIR"):
        code = (
            f"import os\np = os.path.expandvars(os.path.expanduser({folder!r}))\n"
            "os.makedirs(p, exist_ok=True)\n"
            "open(p + '/probe', 'w').write('x')\nos.remove(p + '/probe')"
        )
        assert run(client, code).status == "ok", folder


# --- rich displays ------------------------------------------------------------------------


def test_a_plot_is_a_picture(shared_kernel: Pair) -> None:
    """Matplotlib shows a PNG without any set-up, at the first try."""
    outcome = run(shared_kernel[1], "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")
    assert outcome.status == "ok", outcome.error
    picture = displayed(outcome)[0]["data"]["image/png"]
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert "cache" not in outcome.stderr


def test_displays_of_every_kind(shared_kernel: Pair) -> None:
    """HTML, Markdown, a data frame's table, and clear_output."""
    _, client = shared_kernel
    outcome = run(
        client, "from IPython.display import *\ndisplay(HTML('<b>x</b>'), Markdown('*y*'))"
    )
    assert [set(d["data"]) for d in displayed(outcome)] == [
        {"text/plain", "text/html"},
        {"text/plain", "text/markdown"},
    ]
    outcome = run(client, "import pandas as pd; pd.DataFrame({'a': [1]})")
    assert "<table" in displayed(outcome, "execute_result")[0]["data"]["text/html"]
    assert displayed(run(client, "clear_output(wait=True)"), "clear_output") == [{"wait": True}]


def test_a_display_is_updated_in_place(shared_kernel: Pair) -> None:
    """display_id: the second message names the first one's display."""
    code = "from IPython.display import display\nh = display('a', display_id='d'); h.update('b')"
    outcome = run(shared_kernel[1], code)
    (first,), (second,) = displayed(outcome), displayed(outcome, "update_display_data")
    assert first["transient"] == second["transient"] == {"display_id": "d"}
    assert second["data"]["text/plain"] == "'b'"


def test_widgets_talk_both_ways(shared_kernel: Pair) -> None:
    """A comm opens from the kernel, hears the browser's change, and closes."""
    _, client = shared_kernel
    code = "import ipywidgets as w\nslider = w.IntSlider(value=3); slider"
    outcome = run(client, code)
    models = displayed(outcome, "comm_open")
    assert {m["target_name"] for m in models} == {"jupyter.widget"}
    slider = next(m for m in models if m["data"]["state"]["_model_name"] == "IntSliderModel")
    change = {"method": "update", "state": {"value": 8}, "buffer_paths": []}
    content = {"comm_id": slider["comm_id"], "data": change}
    client.shell_channel.send(client.session.msg("comm_msg", content))
    assert run(client, "slider.value").result == "8"
    closed = displayed(run(client, "slider.close()"), "comm_close")
    assert [c["comm_id"] for c in closed] == [slider["comm_id"]]
    assert answer(client.comm_info(reply=True, timeout=20))["comms"]


# --- requests -----------------------------------------------------------------------------


def test_input_asks_the_person(shared_kernel: Pair) -> None:
    """input() and getpass() go over the stdin channel, prompt and all."""
    _, client = shared_kernel
    asked: list[tuple[str, bool]] = []

    def hook(message: dict[str, Any]) -> None:
        asked.append((message["content"]["prompt"], message["content"]["password"]))
        client.input("Ada")

    outcome = Outcome(status="")
    client.execute_interactive(
        "from getpass import getpass\nprint(input('Name? '), getpass('Secret: '))",
        allow_stdin=True,
        stdin_hook=hook,
        output_hook=collect(outcome),
        timeout=20,
    )
    assert asked == [("Name? ", False), ("Secret: ", True)]
    assert outcome.stdout == "Ada Ada\n"


def test_completion(shared_kernel: Pair) -> None:
    """Names of this session and attributes are completed."""
    _, client = shared_kernel
    run(client, "import math; a_long_name = 1")
    assert "a_long_name" in answer(client.complete("a_lon", reply=True, timeout=20))["matches"]
    matches = answer(client.complete("math.sq", reply=True, timeout=20))["matches"]
    assert any(match.endswith("sqrt") for match in matches)


def test_inspection_and_is_complete(shared_kernel: Pair) -> None:
    """Help at the cursor; consoles learn whether a cell is finished."""
    _, client = shared_kernel
    reply = answer(client.inspect("print", reply=True, timeout=20))
    assert "Prints the values" in reply["data"]["text/plain"]
    for code, status in (("1", "complete"), ("def f():", "incomplete"), ("1 +* 2", "invalid")):
        request = client.is_complete(code)
        message = client.get_shell_msg(timeout=20)
        assert message["parent_header"]["msg_id"] == request
        assert message["content"]["status"] == status


def test_kernel_info(shared_kernel: Pair) -> None:
    """Python 3, by the names that front-ends look for."""
    info = answer(shared_kernel[1].kernel_info(reply=True, timeout=20))
    assert (info["implementation"], info["language_info"]["name"]) == ("ipython", "python")
    assert info["language_info"]["version"].startswith("3.")


def test_the_heart_beats(shared_kernel: Pair) -> None:
    """Also while a cell is busy: the browser does not think that it hangs."""
    _, client = shared_kernel
    request = client.execute("import time; end = time.time() + 1.5\nwhile time.time() < end: pass")
    client.hb_channel.unpause()
    time.sleep(1.2)
    assert client.hb_channel.is_beating()
    reply = client.get_shell_msg(timeout=10)
    assert reply["parent_header"]["msg_id"] == request


def test_a_busy_kernel_answers_on_control(shared_kernel: Pair) -> None:
    """Requests on the control channel don't wait for the cell."""
    _, client = shared_kernel
    request = client.execute("time.sleep(1)")
    message = client.session.msg("kernel_info_request", {})
    began = time.monotonic()
    client.control_channel.send(message)
    assert answer(client.get_control_msg(timeout=5))["implementation"] == "ipython"
    assert time.monotonic() - began < 0.7
    assert client.get_shell_msg(timeout=10)["parent_header"]["msg_id"] == request


# --- processes ----------------------------------------------------------------------------


def test_forked_workers_can_print(shared_kernel: Pair) -> None:
    """What multiprocessing's workers print is the cell's output, from every one of them."""
    code = (
        "from multiprocessing import get_context\ndef work(n): print(f'worker {n}\\n', end='')\n"
        "with get_context('fork').Pool(3) as pool: pool.map(work, range(9), chunksize=1)"
    )
    outcome = run(shared_kernel[1], code)
    deadline = time.monotonic() + 3
    while outcome.stdout.count("\n") < 9 and time.monotonic() < deadline:
        collect(outcome)(shared_kernel[1].get_iopub_msg(timeout=3))
    assert sorted(outcome.stdout.splitlines()) == [f"worker {n}" for n in range(9)]


def test_subprocesses_can_print(shared_kernel: Pair) -> None:
    """What a child writes to its standard streams is seen, by !, by pipe and by itself."""
    _, client = shared_kernel
    code = "import subprocess\nsubprocess.run(['echo', 'piped'], capture_output=True).stdout"
    assert run(client, code).result == "b'piped\\n'"
    outcome = run(client, "subprocess.run(['sh', '-c', 'echo out; echo err >&2']); time.sleep(0.4)")
    assert "out\n" in outcome.stdout
    assert "err\n" in outcome.stderr


def test_threads_can_print(shared_kernel: Pair) -> None:
    """Every thread's output is the cell's that started it."""
    code = (
        "import sys, threading\n"  # one write each: print makes two, which may interleave
        "write = sys.stdout.write\n"
        "ts = [threading.Thread(target=write, args=(f'{n}\\n',)) for n in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; None"
    )
    assert sorted(run(shared_kernel[1], code).stdout.split()) == [str(n) for n in range(8)]


def test_torch_trains_with_data_loader_workers() -> None:
    """Two workers, shared memory, gradients: within 512 MB, 64 MB of /dev/shm, 128 pids."""
    code = """
import torch
from torch.utils.data import DataLoader, TensorDataset
x = torch.randn(256, 8); y = x.sum(1, keepdim=True)
model = torch.nn.Linear(8, 1); opt = torch.optim.SGD(model.parameters(), 0.05)
losses = []
for epoch in range(3):
    for a, b in DataLoader(TensorDataset(x, y), batch_size=64, num_workers=2, shuffle=True):
        opt.zero_grad(); loss = ((model(a) - b) ** 2).mean(); loss.backward(); opt.step()
    losses.append(loss.item())
print(losses[-1] < losses[0], torch.get_num_threads())
"""
    with kernel() as (_, client):
        outcome = run(client, code, timeout=90)
    assert outcome.status == "ok", outcome.error.get("evalue")
    assert outcome.stdout == "True 1\n"


def test_a_hundred_megabytes_of_output_arrive_whole() -> None:
    """Every byte, in order, and the kernel lives: what waits does not fill its memory."""
    code = "for n in range(1600): print(f'{n:08d}' + 'x' * 65527)"
    size, lines = 0, 0
    numbers: list[int] = []
    text = ""

    def hook(message: dict[str, Any]) -> None:
        nonlocal size, lines, text
        if message["msg_type"] == "stream":
            chunk = message["content"]["text"]
            size += len(chunk)
            text += chunk
            *whole, text = text.split("\n")
            numbers.extend(int(line[:8]) for line in whole)

    with kernel() as (km, client):
        client.execute_interactive(code, timeout=120, output_hook=hook)
        assert size == 1600 * 65536
        assert numbers == list(range(1600))
        assert run(client, "1").status == "ok"
        assert km.is_alive()


def test_a_large_message_comes_back_whole(shared_kernel: Pair) -> None:
    """20 MB in one display, and 20 MB of code in one cell."""
    _, client = shared_kernel
    outcome = run(client, "display({'text/plain': 'x' * 20_000_000}, raw=True)")
    assert len(displayed(outcome)[0]["data"]["text/plain"]) == 20_000_000
    literal = "y" * 5_000_000
    assert run(client, f"len('{literal}')").result == "5000000"


# --- surroundings -------------------------------------------------------------------------

FROM_IMAGE = {
    "DISABLE_TELEMETRY", "DO_NOT_TRACK", "GRADIO_ANALYTICS_ENABLED", "HF_DATASETS_OFFLINE",
    "HF_HOME", "HF_HUB_CACHE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "HOME",
    "HUGGINGFACE_HUB_CACHE", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR", "LANG", "LOGNAME", "MPLBACKEND", "MPLCONFIGDIR", "NUMBA_CACHE_DIR",
    "PATH", "PYTHONDONTWRITEBYTECODE", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "TZDIR",
    "TORCH_HOME", "TRANSFORMERS_OFFLINE", "TRITON_CACHE_DIR", "USER", "WANDB_MODE",
    "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME",
}  # fmt: skip
FROM_POLICY = {
    "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM",
}  # fmt: skip
FROM_IPYKERNEL = {
    "CLICOLOR", "CLICOLOR_FORCE", "FORCE_COLOR", "GIT_PAGER", "HOSTNAME", "PAGER",
    "PYDEVD_USE_FRAME_EVAL", "TERM",
}  # fmt: skip


def environment(client: BlockingKernelClient) -> dict[str, str]:
    """All variables inside."""
    return dict(ast.literal_eval(run(client, "import os; dict(os.environ)").result))


def test_the_environment_is_exactly_an_allowlist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the client's gets in but TZ and nbgrader's; the kernelspec's own does (D8)."""
    canaries = {
        "CANARY_TOKEN": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HF_TOKEN": "secret",
        "JPY_PARENT_PID": "1",
        "JPY_SESSION_NAME": "/home/ada/notebook.ipynb",
        "PYTHONPATH": "/secret",
        "HTTP_PROXY": "http://secret",
        "LD_LIBRARY_PATH": "/secret",
        "OMP_NUM_THREADS": "secret",
    }
    for name, value in {**canaries, "TZ": "JST-9", "NBGRADER_EXECUTION": "autograde"}.items():
        monkeypatch.setenv(name, value)
    km = manager({"env": {"OF_THE_POLICY": "1"}}, env={"OF_THE_SPEC": "2", "SHELL_LIKE": "${HOME}"})
    with started(km, env={**os.environ, "GIVEN": "secret"}) as client:
        found = environment(client)
        offset = run(client, "import time; time.strftime('%z')").result
    assert "secret" not in "".join(found.values())
    allowed = FROM_IMAGE | FROM_POLICY | FROM_IPYKERNEL
    own = {"TZ", "NBGRADER_EXECUTION", "OF_THE_POLICY", "OF_THE_SPEC", "SHELL_LIKE"}
    assert set(found) - allowed == own
    assert (found["OF_THE_POLICY"], found["OF_THE_SPEC"]) == ("1", "2")
    assert found["NBGRADER_EXECUTION"] == "autograde"
    assert offset == "'+0900'"


def test_a_named_time_zone_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """TZ of the client is meant to be understood, also by the C library."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    with kernel() as (_, client):
        assert run(client, "import time; time.strftime('%z')").result == "'+0900'"


def test_libraries_are_told_to_stay_offline(shared_kernel: Pair) -> None:
    """Hugging Face reads models from /models, writes below /tmp, and asks nobody."""
    found = environment(shared_kernel[1])
    assert {name: found[name] for name in found if name.startswith(("HF_", "TRANSF", "HUGG"))} == {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": "/tmp/transformers_cache",
        "HF_HUB_CACHE": "/models/hub",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HUGGINGFACE_HUB_CACHE": "/models/hub",
        "TRANSFORMERS_OFFLINE": "1",
    }


def test_the_host_is_not_named(shared_kernel: Pair) -> None:
    """Neither its hostname, nor its nameservers, nor the server's user and folders."""
    _, client = shared_kernel
    assert run(client, "import socket; socket.gethostname()").result == "'sandbox'"
    code = (
        "print(*[open(f).read() for f in ('/etc/resolv.conf', '/etc/hosts', '/etc/hostname',"
        " '/proc/sys/kernel/hostname') if os.path.exists(f)])"
    )
    text = run(client, "import os\n" + code).stdout
    assert os.uname().nodename not in text
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        if line.startswith("nameserver"):
            assert line.split()[1] not in text
    assert run(client, "import getpass; getpass.getuser()").result == "'sandbox'"


def test_no_connection_file_is_left_or_let_in(own_folders: Path) -> None:
    """There is one while the kernel runs, for its clients, private; none inside, none after."""
    del own_folders
    runtime = Path(os.environ["JUPYTER_RUNTIME_DIR"])
    with kernel() as (km, client):
        file = Path(km.connection_file)
        assert file.stat().st_mode & 0o077 == 0
        key = km.session.key.decode()
        code = "import glob; glob.glob('/tmp/**/*.json', recursive=True)"
        assert run(client, code).result == "[]"
        code = f"{key!r} in str(dict(os.environ)) + open('/proc/self/cmdline').read()"
        assert run(client, "import os\n" + code).result == "False"
    assert not file.exists()
    assert not list(runtime.glob(f"*{km.kernel_id}*"))
