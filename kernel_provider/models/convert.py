"""Weights that cannot be read as they are become safetensors, inside a sandbox.

Unpickling runs whatever code is in the file, so it happens where code can do nothing:
in a sandbox like any kernel's, which sees the model, read-only. The result comes out as
answers of the kernel, one asked for after another, over one of its sockets; nothing of
it is believed but that it is bytes, and no more of them than there can be.
"""

import asyncio
import base64
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self

import zmq
from jupyter_client.session import Session as Signer

from kernel_provider.ceilings import Ceilings, read_ceilings, this_machine
from kernel_provider.models import weights
from kernel_provider.models.add import Counter, megabytes, take
from kernel_provider.models.errors import ModelRefusedError
from kernel_provider.models.sources import DTYPES, Found
from kernel_provider.models.weights import WEIGHT_PICKLES, is_pickle
from kernel_provider.policy import KernelPolicy, parse_policy
from kernel_provider.run.text import printable
from kernel_provider.session import Session
from kernel_provider.steps import Note
from kernel_provider.values import MIB, amount

SOURCE: Final = "the conversion in a sandbox"
LEAST_MEMORY: Final = 2 << 30
ROOM: Final = 1 << 30
"""Bytes for torch and Transformers beside the weights."""
GROWTH: Final[Mapping[str, int]] = {".gguf": 12, "": 3}
"""Memory for each byte of weights: those of a GGUF file are packed to an eighth."""

