"""Building the image: on the host, from locked wheels, without an index in the build.

``build`` is the whole of it; what it needs stands in ``BuildRequest``, what it tells
meanwhile in ``Event``.
"""

from kernel_provider.builder.build import build
from kernel_provider.builder.model import BuildRequest, BuildResult, Event

__all__ = ["BuildRequest", "BuildResult", "Event", "build"]
