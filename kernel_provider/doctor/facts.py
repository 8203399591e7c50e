"""Look at everything that the checks judge.

Nothing is changed, but for the private folder for sockets, which is made as by every
start of a kernel.
"""

import os
from collections.abc import Mapping, Sequence

from kernel_provider import kernelspecs, names
from kernel_provider.admin import said_in_files
from kernel_provider.ceilings import Ceilings, read_ceilings
from kernel_provider.doctor import engine, host, jupyter
from kernel_provider.doctor.model import EngineFacts, Facts, Space
from kernel_provider.engines import ImageFacts
from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import SandboxError
from kernel_provider.folders import runtime_root
from kernel_provider.kernelspecs import Kernelspec


def gather(environ: Mapping[str, str]) -> Facts:
    """Look at the machine as a start of a kernel with this environment would."""
    found = _engine(environ)
    ceilings = _ceilings(environ)
    specs = kernelspecs.installed()
    runtime = _runtime(environ)
    return Facts(
        engine=found,
        ceilings=ceilings,
        images={} if isinstance(found, SandboxError) else _images(found, specs),
        kernelspecs=specs,
        other_kernels=kernelspecs.others(),
        provisioner_problem=jupyter.provisioner_problem(),
        jupyters=jupyter.jupyters(environ.get("PATH", os.defpath)),
        orjson=jupyter.version_of("orjson"),
        server=jupyter.server_settings(),
        runtime=runtime,
        runtime_space=None if isinstance(runtime, SandboxError) else host.space(runtime),
        engine_space=_engine_space(found),
        leftovers=_leftovers(found, runtime),
        gpus=host.gpus(() if isinstance(found, SandboxError) else found.runtimes),
    )


def _engine(environ: Mapping[str, str]) -> EngineFacts | SandboxError:
    try:
        return engine.ask(find_socket(environ))
    except SandboxError as error:
        return error


def _ceilings(environ: Mapping[str, str]) -> Ceilings | SandboxError:
    try:
        return read_ceilings(environ, traits=said_in_files())
    except SandboxError as error:
        return error


def _runtime(environ: Mapping[str, str]) -> str | SandboxError:
    try:
        return runtime_root(environ)
    except SandboxError as error:
        return error


def _images(
    found: EngineFacts, specs: Sequence[Kernelspec]
) -> dict[str, ImageFacts | SandboxError]:
    """Every image that a kernelspec asks for, or the usual one."""
    readable = [spec for spec in specs if not spec.problem]
    wanted = [spec.config.get("image", names.IMAGE) for spec in readable] or [names.IMAGE]
    images: dict[str, ImageFacts | SandboxError] = {}
    for reference in wanted:
        if isinstance(reference, str) and reference:
            try:
                images[reference] = DockerEngine(found.socket).image(reference)
            except SandboxError as error:
                images[reference] = error
    return images


def _engine_space(found: EngineFacts | SandboxError) -> Space | None:
    if isinstance(found, SandboxError) or not found.data_root:
        return None
    return host.space(found.data_root)


def _leftovers(
    found: EngineFacts | SandboxError, runtime: str | SandboxError
) -> tuple[str, ...] | None:
    if isinstance(found, SandboxError) or isinstance(runtime, SandboxError):
        return None
    try:
        containers = DockerEngine(found.socket).list(f"{names.LABEL}={names.KIND_KERNEL}")
    except SandboxError:
        return None
    return host.abandoned_containers(containers) + host.abandoned_folders(runtime)
