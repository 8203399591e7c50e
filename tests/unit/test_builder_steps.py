import importlib.util
import json
import os
import struct
from pathlib import Path
from types import ModuleType

import pytest

from kernel_provider.builder.context import find_folder


def load(name: str) -> ModuleType:
    """A script of the build stage as a module."""
    path = find_folder() / "steps" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(*, symbols: int, loaded_behind: bool = False) -> bytes:
    """A 64-bit shared library: 4 KB of code, a symbol table, section names.

    With ``loaded_behind`` its program header covers the whole file, as after patchelf.
    """
    names = b"\0.text\0.symtab\0.shstrtab\0"
    code, table = 0x1000, 0x2000
    strings = table + symbols
    headers = strings + len(names)
    size = headers + 4 * 64
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01".ljust(16, b"\0"),
        *(3, 62, 1, 0, 64, headers, 0, 64, 56, 1, 64, 4, 3),
    )
    length = size if loaded_behind else table
    program = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, length, length, 0x1000)
    sections = (
        bytes(64)
        + struct.pack("<IIQQQQIIQQ", 1, 1, 6, code, code, 0x1000, 0, 0, 16, 0)
        + struct.pack("<IIQQQQIIQQ", 7, 2, 0, 0, table, symbols, 3, 0, 8, 24)
        + struct.pack("<IIQQQQIIQQ", 15, 3, 0, 0, strings, len(names), 0, 0, 1, 0)
    )
    front = (header + program).ljust(code, b"\0")
    return front + b"\xc3" * 0x1000 + b"S" * symbols + names + sections


def test_a_symbol_table_goes_and_what_is_loaded_stays_byte_for_byte() -> None:
    """A stripped library runs as before: only what the loader never reads is gone."""
    strip = load("strip_symbols")
    before = library(symbols=1 << 20)
    after = strip.stripped(before)
    assert after is not None
    assert len(after) < len(before) - (1 << 20) + 64
    assert after[64:0x2000] == before[64:0x2000]
    offset = struct.unpack_from("<Q", after, 40)[0]
    assert offset + 4 * 64 == len(after)
    kept = [struct.unpack_from("<II", after, offset + 64 * index) for index in range(4)]
    assert kept == [(0, 0), (1, 1), (0, 0), (15, 3)]
    assert strip.stripped(after) is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a library at all",
        library(symbols=1 << 10),
        library(symbols=1 << 20, loaded_behind=True),
        library(symbols=1 << 20)[:-10],
    ],
    ids=["empty", "text", "nothing to gain", "loaded behind", "cut off"],
)
def test_what_is_laid_out_otherwise_is_left_alone(data: bytes) -> None:
    """Better too large than broken."""
    assert load("strip_symbols").stripped(data) is None


def test_libraries_below_and_nvidias_are_left_alone(tmp_path: Path) -> None:
    """What is stripped is of this layer, and runs on processors."""
    times = {
        "torch/lib/libnew.so.1": 300,
        "torch/lib/libold.so.1": 100,
        "nvidia/cu13/lib/libcublas.so.13": 300,
        "triton/backends/nvidia/lib/libx.so": 300,
    }
    for name, time in times.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, ns=(time, time))
    found = load("strip_symbols").libraries(tmp_path, 200)
    assert [path.name for path in found] == ["libnew.so.1"]


def test_removals_take_what_matches_and_say_what_it_weighed(tmp_path: Path) -> None:
    """Tests and headers go, in the environment's other folders too; code stays."""
    trim = load("trim")
    root = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("numpy/core/tests/test_a.py", "numpy/core/a.py", "numpy/core/b.pxd"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 100)
    (tmp_path / "share" / "man").mkdir(parents=True)
    (tmp_path / "share" / "man" / "a.1").write_bytes(b"x" * 10)
    assert trim.remove(root, ["numpy/**/tests", "**/*.pxd"]) == 200
    assert trim.remove(root, ["../../../share/man", "missing"]) == 10
    assert [path.name for path in root.rglob("*.py")] == ["a.py"]
    assert trim.weight(tmp_path) == 100


def test_what_a_layer_below_has_is_not_removed(tmp_path: Path) -> None:
    """Only what is as new as the layer itself: the rest is not this layer's to change."""
    trim = load("trim")
    for name, time in {"old": 100, "new": 300}.items():
        folder = tmp_path / name / "tests"
        folder.mkdir(parents=True)
        (folder / "test_a.py").write_bytes(b"x" * 10)
        os.utime(folder, ns=(time, time))
    assert trim.remove(tmp_path, ["**/tests"], 200) == 10
    assert [path.parent.name for path in tmp_path.rglob("tests")] == ["old"]


def test_a_layer_without_probes_compiles_what_its_notebook_and_its_modules_import(
    tmp_path: Path,
) -> None:
    """A person's own file has its modules only; what cannot be imported ends the build."""
    steps = load("compile")
    cells = [
        {"cell_type": "markdown", "source": ["# words"]},
        {"cell_type": "code", "source": ["import json\n", "json"]},
        {"cell_type": "code", "source": ["x = 1"]},
    ]
    stack = tmp_path / "current"
    stack.mkdir()
    (stack / "nlp.ipynb").write_text(json.dumps({"cells": cells}))
    environ = {"STACK": str(stack), "LAYERS": "nlp", "MODULES": "wave fractions"}
    found = list(steps.probes(environ))
    assert found == ["import json\njson\nx = 1", "import wave, fractions"]
    assert list(steps.probes({**environ, "LAYERS": "geo"})) == found[1:]
    assert any(path.endswith("/wave.py") for path in steps.imported(found[1]))
    with pytest.raises(SystemExit, match="No module named 'gone_for_good'"):
        steps.imported("import gone_for_good")


def test_a_model_in_a_package_is_found_where_the_hub_would_have_it(tmp_path: Path) -> None:
    """By links: its files are there once. A folder that is not there ends the build."""
    step = load("models")
    package = tmp_path / "site/pack/model"
    (package / "part").mkdir(parents=True)
    for name in ("config.json", "part/weights.safetensors"):
        (package / name).write_text(name)
    step.link("org/tiny", package, tmp_path / "models")
    cache = tmp_path / "models/hub/models--org--tiny"
    snapshot = cache / "snapshots" / (cache / "refs/main").read_text()
    assert (snapshot / "part/weights.safetensors").read_text() == "part/weights.safetensors"
    assert (snapshot / "config.json").is_symlink()
    assert (tmp_path / "models/tiny/config.json").read_text() == "config.json"
    with pytest.raises(SystemExit, match="org/gone: there is nothing in"):
        step.link("org/gone", tmp_path / "site/gone", tmp_path / "models")
