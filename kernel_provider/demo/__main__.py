"""The demo itself; prints what it does, and how to go on from there."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import CellExecutionError, DeadKernelError

from kernel_provider.demo import model, notebook
from kernel_provider.errors import SandboxError
from kernel_provider.models.store import Registry, place
from kernel_provider.steps import SetupError, Steps

SUFFIX = f" + {model.NAME}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for results")
    parser.add_argument("--kernel", default="executor-ml", help="the kernel to use")
    options = parser.parse_args(arguments)
    steps = Steps(sys.stdout)
    try:
        return demo(options.out.resolve(), options.kernel, steps)
    except SandboxError as error:
        sys.stderr.write(f"\n{error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nStopped; a sandbox that was running ends with this process.\n")
        return 130


def demo(out: Path, kernel: str, steps: Steps) -> int:
    """Model, kernelspec, notebook; 0 only if every cell ran.

    Raises:
        SandboxError: it could not begin, or the kernel could not start.
    """
    registry = Registry(place(os.environ))
    steps.say("The demo will write:")
    if model.find(registry) is None:
        steps.say(f"  - a language model of 260 MB to {registry.root}")
    steps.say(f"  - the executed notebook, its HTML and a kernelspec to {out}")
    label = model.prepare(registry, steps).label
    share = out / "jupyter"
    use_kernelspec(share, kernel, label)
    book = notebook.load()
    failure = ""
    try:
        notebook.run(book, kernel=kernel, folder=out, steps=steps)
    except (CellExecutionError, DeadKernelError, TimeoutError) as error:
        failure = str(error).strip().splitlines()[-1]
    saved, page = notebook.save(book, out)
    steps.say()
    steps.say(f"Executed notebook: {saved}")
    steps.say(f"The same as HTML:  {page}")
    if failure:
        sys.stderr.write(f"\nThe notebook did not run to its end: {failure}\n")
        sys.stderr.write("Fix: see the last cell's output above\n")
        return 1
    steps.say()
    steps.say("Open it in JupyterLab, with this kernel and the model mounted:")
    steps.say(f"  {lab_command(share, saved)}")
    return 0


def use_kernelspec(share: Path, kernel: str, label: str) -> None:
    """Let ``kernel`` have the model, for this process and what it tells to run.

    Raises:
        SetupError: the kernelspec is not installed.
    """
    share.mkdir(parents=True, exist_ok=True)
    try:
        notebook.write_kernelspec(share, kernel=kernel, models=[label], suffix=SUFFIX)
    except NoSuchKernel as error:
        raise SetupError(
            reason=f"no kernelspec {kernel} is installed for {sys.executable}",
            remedy="run: make demo (or pip install executor-ml-kernel)",
        ) from error
    known = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = f"{share}{os.pathsep}{known}" if known else str(share)


def lab_command(share: Path, saved: Path) -> str:
    """What a person types to go on; JupyterLab refuses root unless told."""
    jupyter = Path(sys.executable).with_name("jupyter")
    as_root = " --allow-root" if os.geteuid() == 0 else ""
    return f"JUPYTER_PATH={share} {jupyter} lab{as_root} {saved}"


if __name__ == "__main__":
    sys.exit(main())
