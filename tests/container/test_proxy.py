"""A proxy before the engine: kernels live through it, and nothing else goes through."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import docker
import nbformat
import pytest
from conftest import sandboxes
from persons import AS_PERSON, PERSON
from sandboxes import until

from kernel_provider import names
from kernel_provider.engines.docker import DockerEngine, create_body, find_socket
from kernel_provider.errors import ProxySocketError
from kernel_provider.hardening import sandbox_spec
from kernel_provider.policy import KernelPolicy
from kernel_provider.proxy.calls import filters
from kernel_provider.proxy.server import CONNECTIONS, Proxy, ProxyOrder

pytestmark = [
    pytest.mark.container,
    pytest.mark.usefixtures("image"),
    pytest.mark.skipif(os.geteuid() != 0, reason="whoever runs the proxy has root's rights"),
]

COMMAND = str(Path(sys.executable).with_name("executor-ml"))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A folder that everybody may enter, and the proxy's socket in it."""

    folder: Path

    @property
    def socket(self) -> Path:
        """Where the proxy listens."""
        return self.folder / "docker.sock"

    @property
    def environ(self) -> dict[str, str]:
        """What a person's processes have; what they write is below this folder."""
        mine = self.folder / "mine"
        return {
            **os.environ,
            "HOME": str(mine),
            "DOCKER_HOST": f"unix://{self.socket}",
            "EXECUTOR_ML_RUNTIME_DIR": str(self.runtime),
            "JUPYTER_DATA_DIR": str(mine / "data"),
            "JUPYTER_RUNTIME_DIR": str(mine / "runtime"),
            "JUPYTER_CONFIG_DIR": str(mine / "config"),
            "IPYTHONDIR": str(mine / "ipython"),
        }

    @property
    def runtime(self) -> Path:
        """The person's sockets."""
        return self.folder / "mine" / "s"

    def ask(self, call: str, body: object = None) -> tuple[int, Any]:
        """Send a call as this process's user: the status, and what was answered."""
        payload = b"" if body is None else json.dumps(body).encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(60)
            connection.connect(str(self.socket))
            head = f"{call} HTTP/1.0\r\nContent-Length: {len(payload)}\r\n\r\n"
            connection.sendall(head.encode() + payload)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        head, _, data = answer.decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]), json.loads(data) if data.strip() else None


@pytest.fixture
def place() -> Iterator[Place]:
    """One with a short path; what a person keeps in it belongs to them."""
    made = Place(folder=Path(f"/tmp/exq-{secrets.token_hex(3)}"))
    made.folder.mkdir(mode=0o755)
    mine = made.folder / "mine"
    mine.mkdir(mode=0o700)
    os.chown(mine, PERSON, PERSON)
    yield made
    shutil.rmtree(made.folder)


@contextmanager
def proxying(place: Place, **order: Any) -> Iterator[list[str]]:
    """A proxy in a thread of this process: what it tells of."""
    told: list[str] = []
    proxy = Proxy(
        ProxyOrder(engine=find_socket(os.environ), socket=place.socket, **order), told.append
    )
    thread = threading.Thread(target=proxy.serve)
    thread.start()
    try:
        yield told
    finally:
        proxy.close()
        thread.join(10)
        assert not thread.is_alive()


