"""``executor-ml --version``: package, engine and image, as far as they can be asked."""

from collections.abc import Mapping

from kernel_provider import __version__, names
from kernel_provider.engines.docker import DockerEngine
from kernel_provider.errors import SandboxError
from kernel_provider.setup import engine_host


def versions(environ: Mapping[str, str]) -> str:
    """Three lines; what can't be asked says why instead of its version."""
    engine, image = "", "not known without an engine"
    try:
        found = engine_host.find(environ)
        engine = f"Docker {found.version} at {found.socket}"
        image = _image(found.socket)
    except SandboxError as error:
        reason = str(error).partition("\n")[0]
        engine, image = (engine, reason) if engine else (reason, image)
    return f"executor-ml {__version__}\nengine: {engine}\nimage: {image}"


def _image(socket: str) -> str:
    facts = DockerEngine(socket).image(names.IMAGE)
    protocol = facts.labels.get(names.LABEL_PROTOCOL, "none")
    inside = facts.labels.get(names.LABEL_VERSIONS, "").replace(" ", ", ")
    short = facts.id.removeprefix("sha256:")[:12]
    return f"{names.IMAGE} {short}, protocol {protocol}{f', {inside}' if inside else ''}"
