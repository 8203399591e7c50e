"""``executor-ml doctor`` on a real machine, and what ``--fix`` really mends."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import pytest

from kernel_provider import names
from kernel_provider.engines.docker import NAME_PREFIX

pytestmark = pytest.mark.container

EXECUTOR_ML = str(Path(sys.executable).parent / "executor-ml")
ELSEWHERE = "00000000-0000-0000-0000-000000000000:1:1:1"


def doctor(*words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, results by name, and what was said meanwhile."""
    done = subprocess.run(
        [EXECUTOR_ML, "doctor", "--json", *words], capture_output=True, text=True, check=False
    )
    results = json.loads(done.stdout)
    return done.returncode, {r["name"]: r for r in results["checks"]}, done.stderr


def test_a_machine_where_kernels_start_has_no_failures(image: str) -> None:
    """Whatever it warns of; what it found is what is there."""
    code, results, _ = doctor()
    assert code == 0, results
    assert results["engine"]["status"] == "ok"
    assert "protocol 1, python=3.11" in results[f"image {image}"]["found"]
    assert results["kernelspec executor-ml"]["status"] == "ok"
    assert results["jupyter"]["status"] == "ok"


def test_a_kernelspec_that_could_not_start_is_found(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error is the one of a start, and its image is looked for as well."""
    assert image
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name, config in {"typo": {"memroy": "1g"}, "lost": {"image": "no-such:1"}}.items():
        wanted = {"provisioner_name": "executor-ml-provisioner", "config": config}
        folder = tmp_path / "kernels" / name
        folder.mkdir(parents=True)
        spec = {
            "argv": ["executor-ml", "launch", "{connection_file}"],
            "display_name": name,
            "language": "python",
            "metadata": {"kernel_provisioner": wanted},
        }
        (folder / "kernel.json").write_text(json.dumps(spec))
    code, results, _ = doctor()
    assert code == 1
    assert "did you mean 'memory'?" in results["kernelspec typo"]["found"]
    assert results["image no-such:1"]["status"] == "fail"
    assert results["kernelspec executor-ml"]["status"] == "ok"


def test_fix_removes_what_the_dead_left(image: str, engine: docker.DockerClient) -> None:
    """A sandbox of a machine that is no more, which has ended, is found and removed."""
    name = f"{NAME_PREFIX}leftover-of-a-test"
    labels = {names.LABEL: names.KIND_KERNEL, names.LABEL_WARDEN: ELSEWHERE}
    made = engine.containers.create(
        image, entrypoint=["/bin/true"], name=name, labels=labels, network_mode="none"
    )
    try:
        made.start()
        made.wait()
        _, results, _ = doctor()
        if not engine.containers.list(all=True, filters={"name": name}):
            pytest.skip("a kernel of another run on this engine has swept it away first")
        assert results["leftovers"]["status"] == "warn"
        assert name in results["leftovers"]["found"]
        _, results, said = doctor("--fix")
        assert results["leftovers"]["status"] == "ok"
        assert "mending leftovers:" in said
        assert f"ok  removing leftovers: {name}" in said
        assert not engine.containers.list(all=True, filters={"name": name})
    finally:
        with contextlib.suppress(docker.errors.NotFound):
            made.remove(force=True)
