"""With what submissions are graded: looked up once, before the first sandbox starts.

What would keep every sandbox from starting is found here: no engine, no image, a setting
that is not possible.
"""

import os
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Final

from kernel_provider import __version__, kernelspecs, names
from kernel_provider.engines.docker import DockerEngine, find_socket
from kernel_provider.errors import ConfigError
from kernel_provider.grading.marking import Rules
from kernel_provider.grading.model import Conditions
from kernel_provider.grading.source import Source
from kernel_provider.policy import KernelPolicy
from kernel_provider.run.kernel import find, merged, named, shown
from kernel_provider.values import MIB

OPTIONS: Final = "the options of executor-ml grade"
OUTPUT_LIMIT: Final = 8 * MIB
"""Bytes that a cell may put out, where the kernelspec does not say: a grader reads less."""
LIBRARIES: Final = ("jupyter_client", "nbclient", "nbformat")


def overrides(kernel: str, asked: Mapping[str, object]) -> dict[str, object]:
    """Settings that go before the kernelspec's. Raises what ``kernel`` is wrong with."""
    merged(find(kernel), {})
    own = kernelspecs.named(kernel).config
    given = {} if "output_limit" in own else {"output_limit": OUTPUT_LIMIT}
    return {**given, **asked}


def policy_of(kernel: str, overrides: Mapping[str, object]) -> KernelPolicy:
    """What a sandbox will have. Raises the error that would end each launch."""
    spec = kernelspecs.named(kernel)
    try:
        return replace(spec, config={**spec.config, **overrides}).launched(os.environ)
    except ConfigError as error:
        raise named(error, overrides, options=OPTIONS) from error


def conditions_of(rules: Rules, policy: KernelPolicy, source: Source) -> Conditions:
    """All of it. Raises EngineError, ImageMissingError."""
    engine = DockerEngine(find_socket(os.environ))
    facts = engine.image(policy.image)
    libraries = {name: version(name) for name in LIBRARIES}
    return Conditions(
        kernel=rules.kernel,
        image=policy.image,
        image_digest=facts.id,
        stack=facts.labels.get(names.LABEL_STACK, ""),
        image_versions=facts.labels.get(names.LABEL_VERSIONS, ""),
        limits=shown(policy),
        cell_timeout=rules.cell_timeout,
        total_timeout=rules.total_timeout,
        after_death=rules.after_death,
        tests_sha256=source.tests_sha256,
        versions={
            "python": platform.python_version(),
            "executor-ml-kernel": __version__,
            **libraries,
            **source.versions,
            "engine": str(engine.version().get("Version", "")),
        },
    )
