"""What a parked sandbox saves: launches, imports and a first pipeline, against a local kernel.

The local kernel for torch has the very wheels of the image, in a virtual environment
below out/, so that both import the same files.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kernels
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from kernel_provider.builder.context import read_context
from kernel_provider.builder.model import BuildRequest
from kernel_provider.builder.wheels import cache_folder, collect
from kernel_provider.ceilings import read_ceilings
from kernel_provider.engines.docker import find_socket
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.pool import hand
from kernel_provider.recipe import Recipe

IMPORTS = "import torch, transformers"
PIPELINE = (
    "from transformers import pipeline\n"
    "pipeline('text-generation', model={model!r})('a b', max_new_tokens=4)"
)
AT_ONCE = 20
POOL = 4

_TINY = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
tokens = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?")
tokens.save_pretrained(sys.argv[1])
config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=3, n_positions=64)
GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
"""


def local_python(folder: Path) -> Path:
    """A Python with the image's own wheels; made once for each lock.

    Raises RuntimeError where this Python is not the image's version.
    """
    if sys.version_info[:2] != (3, 11):
        message = "a local kernel with the image's wheels needs Python 3.11"
        raise RuntimeError(message)
    request = BuildRequest()
    context = read_context(request)
    cache = cache_folder(os.environ)
    found = [
        wheel
        for layer in context.layers
        for wheel in collect(layer, context.installer, request.image, cache, print)
    ]
    wheels = {wheel.name: wheel for wheel in found}.values()  # each layer has pip's own
    done, python = folder / found[-1].parent.name, folder / "bin" / "python"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
        subprocess.run([*map(str, install), *map(str, wheels)], check=True)
        done.touch()
    return python


def tiny_model(python: Path, folder: Path) -> Path:
    """A model of a few kilobytes, as ``save_pretrained`` writes it."""
    if not (folder / "model.safetensors").exists():
        subprocess.run([python, "-c", _TINY, folder], check=True, capture_output=True)
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes 0600, and a sandbox's uid is another
    return folder


def local(python: Path | None = None) -> KernelManager:
    """A local kernel's manager: of this Python, or of another."""
    manager = KernelManager(kernel_name="python3")
    if python is not None:
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = KernelSpec(argv=argv, display_name="local", language="python")
        manager._kernel_spec = spec  # noqa: SLF001  no other way in
    return manager


def first_result(manager: KernelManager, code: str) -> float:
    """Seconds from ``start_kernel`` to the reply of a first cell, nothing drained."""
    begun = time.perf_counter()
    manager.start_kernel(stderr=subprocess.DEVNULL)
    client = manager.client()
    try:
        client.start_channels(hb=False)
        reply = client.execute(code, reply=True, timeout=120)
        if reply["content"]["status"] != "ok":
            raise RuntimeError("\n".join(reply["content"]["traceback"]))
        return time.perf_counter() - begun
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def warm_result(config: Mapping[str, Any], code: str) -> float:
    """The same with a sandbox that was parked before."""
    with parked(config, 1):
        return first_result(kernels.manager(config), code)


@contextmanager
def parked(config: Mapping[str, Any], count: int) -> Iterator[None]:
    """Some on the shelf; what is not taken ends with the body."""
    policy: KernelPolicy = parse_policy(config, ceilings=read_ceilings(os.environ))
    recipe = Recipe(policy=policy, address=find_socket(os.environ))
    for _ in range(count):
        hand.park(recipe, "bench", os.environ)
    try:
        yield
    finally:
        for _ in hand.end(os.environ, "bench"):
            pass


def at_once(make: Any) -> list[float]:
    """Seconds of each of many launches at the same time, sorted; every one succeeds."""
    managers = [make() for _ in range(AT_ONCE)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return sorted(pool.map(lambda manager: first_result(manager, "6 * 7"), managers))
