"""Wheels for the image, collected by the host's pip with the user's own configuration.

A collection is kept by the digest of its locks, so that an image of the same lock is
built again without any download. https://pip.pypa.io/en/stable/cli/pip_download/
"""

import hashlib
import importlib.util
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kernel_provider.builder.context import Context
from kernel_provider.builder.lock import CPU_INDEX, refuse_cuda, required
from kernel_provider.builder.model import BuildRequest
from kernel_provider.builder.process import follow, last_words
from kernel_provider.errors import BuildError

PYTHON: Final = "3.11"
NEWEST_GLIBC: Final = 36
"""Minor version of glibc 2 in the base, Debian 12."""

OLDEST_GLIBC: Final = 5

MANYLINUX_YEARS: Final[Mapping[str, int]] = {"2014": 17, "2010": 12, "1": 5}
"""Minor versions of glibc 2 by the older names of platforms (PEP 600)."""

KEPT_FOR: Final = 30 * 24 * 3600
"""Seconds that wheels are kept after their last use."""


def glibc_platforms(newest: int = NEWEST_GLIBC, machine: str = "x86_64") -> list[str]:
    """Every platform whose wheels run with glibc 2.``newest``, the best first."""
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in range(newest, OLDEST_GLIBC - 1, -1)]
    years = [year for year, minor in MANYLINUX_YEARS.items() if minor <= newest]
    platforms += [f"manylinux{year}_{machine}" for year in years]
    return [*platforms, f"linux_{machine}"]


def target_options(python: str = PYTHON, platforms: Sequence[str] = ()) -> list[str]:
    """Options of pip for a CPython and its platforms, by default the image's.

    The host's do not matter.
    """
    abi = f"cp{python.replace('.', '')}"
    return [
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python}",
        *(f"--abi={abi}" for abi in (abi, "abi3", "none")),
        *(f"--platform={platform}" for platform in platforms or glibc_platforms()),
    ]


def pip_download(folder: Path) -> list[str]:
    """How pip is asked for what is named, and nothing else; it goes into ``folder``."""
    return [
        *(sys.executable, "-m", "pip", "download", "--no-input", "--no-deps"),
        *("--disable-pip-version-check", "--progress-bar=off", f"--dest={folder}"),
    ]


def download_command(
    requirements: Sequence[Path],
    target: Path,
    *,
    hashed: bool = True,
    cpu_index: bool = False,
) -> list[str]:
    """How pip is asked for exactly what the files pin, and nothing else."""
    hashes = ["--require-hashes"] if hashed else []
    index = [f"--extra-index-url={CPU_INDEX}", "--retries=1"] if cpu_index else []
    return [
        *pip_download(target),
        *hashes,
        *index,
        *target_options(),
        *(f"--requirement={path}" for path in requirements),
    ]


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Where wheels are kept: in the user's cache."""
    base = environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(base) / "executor-ml"


def collection(context: Context, cache: Path) -> Path:
    """The folder for the wheels of this context's locks, whether it exists or not."""
    digest = hashlib.sha256()
    for path in _all_files(context):
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return cache / "wheels" / digest.hexdigest()[:32]


def collect(
    context: Context, request: BuildRequest, cache: Path, say: Callable[[str], None]
) -> list[Path]:
    """The wheels of the context's locks, downloaded unless they are kept already.

    Raises:
        BuildError: pip is missing, or could not get them all.
        CudaTorchError: the lock, or the torch that pip found, needs CUDA packages.
    """
    refuse_cuda("the lock", context.lock())
    place = collection(context, cache)
    if not place.is_dir():
        place.parent.mkdir(parents=True, exist_ok=True)
        with _scratch(place.parent) as folder:
            _download(context, request, folder, say)
            for wheel in sorted(folder.glob("*.whl")):
                refuse_cuda(wheel.name, required(read_metadata(wheel)))
            folder.rename(place)
    place.touch()
    _forget_old(place.parent)
    return sorted(place.glob("*.whl"))


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="part-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forget_old(parent: Path) -> None:
    """Remove collections that no build has used for long."""
    for folder in parent.iterdir():
        if time.time() - folder.stat().st_mtime > KEPT_FOR:
            shutil.rmtree(folder, ignore_errors=True)


def _all_files(context: Context) -> list[Path]:
    unhashed = [context.unhashed] if context.unhashed else []
    return [*context.locks, context.installer, *unhashed]


def _download(
    context: Context, request: BuildRequest, folder: Path, say: Callable[[str], None]
) -> None:
    if importlib.util.find_spec("pip") is None:
        raise BuildError(
            image=request.image,
            step="collecting wheels",
            last_words=f"\n    {sys.executable} has no pip",
            remedy="python3 -m ensurepip, or on Debian: apt-get install python3-pip",
        )
    batches = [([*context.locks, context.installer], True)]
    if context.unhashed:
        batches.append(([context.unhashed], False))
    for files, hashed in batches:
        command = download_command(files, folder, hashed=hashed)
        code, _ = run_pip(command, say)
        if code:
            say(f"once more, with PyTorch's own index, {CPU_INDEX}")
            command = download_command(files, folder, hashed=hashed, cpu_index=True)
            code, lines = run_pip(command, say)
        if code:
            raise BuildError(
                image=request.image,
                step="collecting wheels",
                last_words=last_words(lines),
                remedy=f"give pip an index that has them; CPU builds of torch: {CPU_INDEX}",
            )


def run_pip(command: Sequence[str], say: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run pip, tell what it gets, and return its exit code and all lines."""

    def tell(line: str) -> None:
        word, _, rest = line.partition(" ")
        if word in {"Collecting", "Downloading"}:
            say(f"{word.lower()} {rest.split(' (from')[0].split('==')[0]}")

    with tempfile.TemporaryDirectory(prefix="executor-ml-pip-") as folder:  # pip leaves its own
        return follow(command, {"PYTHONUNBUFFERED": "1", "TMPDIR": folder}, tell)


def read_metadata(wheel: Path) -> str:
    """METADATA of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (name,) = [item for item in names if item.endswith(".dist-info/METADATA")]
        return archive.read(name).decode("utf-8", errors="replace")