LONGEST: Final = 3600.0
"""Seconds for one answer of the sandbox; the first one loads the weights."""
LARGEST: Final = 32 << 20
"""Bytes of one part of an answer."""
FILES: Final = 64
OVERHEAD: Final = 64 << 20
"""Files that may come out, and bytes of them beside the weights."""

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_PIECE: Final = re.compile(r"'([A-Za-z0-9_.-]+):([A-Za-z0-9+/=]*)'")


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What is to be converted, to numbers of which kind; ``dtype`` may be empty."""

    model: str
    dtype: str
    environ: Mapping[str, str]


def convert(conversion: Conversion, found: Found, work: Path, note: Note) -> Found:
    """What was found, with its weights as safetensors.

    Works in ``work``, and leaves what is found there. Raises ModelRefusedError where the
    weights cannot be converted, and what keeps a sandbox from starting.
    """
    model, dtype = conversion.model, conversion.dtype
    names = chosen(model, found)
    if not dtype and names[0].endswith(".safetensors"):
        return found
    source, made = work / "source", work / "made"
    size = _lay_out(found, source, note)
    made.mkdir()
    read = sum((source / name).stat().st_size for name in names)
    growth = GROWTH.get(Path(names[0]).suffix, GROWTH[""])
    policy = _policy(source, ROOM + growth * read, read_ceilings(conversion.environ))
    note.text = "loading it in a sandbox"
    with _Sandbox(policy, conversion.environ) as sandbox:
        answers = sandbox.pieces(names, DTYPES.get(dtype, ""))
        try:
            receive(answers, made, most=growth * size + OVERHEAD, note=note)
            licence = weights.read_all({name: source / name for name in names}).licence
        except ValueError as error:
            reason = f"converting it in a sandbox failed: {printable(str(error))}"
            remedy = "see to it that these are weights that torch or Transformers loads"
            raise ModelRefusedError(model=model, reason=reason, remedy=remedy) from error
    gone = {*names, *(name for name in found.files if name.endswith(".index.json"))}
    kept = {name: source / name for name in found.files if name not in gone}
    if dtype and "config.json" in kept:
        _set_dtype(kept["config.json"], DTYPES[dtype])
    results = {path.name: path for path in made.iterdir()}
    return Found(
        files={**kept, **results},
        pickles={},
        source=f"{found.source}; weights converted by executor-ml",
        licence=found.licence or licence,
        licence_text=found.licence_text,
    )


def chosen(model: str, found: Found) -> list[str]:
    """The files of weights; raises ModelRefusedError where it is not clear which."""
    pickles = sorted(found.pickles)
    named = [name for name in pickles if name.startswith(WEIGHT_PICKLES)]
    safe = sorted(n for n in found.files if n.endswith(".safetensors") and "/" not in n)
    standard = [name for name in safe if name.startswith("model")]
    packed = sorted(name for name in found.files if name.endswith(".gguf"))
    inner = [n for n in pickles if "/" in n and n.rpartition("/")[2].startswith(WEIGHT_PICKLES)]
    remedy = "name the one file instead of its folder"
    if inner and not safe:
        reason = f"weights in its subfolders cannot be converted: {', '.join(inner)}"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)
    names = standard or safe or packed or named or pickles
    if not names or (names in (packed, pickles) and len(names) > 1 and names != named):
        reason = f"it is not clear which file has the weights: {', '.join(names) or 'none'}"
        raise ModelRefusedError(model=model, reason=reason, remedy=remedy)
    return names


def _lay_out(found: Found, folder: Path, note: Note) -> int:
    """Copy what the sandbox sees to a folder that its uid can read; give its size."""
    files = {**found.files, **found.pickles}
    size = sum(path.stat().st_size for path in files.values())
    progress = Counter(note, size)
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        take(path, folder / name, share=found.blobs, progress=progress)
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    return size


def _policy(folder: Path, memory: int, ceilings: Ceilings) -> KernelPolicy:
    """All processors that it may have, and memory; a ceiling below that is an error."""
    machine = ceilings.machine or this_machine()
    cpus = min(machine.cpus, amount(ceilings.limits.get("cpus", machine.cpus)))
    config = {
        "memory": min(max(LEAST_MEMORY, memory), machine.memory) // MIB * MIB,  # whole pages
        "cpus": cpus,
        "mounts": {"/data/model": str(folder)},
    }
    return parse_policy(config, ceilings=ceilings, source=SOURCE)


def receive(answers: Iterator[str], folder: Path, *, most: int, note: Note) -> None:
    """Write what a sandbox says to plain files in ``folder``.

    Raises ValueError for anything but pieces of a few new files, together at most
    ``most`` bytes, that are no pickles.
    """
    done = 0
    names: list[str] = []
    for answer in answers:
        match = _PIECE.fullmatch(answer)
        if match is None or not _NAME.fullmatch(match[1]):
            msg = "its answer is no piece of a file"
            raise ValueError(msg)
        name, data = match[1], base64.b64decode(match[2], validate=True)
        if names[-1:] != [name]:
            if name in names or len(names) == FILES:
                msg = "it gives too many files, or one twice"
                raise ValueError(msg)
            names.append(name)
        done += len(data)
        if done > most:
            msg = f"it gives more than {most} bytes"
            raise ValueError(msg)
        with (folder / name).open("ab") as file:
            file.write(data)
        note.text = f"{megabytes(done)} converted"
    for name in names:
        if is_pickle(name, folder / name):
            msg = f"it gives a pickle, {name}"
            raise ValueError(msg)


def _set_dtype(path: Path, dtype: str) -> None:
    """Let the configuration say what the weights are now; Transformers goes by it."""
    config = json.loads(path.read_bytes())
    key = "dtype" if "dtype" in config else "torch_dtype"
    path.unlink()
    path.write_text(json.dumps({**config, key: dtype}, indent=2), encoding="utf-8")


class _Sandbox:
    """A sandbox for one conversion, and its shell socket; gone at the end of a ``with``."""

    def __init__(self, policy: KernelPolicy, environ: Mapping[str, str]) -> None:
        self._policy = policy
        self._key = secrets.token_hex(32)
        self._signer = Signer(key=self._key.encode())
        self._session = Session(environ=environ, name=SOURCE)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)

    def __enter__(self) -> Self:
        try:
            self._session.launch(self._policy, key=self._key, env={})
            asyncio.run(self._session.launched(self._policy.startup_timeout))
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.MAXMSGSIZE, LARGEST)
            self._socket.connect(f"ipc://{self._session.outer.ip}-1")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()
        self._session.stop()
        asyncio.run(self._session.gone(15))
        self._session.close()

    def pieces(self, names: list[str], dtype: str) -> Iterator[str]:
        """Ask for one piece after another; raises ValueError with what went wrong."""
        code = resources.files(__package__).joinpath("_inside.py").read_text(encoding="utf-8")
        self._ask(f"{code}\nstream = pieces({names!r}, {dtype!r})\n", "''")
        while (answer := self._ask("", "next(stream, '')")) != "''":
            yield answer

    def _ask(self, code: str, expression: str) -> str:
        content = {
            "code": code,
            "silent": True,
            "store_history": False,
            "user_expressions": {"answer": expression},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        self._signer.send(self._socket, "execute_request", content)
        deadline = time.monotonic() + LONGEST
        while not self._socket.poll(200):
            if self._session.death is not None:
                raise ValueError(self._session.death.reason)
            if time.monotonic() > deadline:
                msg = f"it took longer than {LONGEST:g} s"
                raise ValueError(msg)
        _, message = self._signer.recv(self._socket)
        return _answer(message)


def _answer(message: Any) -> str:
    """The text in a reply, which may be anything; raises ValueError for an error."""
    match message:
        case {"content": {"user_expressions": {"answer": dict(answer)}}}:
            pass
        case _:
            answer = message.get("content")
    match answer:
        case {"data": {"text/plain": str(text)}}:
            return text
        case {"ename": str(name), "evalue": str(text)}:
            raise ValueError(f"{name}: {text}"[:500])
    msg = "its answer makes no sense"
    raise ValueError(msg)
