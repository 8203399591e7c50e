"""What a build asks of the engine, and how its answers are read."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import docker
import docker.errors
import requests

from kernel_provider import names
from kernel_provider.builder.process import last_words
from kernel_provider.engines.docker import DockerEngine
from kernel_provider.errors import BuildError, EngineError, EngineUnreachableError

KIND_BUILD: Final = "build"
"""Value of the label on what only a build needs: stages, made bases, probes."""

PULL_SILENCE: Final = 20
"""Seconds without a byte after which a registry counts as out of reach."""

_STEP: Final = re.compile(r"^Step (\d+)/(\d+) : (.*)$", re.DOTALL)
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
"""The engine paints red what a step writes to its standard error."""

_LOADED: Final = re.compile(r"^Loaded image ID: (sha256:[0-9a-f]{64})")
_NOISE: Final = (" ---> ", "Removing intermediate", "Successfully ")
_CALL_TIMEOUT: Final = 600


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to build from a context, up to ``target``; ``image`` names it in errors."""

    image: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    target: str = ""


class Images:
    """The images of the engine behind the socket at ``path``."""

    def __init__(self, path: str) -> None:
        """Connect, at once.

        Raises:
            EngineUnreachableError, EnginePermissionError, EngineError: nobody answers there.
        """
        DockerEngine(path).version()  # whose errors are in the words of every start
        self._url = f"unix://{path}"
        try:
            self._api = docker.APIClient(self._url, version="auto", timeout=_CALL_TIMEOUT)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineUnreachableError(socket=path, reason=type(error).__name__) from error

    def close(self) -> None:
        """Close the connection."""
        self._api.close()

    def facts(self, image: str) -> Mapping[str, Any] | None:
        """What the engine knows of an image, None if it is not there. Raises EngineError."""
        try:
            found: dict[str, Any] = self._api.inspect_image(image)  # type: ignore[no-untyped-call]
        except docker.errors.ImageNotFound:
            return None
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineError(action=f"look for {image}", reason=_reason(error)) from error
        return found

    def present(self, image: str) -> bool:
        """Whether the image is on this machine."""
        return self.facts(image) is not None

    def label(self, image: str, name: str) -> str | None:
        """A label of an image; None without the image or the label."""
        facts = self.facts(image)
        labels = (facts or {}).get("Config", {}).get("Labels") or {}
        value: str | None = labels.get(name)
        return value

    def names(self) -> list[str]:
        """The names of all images of ours."""
        found = self._api.images(filters={"label": f"{names.LABEL}={names.KIND_IMAGE}"})
        return [name for entry in found for name in entry["RepoTags"] or ()]

    def pull(self, image: str) -> str | None:
        """Pull an image; return what went wrong, None if it is here now."""
        api = docker.APIClient(self._url, version="auto", timeout=PULL_SILENCE)
        try:
            for entry in api.pull(image, stream=True, decode=True):
                if "error" in entry:
                    return str(entry["error"])
        except (docker.errors.DockerException, requests.RequestException) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            api.close()
        return None if self.present(image) else f"{image} was pulled and is not there"

    def load_root(self, archive: Path, name: str) -> None:
        """Make an image of one layer from a tar of a root file system."""
        repository, _, tag = name.partition(":")
        answer = self._api.import_image_from_file(
            str(archive),
            repository=repository,
            tag=tag,
            changes=[f"LABEL {names.LABEL}={KIND_BUILD}"],
        )
        if not self.present(name):
            raise EngineError(action=f"import {name}", reason=str(answer).strip())

    def build(self, context: BinaryIO, order: Order, say: Callable[[str], None]) -> str:
        """Build from a tar without a network, name nothing, and return the image's id.

        Cutting this short ends the build in the engine too: it watches the connection.

        Raises:
            BuildError: a step failed; carries the step and the last lines.
            EngineError: it went away, or would not begin.
        """
        stream: Any = None
        try:
            stream = self._api.build(
                fileobj=context,
                custom_context=True,
                rm=True,
                forcerm=True,
                decode=True,
                network_mode="none",
                buildargs=dict(order.arguments),
                labels=dict(order.labels),
                target=order.target,
            )
            return read_build(stream, image=order.image, say=say)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineError(action=f"build {order.image}", reason=_reason(error)) from error
        finally:
            if stream is not None:
                stream.close()

    def run(self, image: str, command: list[str]) -> tuple[int, str]:
        """Run a command as a sandbox would, and return its exit code and its output."""
        container = self._api.create_container(
            image,
            command,
            entrypoint=[names.SANDBOX_PYTHON],
            labels={names.LABEL: KIND_BUILD},
            network_disabled=True,
            host_config=self._api.create_host_config(
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                tmpfs={"/tmp": "rw,size=256m"},  # noqa: S108  in the container
            ),
        )["Id"]
        try:
            self._api.start(container)
            code = self._api.wait(container)["StatusCode"]
            output = self._api.logs(container, stdout=True, stderr=True)
        finally:
            self._api.remove_container(container, force=True)
        return int(code), output.decode(errors="replace")

    def tag(self, image_id: str, name: str) -> None:
        """Give an image a name, which an older one then loses."""
        repository, _, tag = name.partition(":")
        self._api.tag(image_id, repository, tag or "latest")

    def export(self, image_id: str) -> Iterator[bytes]:
        """The image as a tar that ``load`` takes; by its id, so that it carries no name.

        Raises:
            EngineError: the engine stopped sending; what came is of no use.
        """
        try:
            yield from self._api.get_image(image_id)
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineError(action=f"export {image_id}", reason=_reason(error)) from error

    def load(self, archive: Iterator[bytes], say: Callable[[str], None]) -> str:
        """Load an image from what ``export`` made, compressed or not; return its id.

        Cutting this short ends the loading in the engine too.

        Raises:
            EngineError: the engine refused it, or has no room.
        """
        try:
            return read_load(self._api.load_image(archive), say)  # type: ignore[no-untyped-call]
        except (docker.errors.DockerException, requests.RequestException) as error:
            raise EngineError(action="load an image", reason=_reason(error)) from error

    def remove_unnamed(self, *, stages: bool) -> None:
        """Remove images of ours that have lost their name; ``stages`` too if true.

        What a container still uses stays until a later build.
        """
        for kind in [names.KIND_IMAGE, *([KIND_BUILD] if stages else [])]:
            wanted = {"dangling": True, "label": f"{names.LABEL}={kind}"}
            for entry in self._api.images(filters=wanted):
                with suppress(docker.errors.APIError):
                    self._api.remove_image(entry["Id"])