def runs(place: Place, source: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A person runs a notebook of one cell through the proxy."""
    file = place.folder / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), file)
    return subprocess.run(
        [
            *AS_PERSON,
            COMMAND,
            "run",
            str(file),
            "--output",
            str(place.folder / "mine/o.ipynb"),
            *words,
        ],
        env=place.environ,
        cwd=place.folder / "mine",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_person_in_no_group_of_dockers_runs_kernels(
    place: Place, engine: docker.DockerClient
) -> None:
    """By the command, for a group; they cannot use the engine, and nothing was refused."""
    words = ["proxy", "--socket", str(place.socket), "--group", str(PERSON)]
    with subprocess.Popen([COMMAND, *words], stderr=subprocess.PIPE, text=True) as proxy:
        try:
            assert proxy.stderr is not None
            assert f"DOCKER_HOST=unix://{place.socket}" in proxy.stderr.readline()
            assert place.socket.stat().st_mode & 0o777 == 0o660
            direct = {"DOCKER_HOST": f"unix://{find_socket(os.environ)}"}
            refused = subprocess.run(
                [*AS_PERSON, COMMAND, "ps"],
                env={**place.environ, **direct},
                capture_output=True,
                text=True,
                check=False,
            )
            assert "may not use the container engine" in refused.stderr
            done = runs(place, "import os; assert os.getuid() > 60000")
            assert done.returncode == 0, done.stderr
            assert until(lambda: not sandboxes(engine, place.runtime), 10)
        finally:
            proxy.send_signal(signal.SIGTERM)
        _, told = proxy.communicate(timeout=20)
        assert (proxy.returncode, told) == (0, "")
    assert not place.socket.exists()


def body(place: Place, folder: Path) -> tuple[str, dict[str, Any]]:
    """The call, and the body, by which this package creates a sandbox."""
    client = DockerEngine(find_socket(os.environ))
    first, count = client.id_range()
    uid = first + secrets.randbelow(count)
    made = create_body(
        sandbox_spec(KernelPolicy(), rendezvous=str(folder)),
        image_id=client.image(names.IMAGE).id,
        uid=uid,
    )
    assert place.folder in folder.parents
    return f"POST /v1.41/containers/create?name=executor-ml-{uid}", made


@pytest.fixture
def own(place: Place) -> Path:
    """A folder of this process's user."""
    made = place.folder / "own"
    made.mkdir(mode=0o700)
    return made


def test_users_have_their_own_sandboxes_and_no_others(
    place: Place, own: Path, engine: docker.DockerClient
) -> None:
    """One of another user, or not made through the proxy, is as if it were not there."""
    with proxying(place) as told:
        call, made = body(place, own)
        status, answer = place.ask(call, made)
        assert status == 201, answer
        other = engine.api.create_container(
            made["Image"], labels={**made["Labels"], "executor-ml.user": "64399"}
        )["Id"]
        nobodys = engine.api.create_container(made["Image"], labels=made["Labels"])["Id"]
        try:
            listing = f"GET /v1.41/containers/json?all=1&filters={filters('executor-ml=kernel')}"
            assert [row["Id"] for row in place.ask(listing)[1]] == [answer["Id"]]
            for container in (other, nobodys):
                for action in (
                    f"GET /containers/{container}/json",
                    f"POST /containers/{container}/start",
                    f"POST /containers/{container}/kill?signal=KILL",
                    f"DELETE /containers/{container}?force=1&v=1",
                    f"GET /containers/{container}/logs?stdout=1&stderr=1&tail=9",
                ):
                    assert place.ask(action)[0] == 404, action
                assert engine.api.inspect_container(container)["State"]["Status"] == "created"
            assert place.ask(f"GET /containers/{answer['Id']}/json")[0] == 200
            exec_call = f"POST /v1.41/containers/{answer['Id']}/exec"
            assert place.ask(exec_call, {"Cmd": ["id"]})[0] == 403
            assert place.ask(f"DELETE /containers/{answer['Id']}?force=1&v=1")[0] == 204
            assert len(told) == 1
            assert told[0].startswith(f"refused to user {os.getuid()}: '{exec_call}'")
        finally:
            for container in (other, nobodys):
                engine.api.remove_container(container, force=True)
            engine.close()


def test_a_folder_that_is_swapped_for_a_link_is_not_mounted(
    place: Place, own: Path, engine: docker.DockerClient
) -> None:
    """The engine would follow it as root: the sandbox goes before its code can run."""
    secret = place.folder / "secret"
    secret.mkdir(mode=0o700)
    for way in ("before the creation", "before the start"):
        with proxying(place):
            call, made = body(place, own)
            created = None
            if way == "before the start":
                status, created = place.ask(call, made)
                assert status == 201
            own.rmdir()
            own.symlink_to(secret)
            if created is None:
                assert place.ask(call, made)[0] == 403
            else:
                status, answer = place.ask(f"POST /containers/{created['Id']}/start")
                assert status == 403
                assert "is a link" in answer["message"]
                with pytest.raises(docker.errors.NotFound):
                    engine.api.inspect_container(created["Id"])
                engine.close()
            own.unlink()
            own.mkdir()


def test_the_administrators_policy_holds_and_is_told(place: Place, own: Path) -> None:
    """A ceiling, a list of images, another's image; the person sees which and by whom."""
    policy = place.folder / "policy.toml"
    with proxying(place, policy_file=str(policy), group=str(PERSON)):
        for text, why in (
            (
                '[ceilings]\nmemory = "256m"\n[defaults]\nmemory = "256m"',
                "above the ceiling of 256 MB",
            ),
            ('allowed_images = ["other:latest"]', "the administrator allows these images: other"),
            ("[ceilings", "cannot be read"),
        ):
            policy.write_text(text, encoding="utf-8")
            call, made = body(place, own)
            status, answer = place.ask(call, made)
            assert (status, why in answer["message"]) == (403, True), answer
        done = runs(place, "1")  # the last of these files
        assert "the proxy before the engine refuses this" in done.stderr
        policy.write_text(f'allowed_images = ["{names.IMAGE}"]\n[ceilings]\ncpus = 1\n')
        done = runs(place, "1")
        assert done.returncode == 0, done.stderr


def test_an_image_that_is_not_ours_starts_nothing(
    place: Place, own: Path, engine: docker.DockerClient
) -> None:
    """Whatever its programs at our programs' paths would do; nor is it shown to anybody."""
    _, made = body(place, own)
    plain = engine.api.create_container(made["Image"], labels={names.LABEL: "test"})["Id"]
    try:
        label = f"LABEL {names.LABEL}=other"
        image = engine.api.commit(plain, changes=label)["Id"]
    finally:
        engine.api.remove_container(plain)
    try:
        with proxying(place):
            call, made = body(place, own)
            status, answer = place.ask(call, {**made, "Image": image})
            assert (status, "executor-ml build has made" in answer["message"]) == (403, True)
            assert place.ask(f"GET /v1.41/images/{image}/json")[0] == 403
            assert place.ask(f"GET /v1.41/images/{names.IMAGE}/json")[0] == 200
            assert place.ask("GET /v1.41/images/nowhere:1/json")[0] == 404
    finally:
        engine.api.remove_image(image)
        engine.close()


def test_one_user_does_not_keep_out_another(place: Place) -> None:
    """Who opens connections and says nothing has a bound, and others have their own."""
    with proxying(place, group=str(PERSON)):
        held = []
        try:
            for _ in range(CONNECTIONS):
                connection = socket.socket(socket.AF_UNIX)
                held.append(connection)
                connection.connect(str(place.socket))
            assert until(lambda: place.ask("GET /version")[0] == 403, 20)
            done = subprocess.run(
                [*AS_PERSON, COMMAND, "ps"], env=place.environ, capture_output=True, check=False
            )
            assert done.returncode == 0, done.stderr
        finally:
            for connection in held:
                connection.close()
        assert until(lambda: place.ask("GET /version")[0] == 200, 20)


def test_where_it_cannot_listen_it_says_why(place: Place) -> None:
    """Another listens there, no such group, no folder; what is no socket stays as it is."""
    engine = find_socket(os.environ)
    order = ProxyOrder(engine=engine, socket=place.socket)
    file = place.folder / "file"
    file.write_text("kept")

    def refused(order: ProxyOrder) -> str:
        with pytest.raises(ProxySocketError) as caught:
            Proxy(order, print)
        return str(caught.value)

    with proxying(place):
        assert "somebody listens there already" in refused(order)
    assert "there is no group nowhere" in refused(replace(order, group="nowhere"))
    assert "cannot listen" in refused(replace(order, socket=file))
    assert file.read_text() == "kept"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(place.socket))
    stale.close()
    with proxying(place):
        assert place.ask("GET /version")[0] == 200
