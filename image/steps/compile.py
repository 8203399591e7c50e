# ruff: noqa: INP001  copied into a build stage as single files
"""Precompile what a kernel and its first cells import, and nothing else.

    compile.py stdlib            every module of the standard library
    compile.py preload ROOT      the modules under ROOT that the probes import

The probes are those of the layers that are made, by the variable LAYERS. A layer without
any has the notebook beside its lock, if there is one, and an import of MODULES. What a
layer below has compiled is not compiled again.

The bytecode is of the unchecked-hash kind (PEP 552): it stays valid whatever a copy does
to time stamps, and Python opens no source file to compare.
"""

import json
import os
import py_compile
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

SCRATCH = "/tmp/executor-ml-bytecode"  # noqa: S108  alone in a build stage

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "/models/hub"}
"""What the image sets for libraries that would wait for a network."""

PROBES: dict[str, tuple[str, ...]] = {
    "common": (
        # A kernel that is really made: much is imported only then. As in a sandbox,
        # without the debugger.
        """
import os, sys
sys.modules["debugpy"] = None
os.environ["HOME"] = os.environ["IPYTHONDIR"] = "/tmp"
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance(capture_fd_output=False)
app.initialize([])
app.shell.run_cell("import os, subprocess, multiprocessing.pool; x = !true")
app.shell.complete("os.pa")
import jedi, matplotlib_inline.backend_inline, comm
sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
""",
        "import ipywidgets, tqdm.auto, tqdm.notebook",
        "import numpy, numpy.random, numpy.linalg, numpy.fft",
        "import pandas; pandas.DataFrame({'a': [1, 2]}).describe().to_html()",
        """
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot
matplotlib.pyplot.plot([1])
matplotlib.pyplot.savefig("/tmp/probe.png")
""",
    ),
    "ml": (
        """
import torch, torch.nn, torch.optim, torch.utils.data
model = torch.nn.Linear(2, 2)
model(torch.ones(2)).sum().backward()
torch.optim.AdamW(model.parameters()).step()
""",
        "import safetensors.torch, gguf, accelerate",
        """
import transformers
from transformers import pipeline, AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers import AutoConfig, Trainer, TrainingArguments
""",
        """
import torch
from transformers import BertModel, GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=9))
model.generate(torch.ones((1, 2), dtype=torch.long), max_new_tokens=2)
""",
    ),
}
TAIL = (
    "\nimport sys\nfor m in list(sys.modules.values()):\n"
    " f = getattr(m, '__file__', None) or ''\n"
    " if f.endswith('.py'): print('SOURCE', f)\n"
)


def probes(environ: Mapping[str, str]) -> Iterator[str]:
    """The programs whose imports are compiled, of all layers that are made."""
    modules = ", ".join(environ.get("MODULES", "").split())
    for layer in environ["LAYERS"].split():
        notebook = Path("/build/stacks", environ["STACK"], f"{layer}.ipynb")
        if layer in PROBES:
            yield from PROBES[layer]
            continue
        if notebook.exists():
            yield program(json.loads(notebook.read_text(encoding="utf-8")))
        if modules:
            yield f"import {modules}"


def program(notebook: Mapping[str, Any]) -> str:
    """The code of a notebook without any magics, as one program."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return "\n".join("".join(cell["source"]) for cell in cells)


def imported(probe: str) -> set[str]:
    """The source files of all modules that ``probe`` leaves imported."""
    # Bytecode goes to a scratch folder, so that one probe need not compile what another
    # has, and the environment gets only the kind that is made below.
    environ = {**os.environ, "PYTHONPYCACHEPREFIX": SCRATCH}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ |= OFFLINE
    done = subprocess.run(
        [sys.executable, "-c", probe + TAIL],
        capture_output=True,
        text=True,
        check=False,
        cwd="/tmp",  # noqa: S108  a notebook may write
        env=environ,
    )
    if done.returncode:
        message = f"a probe failed: {probe}\n{done.stderr[-2000:]}"
        raise SystemExit(message)
    lines = done.stdout.splitlines()
    return {line.split(" ", 1)[1] for line in lines if line.startswith("SOURCE ")}


def compile_one(source: str) -> int:
    """Write bytecode for ``source`` and return its size in bytes; 0 if it has errors."""
    try:
        target = py_compile.compile(
            source,
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
    except py_compile.PyCompileError:
        return 0
    return Path(target).stat().st_size if target else 0


def main() -> None:
    """Compile what the command line asks for and say what it weighs."""
    if sys.argv[1] == "stdlib":
        root = sysconfig.get_paths()["stdlib"]
        sources = {str(path) for path in Path(root).rglob("*.py")}
        sources = {path for path in sources if "/site-packages/" not in path}
    else:
        root = sys.argv[2]
        with ThreadPoolExecutor(2) as threads:
            sources = set().union(*threads.map(imported, probes(os.environ)))
        sources = {path for path in sources if path.startswith(root + "/")}
        sources = {path for path in sources if not Path(cache_from_source(path)).exists()}
    with ProcessPoolExecutor() as workers:
        size = sum(workers.map(compile_one, sorted(sources), chunksize=50))
    shutil.rmtree(SCRATCH, ignore_errors=True)
    print(f"compiled {len(sources)} modules of {root}: {size / 1e6:.1f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
