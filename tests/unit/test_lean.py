import subprocess
import sys
from pathlib import Path

import kernel_provider

PACKAGE = str(Path(kernel_provider.__file__).parent.parent)
BEGIN = (
    "import sys; sys.path.append(sys.argv[1])\n"
    "from kernel_provider.warden.lean import read_later; read_later('inspect')\n"
)


def outcome(code: str) -> str:
    """What a process as bare as a warden prints."""
    command = [sys.executable, "-I", "-S", "-c", BEGIN + code, PACKAGE]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_warden_starts_without_what_it_does_not_use() -> None:
    """Nor does what it imports while the sandbox comes up read it."""
    code = (
        "import kernel_provider.warden.main, kernel_provider.warden.relay\n"
        "import kernel_provider.warden.wishes, kernel_provider.warden.sweep\n"
        "print('signature' in vars(sys.modules['inspect']), 'ast' in sys.modules)"
    )
    assert outcome(code) == "False False\n"


def test_what_is_used_is_read() -> None:
    """A class without a docstring is described by its signature, as ever."""
    code = (
        "import dataclasses\n"
        "print(dataclasses.make_dataclass('Point', ['x']).__doc__)\n"
        "import inspect\n"
        "print(inspect.signature(lambda a: a), dataclasses.inspect.isclass(int))"
    )
    assert outcome(code) == "Point(x: 'typing.Any')\n(a) True\n"


def test_what_was_read_stays() -> None:
    """Nothing is taken from a process that has it."""
    code = "import json; read_later('json'); print(json is sys.modules['json'])"
    assert outcome(code) == "True\n"
