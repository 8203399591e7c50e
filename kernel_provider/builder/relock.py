"""Write the locks of a stack from its requirements; for maintainers, not for builds.

python3 -m kernel_provider.builder.relock current           all of them
python3 -m kernel_provider.builder.relock current nlp jax   these
"""

import os
import sys

from kernel_provider.builder.context import find_folder, read_context
from kernel_provider.builder.layers import COMMON
from kernel_provider.builder.locking import write_lock
from kernel_provider.builder.model import BuildRequest
from kernel_provider.builder.wheels import cache_folder, collect
from kernel_provider.variants import DEFAULT, ENDING


def main() -> None:
    """Write the locks of the stack and the files that the command line names."""
    stack, *chosen = sys.argv[1:]
    files = (find_folder() / "stacks" / stack).glob(f"*{ENDING}")
    others = sorted({path.stem for path in files} - {COMMON, DEFAULT})
    for name in chosen or [COMMON, DEFAULT, *others]:
        variant = DEFAULT if name == COMMON else name
        request = BuildRequest(stack=stack, variant=variant)
        context = read_context(request)
        (layer,) = [layer for layer in context.layers if layer.name == name]
        below = [
            collect(under, context.installer, request.image, cache_folder(os.environ), print)
            for under in layer.below
        ]
        count = write_lock(layer, [wheels[0].parent for wheels in below], request.image, print)
        print(f"{layer.lock}: {count} packages")  # noqa: T201  what its maintainer wants to see


if __name__ == "__main__":
    main()
