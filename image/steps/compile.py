"""Precompile what a kernel imports at its start, and nothing else.

    compile.py stdlib            every module of the standard library
    compile.py preload ROOT      the modules under ROOT that the probes import

The bytecode is of the unchecked-hash kind (PEP 552): it stays valid whatever a copy
does to time stamps, and Python opens no source file to compare.
"""

import py_compile
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

PROBES = (
    "from ipykernel.kernelapp import IPKernelApp; import ipykernel.ipkernel, zmq.eventloop"
    "; import IPython.core.completer, jedi, matplotlib_inline.backend_inline, comm",
    "import ipywidgets, tqdm.auto, tqdm.notebook",
    "import torch, torch.nn, torch.optim, torch.utils.data",
    "import torch; m = torch.nn.Linear(2, 2); m(torch.ones(2)).sum().backward();"
    "torch.optim.AdamW(m.parameters()).step()",
    "import numpy, numpy.random, numpy.linalg, numpy.fft",
    "import pandas; pandas.DataFrame({'a': [1, 2]}).describe().to_html()",
    "import matplotlib; matplotlib.use('agg'); import matplotlib.pyplot as p;"
    "p.plot([1]); p.savefig('/tmp/probe.png')",
    "import safetensors.torch, gguf, accelerate",
    "import transformers; from transformers import pipeline, AutoModelForCausalLM,"
    "AutoModel, AutoTokenizer, AutoConfig, Trainer, TrainingArguments",
    "from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, BertModel;"
    "import torch; m = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8,"
    "vocab_size=9)); m.generate(torch.ones((1, 2), dtype=torch.long), max_new_tokens=2)",
    "from transformers import GPT2TokenizerFast, PreTrainedTokenizerFast",
)
TAIL = (
    "\nimport sys\nfor m in list(sys.modules.values()):\n"
    " f = getattr(m, '__file__', None) or ''\n"
    " if f.endswith('.py'): print('SOURCE', f)\n"
)


def imported(probe: str) -> set[str]:
    """The source files of all modules that ``probe`` leaves imported."""
    done = subprocess.run(  # noqa: S603 - the probes above
        [sys.executable, "-c", probe + TAIL], capture_output=True, text=True, check=False
    )
    if done.returncode:
        message = f"a probe failed: {probe}\n{done.stderr[-2000:]}"
        raise SystemExit(message)
    lines = done.stdout.splitlines()
    return {line.split(" ", 1)[1] for line in lines if line.startswith("SOURCE ")}


def compile_all(sources: list[str]) -> int:
    """Write bytecode for ``sources`` and return its size in bytes."""
    size = 0
    for source in sources:
        try:
            target = py_compile.compile(
                source,
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
        except py_compile.PyCompileError:
            continue
        if target:
            size += Path(target).stat().st_size
    return size


def main() -> None:
    """Compile what the command line asks for and say what it weighs."""
    if sys.argv[1] == "stdlib":
        root = sysconfig.get_paths()["stdlib"]
        sources = {str(path) for path in Path(root).rglob("*.py")}
        sources = {path for path in sources if "/site-packages/" not in path}
    else:
        root = sys.argv[2]
        with ThreadPoolExecutor(2) as threads:
            sources = set().union(*threads.map(imported, PROBES))
        sources = {path for path in sources if path.startswith(root + "/")}
    size = compile_all(sorted(sources))
    print(f"compiled {len(sources)} modules of {root}: {size / 1e6:.1f} MB")  # noqa: T201


if __name__ == "__main__":
    main()
