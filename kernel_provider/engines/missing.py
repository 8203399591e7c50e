"""An image that is not on this machine: which name was meant, or what makes it.

Imported only when one is missing; a start that succeeds has no need of it.
"""

import re
from collections.abc import Sequence
from typing import Final

from kernel_provider import names
from kernel_provider.errors import ImageMissingError, ImageUnknownError, suggest

_VARIANT: Final = re.compile(r"executor-ml-([a-z0-9]+)(:latest)?")


def missing(reference: str, tags: Sequence[str]) -> ImageMissingError:
    """The error for ``reference`` where images with these names of ours are there."""
    bare = ("<none>", names.BASE_IMAGE, f"{names.COMMON_IMAGE}:")
    known = sorted(tag for tag in {*tags} if not tag.startswith(bare))
    if reference in (names.IMAGE, names.IMAGE.removesuffix(":latest")):
        return ImageMissingError(image=reference)
    near = suggest(reference, known)
    variant = _VARIANT.fullmatch(reference)
    if variant and not near:
        make = f"executor-ml build --variant {variant[1]}"
    else:
        make = f"executor-ml build --tag {reference}"
    there = f"take one of: {', '.join(known)}; or make it: {make}" if known else f"run: {make}"
    return ImageUnknownError(image=reference, suggestion=near, remedy=there)
