"""Write a stack's lock from its requirements.in; for maintainers, not for builds.

    python3 image/stacks/relock.py current

pip resolves for the image's Python and platform with the user's own configuration,
and what it chose is written down with its hashes. Packages that an image must not
hold are left out of the lock, which builds install with ``--no-deps``.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LEFT_OUT = {
    "setuptools": "torch asks for it to compile extensions; images have no compiler",
    "hf-xet": "a downloader; images have no network",
    "cmake": "torch 2.0 asks for it through triton",
    "lit": "torch 2.0 asks for it through triton",
}
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    "manylinux2014_x86_64",
    "manylinux2010_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
]


def resolve(requirements: Path) -> list[dict[str, Any]]:
    """What pip would install for the image, as the entries of its report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        target = ["--python-version=3.11", "--implementation=cp", "--only-binary=:all:"]
        target += [f"--platform={platform}" for platform in PLATFORMS]
        target += [f"--abi={abi}" for abi in ("cp311", "abi3", "none")]
        subprocess.run(  # noqa: S603 - pip itself, with arguments from this file
            [
                *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"),
                *("--ignore-installed", f"--target={folder}", f"--report={report}"),
                *target,
                f"--requirement={requirements}",
            ],
            check=True,
        )
        entries: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return entries


def lock_lines(entries: list[dict[str, Any]]) -> list[str]:
    """The lock's lines, sorted by name; without the packages that are left out."""
    lines = []
    for entry in entries:
        name = entry["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name not in LEFT_OUT:
            digest = entry["download_info"]["archive_info"]["hashes"]["sha256"]
            version = entry["metadata"]["version"]
            lines.append(f"{name}=={version} \\\n    --hash=sha256:{digest}")
    return sorted(lines)


def main() -> None:
    """Write the lock beside the requirements of the stack that the command names."""
    (stack,) = sys.argv[1:]
    folder = Path(__file__).parent / stack
    lines = lock_lines(resolve(folder / "requirements.in"))
    header = f"# Written by relock.py for stack {stack}: CPython 3.11, Linux, x86-64."
    lock = "\n".join([header, *lines]) + "\n"
    (folder / "requirements.lock").write_text(lock, encoding="utf-8")


if __name__ == "__main__":
    main()
