"""For notebooks: let a file out of the sandbox, through the output of a cell.

    from sandbox_files import send
    send("result.csv")

The cell then shows a link that saves the file in a browser. The notebook keeps it, and
``executor-ml extract`` writes it on the machine that has the notebook.
"""

from __future__ import annotations

import base64
import html
import os
from typing import Any

LIMIT = 10 * 1024 * 1024
"""Bytes of one file, unless told otherwise: a notebook holds it as text, a third larger."""

CLICKABLE = 1024 * 1024
"""Bytes up to which every browser saves a file from a link that holds it."""


def send(path: str | os.PathLike[str], *, limit: int = LIMIT) -> None:
    """Put the file into this cell's output.

    Raises ValueError where it has more than ``limit`` bytes, before anything is shown.
    """
    from IPython.display import display  # noqa: PLC0415  importing this costs nothing

    with open(path, "rb") as file:
        content = file.read(limit + 1)
        if len(content) > limit:
            msg = (
                f"{os.fspath(path)} has {os.fstat(file.fileno()).st_size} bytes, and {limit} may "
                "be sent: compress it, or give a larger limit (the notebook grows by 4/3 of it)"
            )
            raise ValueError(msg)
    display(bundle(os.path.basename(os.fspath(path)), content), raw=True)


def bundle(name: str, content: bytes) -> dict[str, Any]:
    """What a front-end shows, and what ``executor-ml extract`` looks for."""
    data = base64.b64encode(content).decode()
    told = html.escape(name.encode(errors="replace").decode())
    link = (
        f'<a class="executor-ml-file" download="{told}" '
        f'href="data:application/octet-stream;base64,{data}">{told}</a>'
    )
    size = f"{len(content)} bytes"
    if len(content) > CLICKABLE:
        link = f"<span hidden>{link}</span>{told}"
        size += "; executor-ml extract takes it out of the saved notebook"
    return {"text/html": f"{link} ({size})", "text/plain": html.unescape(f"{told} ({size})")}