def read_build(
    stream: Iterator[Mapping[str, Any]], *, image: str, say: Callable[[str], None]
) -> str:
    """Follow the engine's account of a build and return the image's id.

    Raises:
        BuildError: it ended with an error, or without an image.
    """
    step = "sending the context"
    lines: list[str] = []
    image_id = ""
    for entry in stream:
        text = _COLOUR.sub("", str(entry.get("stream", ""))).rstrip()
        if found := _STEP.match(text):
            step = f"step {found[1]} of {found[2]}: {_short(found[3])}"
            lines = []
            say(step)
        elif text and not text.startswith(_NOISE):
            lines.extend(text.splitlines())
            say(text.splitlines()[-1])
        image_id = entry.get("aux", {}).get("ID", image_id)
        if "error" in entry:
            lines.append(str(entry["error"]))
            break
    else:
        if image_id:
            return str(image_id)
    raise BuildError(
        image=image,
        step=step,
        last_words=last_words(lines),
        remedy="mend what the lines above say and build again; the old image is in place",
    )


def read_load(stream: Iterator[Mapping[str, Any]], say: Callable[[str], None]) -> str:
    """Follow the engine's account of loading an image without a name; return its id.

    Raises:
        EngineError: it ended with an error, or without an image.
    """
    reason = "it told of no image"
    for entry in stream:
        if found := _LOADED.search(str(entry.get("stream", ""))):
            return found[1]
        if "error" in entry:
            reason = str(entry["error"])
            break
        done = entry.get("progressDetail", {}).get("current")
        if done:
            say(f"layer: {int(done) / 1e6:.0f} MB")
    raise EngineError(action="load an image", reason=reason)


def _reason(error: Exception) -> str:
    """What the engine said, or how it stopped talking."""
    if isinstance(error, docker.errors.APIError) and error.explanation:
        return str(error.explanation)
    return f"it closed the connection, or did not answer ({type(error).__name__})"


def _short(instruction: str) -> str:
    words = " ".join(instruction.split())
    return words if len(words) <= 60 else f"{words[:57]}..."  # noqa: PLR2004  a terminal's line


def last_json(output: str) -> dict[str, str]:
    """The JSON object on the last line of an output; ValueError if there is none."""
    lines = output.strip().splitlines() or [""]
    found: dict[str, str] = json.loads(lines[-1])
    return found
