"""``executor-ml extract``: files that a sandbox sent through its notebook's outputs.

A file's name and content are whatever code in the sandbox made them, so the name is cut
down to one that is harmless, and nothing is written over or followed.
"""

import argparse
import base64
import html
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kernel_provider.commands.arguments import size
from kernel_provider.errors import SandboxError
from kernel_provider.run.model import InputError
from kernel_provider.values import show

LINK: Final = re.compile(
    r'<a class="executor-ml-file" download="([^"<>]*)" '
    r'href="data:application/octet-stream;base64,([A-Za-z0-9+/=]*)">'
)
"""What ``sandbox_files.send`` shows in a cell; the image has its other half."""

LONGEST: Final = 200
"""Bytes of a name; file systems allow 255."""


class ExtractError(SandboxError):
    """A file could not be taken out of a notebook."""

    exit_code = 74
    summary = "{notebook}: the file {name!r} cannot be extracted: {reason}"
    fix = "{remedy}"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A file in a notebook, under a name that is safe to write."""

    name: str
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """A file that was written; ``size`` is bytes."""

    path: str
    size: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "Write the files that code in the sandbox put into the notebook's outputs with "
        "sandbox_files.send(). Names lose their folders, and no file is written over."
    )
    parser.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="the executed notebook")
    parser.add_argument(
        "-d", "--directory", type=Path, default=Path(), metavar="DIR", help="default: this folder"
    )
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    parser.add_argument(
        "--max-size", type=size, default="100m", metavar="SIZE", help="of all (default: 100m)"
    )
    parser.add_argument("--json", action="store_true", help="print the files as a JSON list")


def main(args: argparse.Namespace) -> int:
    """Write them and say where they are."""
    files = sent(args.notebook, limit=args.max_size)
    written = extract(args.notebook, files, args.directory, force=args.force)
    if args.json:
        print(json.dumps([asdict(file) for file in written]))
    else:
        print("\n".join(f"{file.path} ({file.size} bytes)" for file in written))
    return 0


def sent(notebook: Path, *, limit: int) -> tuple[Sent, ...]:
    """The files in a notebook, of ``limit`` bytes together at most, each name once.

    Raises InputError where there is no notebook, or none of them in it; ExtractError.
    """
    links = [link for page in _pages(notebook) for link in LINK.finditer(page)]
    if not links:
        raise InputError(
            what=str(notebook),
            reason="no file was sent in it",
            remedy="send one in a cell, and save: from sandbox_files import send; send('FILE')",
        )
    total = sum(len(link[2]) * 3 // 4 for link in links)
    if total > limit:
        raise InputError(
            what=str(notebook),
            reason=f"its files have {total} bytes, and {show('memory', limit)} may be extracted",
            remedy="raise --max-size",
        )
    files: dict[str, Sent] = {}
    for link in links:
        name = _free(safe_name(html.unescape(link[1])), files)
        try:
            files[name] = Sent(name=name, content=base64.b64decode(link[2], validate=True))
        except ValueError as error:
            raise ExtractError(
                notebook=str(notebook),
                name=name,
                reason="it is damaged",
                remedy="run the notebook again",
            ) from error
    return tuple(files.values())


def _pages(notebook: Path) -> Iterator[str]:
    """The HTML of each output."""
    try:
        book = json.loads(notebook.read_text(encoding="utf-8"))
        for cell in book["cells"]:
            for output in cell.get("outputs", ()):
                page = output.get("data", {}).get("text/html", "")
                yield page if isinstance(page, str) else "".join(page)
    except OSError as error:
        raise InputError(
            what=str(notebook),
            reason=error.strerror or "cannot be read",
            remedy="give the notebook that was saved after it ran",
        ) from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            what=str(notebook),
            reason="not a notebook",
            remedy="give a file that Jupyter wrote, with the ending .ipynb",
        ) from error


def safe_name(name: str) -> str:
    """One that leads nowhere, hides nothing, and is no option of a command."""
    last = re.split(r"[/\\]", name)[-1]
    plain = "".join(c if c.isprintable() else "_" for c in last).lstrip(" .-").rstrip(" .")
    stem, dot, ending = plain.rpartition(".")
    if not stem or len(ending.encode()) > LONGEST // 4:
        stem, dot, ending = plain, "", ""
    room = LONGEST - len((dot + ending).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + ending or "file"


def _free(name: str, taken: dict[str, Sent]) -> str:
    """The name, with a number where there is one before it."""
    stem, dot, ending = name.rpartition(".")
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{stem}-{number}{dot}{ending}" if stem else f"{name}-{number}"
    return free


def extract(
    notebook: Path, files: Sequence[Sent], folder: Path, *, force: bool
) -> tuple[Extracted, ...]:
    """Write them all into ``folder``, which is made; or, but for full disks, none.

    Raises ExtractError.
    """
    told: dict[str, Any] = {"notebook": str(notebook)}
    there = [file.name for file in files if os.path.lexists(folder / file.name)]
    if there and not force:
        raise ExtractError(
            **told,
            name=there[0],
            reason=f"it is in {folder} already",
            remedy="give another folder with -d DIR, or replace files with --force",
        )
    written = []
    for file in files:
        path = folder / file.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, file.content, force=force)
        except OSError as error:
            raise ExtractError(
                **told,
                name=file.name,
                reason=f"{path}: {error.strerror or error}",
                remedy="give a folder that you can write to, on a disk with room, with -d DIR",
            ) from error
        written.append(Extracted(path=str(path), size=len(file.content)))
    return tuple(written)


def _write(path: Path, content: bytes, *, force: bool) -> None:
    """A new file, whole or not at all; what stands in its place is replaced, not followed."""
    part = path.with_name(f".{secrets.token_hex(8)}.part") if force else path
    with part.open("xb") as file:  # a link, dangling or not, is there already
        try:
            file.write(content)
            file.flush()
            if force:
                part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
