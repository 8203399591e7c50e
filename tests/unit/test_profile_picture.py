"""What comes of a run that was to draw a profile's plots."""

import base64
import json
import struct
import zlib
from typing import Any

import pytest

from kernel_provider.profile.picture import HEIGHT, WIDTH, PictureError, taken
from kernel_provider.profile.png import SIGNATURE
from kernel_provider.run.model import CellReport, ExitCode, RunResult


def ran(*outputs: dict[str, Any], error: str = "") -> RunResult:
    """A run whose cell has these outputs, and raised ImportError if it has an error."""
    state = "error" if error else "ok"
    cell = CellReport(
        number=1, index=0, title="", state=state, error=error and "ImportError", message=error
    )
    return RunResult(
        exit_code=ExitCode.CELL_ERROR if error else ExitCode.SUCCESS,
        cells=(cell,),
        seconds=1.0,
        death=None,
        limits={},
        document=json.dumps({"cells": [{"outputs": outputs}]}),
    )


def shown(content: bytes) -> dict[str, Any]:
    """An output that says that it is a PNG, in lines as a file has it."""
    lines = base64.encodebytes(content).decode().splitlines(keepends=True)
    return {"output_type": "display_data", "data": {"image/png": lines}}


def blank() -> bytes:
    """A picture of the size that is asked for."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 6, 0, 0, 0),
        b"IDAT": zlib.compress(bytes((1 + 4 * WIDTH) * HEIGHT)),
        b"IEND": b"",
    }
    crcs = {kind: struct.pack(">I", zlib.crc32(kind + part)) for kind, part in parts.items()}
    sized = (struct.pack(">I", len(part)) + kind + part for kind, part in parts.items())
    return SIGNATURE + b"".join(map(bytes.__add__, sized, crcs.values()))


def test_the_picture_is_found_among_the_outputs() -> None:
    """Beside what else a library has to say."""
    stream = {"output_type": "stream", "name": "stderr", "text": "Matplotlib is building"}
    assert taken(ran(stream, shown(blank()))) == blank()
    assert taken(ran(shown(blank()))) == blank()


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (ran(error="No module named 'matplotlib'"), "ImportError: No module named 'matplotlib'"),
        (ran(), "its cell shows no picture"),
        (ran({"output_type": "stream", "name": "stdout", "text": "x"}), "shows no picture"),
        (ran(shown(b"GIF89a")), "it has not the beginning of a PNG"),
        (ran({"data": {"image/png": "\u00e9"}}), "ASCII"),
        (ran({"data": {"image/png": "ab!c"}}), "base64"),
    ],
)
def test_what_is_no_picture_is_told(result: RunResult, why: str) -> None:
    """With what can be done without it."""
    with pytest.raises(PictureError) as caught:
        taken(result)
    assert str(caught.value).startswith("the plot could not be drawn: ")
    assert why in str(caught.value)
    assert "--html FILE" in str(caught.value)
