"""Install executor-ml from a bundle, on a machine with nothing but Python and an engine.

    python3 install.py FILE [--venv DIR] [options of executor-ml unbundle]

FILE is the bundle, as executor-ml bundle wrote it. DIR is made; by default it is
executor-ml-venv, here. Nothing is downloaded.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

LEAST = (3, 11)
WHEEL = "wheels/executor_ml_kernel-"


def main() -> int:
    """Go on with the package itself, out of its wheel in the bundle."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        asked = words[:1] in (["-h"], ["--help"])
        print(__doc__.strip(), file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    if sys.version_info < LEAST:
        found = ".".join(map(str, sys.version_info[:2]))
        return failed(
            f"Python 3.11 or newer is needed, and this is Python {found}",
            "run this with another one, such as python3.11 install.py FILE",
        )
    with tempfile.TemporaryDirectory(prefix="executor-ml-") as folder:
        try:
            wheel = take_wheel(Path(words[0]), Path(folder))
        except (OSError, EOFError, tarfile.TarError, LookupError) as error:
            return failed(
                f"{words[0]} is no bundle, or a damaged one: {error}",
                "carry it over again; sha256sum must tell what executor-ml bundle told",
            )
        sys.path.insert(0, str(wheel))
        from kernel_provider.bundle.setup import run  # noqa: PLC0415  it is in the wheel

        return run(words)


def take_wheel(bundle: Path, folder: Path) -> Path:
    """Write the package's wheel into ``folder``; raises LookupError if there is none."""
    with tarfile.open(bundle) as tar:
        for info in tar:
            if info.name.startswith(WHEEL):
                file = tar.extractfile(info)
                content = file.read() if file else b""
                if len(content) != info.size:
                    message = f"it ends in the middle of {info.name}"
                    raise EOFError(message)
                wheel = folder / Path(info.name).name
                wheel.write_bytes(content)
                return wheel
    message = f"it has no {WHEEL}*"
    raise LookupError(message)


def failed(reason: str, remedy: str) -> int:
    """Say why it can't go on; returns the exit code."""
    print(f"install.py: {reason}\nFix: {remedy}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
