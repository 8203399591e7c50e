"""The installed product: what a wheel brings to an environment of its own."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.container

ROOT = Path(__file__).resolve().parent.parent.parent
SPEC = "share/jupyter/kernels/executor-ml"


def run(*command: str | Path, **environ: str) -> str:
    """Run, with words as arguments; its standard output."""
    words = [str(word) for word in command]
    environment = {**os.environ, **environ}
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel by way of a source distribution, as an index would serve it."""
    target = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT)
    (found,) = target.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A new virtual environment with the wheel in it.

    Its dependencies are those of the environment that runs the tests, made visible
    through a path file, so that nothing is downloaded again.
    """
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel)
    dependencies = Path(pytest.__file__).parent.parent
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder


def test_the_wheel_holds_everything(wheel: Path) -> None:
    """Image context, kernelspec with logos, types, licence; nothing of the tests."""
    names = set(zipfile.ZipFile(wheel).namelist())
    (data,) = {name.partition("/")[0] for name in names if ".data/" in name}
    for expected in (
        "kernel_provider/py.typed",
        "kernel_provider/demo/demo.ipynb",
        "kernel_provider/_data/image/Dockerfile",
        "kernel_provider/_data/image/launcher/guardian.py",
        "kernel_provider/_data/image/stacks/current/ml.lock",
        "kernel_provider/_data/kernelspecs/executor-ml-grading/kernel.json",
        f"{data}/data/{SPEC}/kernel.json",
        f"{data}/data/{SPEC}/logo-svg.svg",
        f"{data}/data/{SPEC}/logo-64x64.png",
        f"{data}/data/{SPEC}/logo-32x32.png",
    ):
        assert expected in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "test" in name.split("/")[0] or ".pyc" in name]


def test_the_image_context_is_the_checkouts(wheel: Path) -> None:
    """Every file of ``image/`` travels, with the same content."""
    archive = zipfile.ZipFile(wheel)
    for path in (ROOT / "image").rglob("*"):
        name = f"kernel_provider/_data/{path.relative_to(ROOT)}"
        if path.is_file() and "__pycache__" not in path.parts:
            assert archive.read(name) == path.read_bytes()


def test_the_commands_answer(fresh: Path) -> None:
    """By both of its names, and as a subcommand of jupyter."""
    expected = run(fresh / "bin/executor-ml", "--version")
    assert expected.startswith("executor-ml ")
    assert run(fresh / "bin/jupyter-executor-ml", "--version") == expected
    jupyter = [str(fresh / "bin/python"), "-m", "jupyter", "executor-ml", "--version"]
    assert run(*jupyter, PATH=f"{fresh}/bin:{os.environ['PATH']}") == expected


def test_jupyter_sees_the_kernel(fresh: Path) -> None:
    """``jupyter kernelspec list`` shows it with its logos, and offers its provisioner."""
    jupyter = [str(fresh / "bin/python"), "-m", "jupyter_client.kernelspecapp"]
    listed = json.loads(run(*jupyter, "list", "--json"))["kernelspecs"]
    found = listed["executor-ml"]
    assert found["resource_dir"] == str(fresh / SPEC)
    spec = found["spec"]
    assert "512 MB" in spec["display_name"]
    assert "0.5 CPU" in spec["display_name"]
    assert "{connection_file}" in spec["argv"]
    assert not {"python", "ipykernel_launcher"} & set(spec["argv"])
    offered = run(fresh / "bin/python", "-c", PROVISIONERS)
    assert "kernel_provider.provisioner:SandboxProvisioner" in offered


PROVISIONERS = """
from jupyter_client.provisioning import KernelProvisionerFactory
print(KernelProvisionerFactory.instance().get_provisioner_entries())
"""


def test_set_up_needs_nothing_installed() -> None:
    """The bootstrap, a bundle's own, and all that they import: the standard library alone."""
    for module in ("setup.bootstrap", "bundle.setup"):
        code = f"import sys; sys.path.insert(0, sys.argv[1]); import kernel_provider.{module}"
        run(sys.executable, "-I", "-S", "-c", code, ROOT)
