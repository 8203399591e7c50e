"""``executor-ml pool``: sandboxes parked ahead, so that a kernel opens at once."""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Final

from kernel_provider import kernelspecs
from kernel_provider.commands import arguments
from kernel_provider.commands.table import age_text, columns, size_text
from kernel_provider.engines.docker import find_socket
from kernel_provider.pool import hand
from kernel_provider.pool.hand import Parked
from kernel_provider.pool.keeper import Keeper, memory_ceiling
from kernel_provider.recipe import Recipe
from kernel_provider.run.text import duration
from kernel_provider.steps import Steps
from kernel_provider.values import show

LOOK: Final = 0.2
HEAD: Final = ("KERNEL", "CONTAINER", "MEMORY", "LIMIT", "CPU TIME", "AGE", "ENDS IN", "KEEPER")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Fill in the command's arguments."""
    parser.description = (
        "A parked sandbox is started, has its modules imported (preload) and every limit "
        "closed, and has served nobody; a launch takes it instead of starting one. 'start' "
        "parks some that stay until their time is over, 'warm' keeps parking what is taken "
        "until Ctrl-C, 'status' shows all of this user's, 'stop' ends them. A Jupyter server "
        "keeps as many of a kernel that it launched as its setting pool says."
    )
    parser.add_argument("action", choices=("start", "warm", "status", "stop"))
    parser.add_argument(
        "--kernel", metavar="NAME", help=f"the kernelspec (default: {kernelspecs.DEFAULT})"
    )
    parser.add_argument(
        "--count",
        type=arguments.at_least_one,
        metavar="N",
        help="how many (default: the kernelspec's pool, or 1)",
    )
    parser.add_argument(
        "--ttl",
        type=arguments.duration,
        metavar="TIME",
        help='for how long, as in "30m" (default: the kernelspec\'s park_ttl)',
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """Run the action; raises SandboxError with the reason where it can't be done."""
    if args.action == "status":
        return _status(as_json=args.json)
    if args.action == "stop":
        return _stop(args.kernel, as_json=args.json)
    return _fill(args)


def _status(*, as_json: bool) -> int:
    parked = hand.look(os.environ)
    print(json.dumps([asdict(one) for one in parked]) if as_json else table(parked))
    return 0


def table(parked: Sequence[Parked]) -> str:
    """Aligned columns; a dash where something is not known."""
    if not parked:
        return "nothing is parked"
    return columns([HEAD, *(_cells(one) for one in parked)])


def _cells(one: Parked) -> tuple[str, ...]:
    return (
        one.kernel,
        one.container,
        size_text(one.memory),
        show("memory", one.memory_limit),
        "-" if one.cpu_time is None else f"{one.cpu_time:.1f} s",
        age_text(one.age),
        age_text(one.ends_in),
        "-" if one.keeper is None else str(one.keeper),
    )


def _stop(kernel: str | None, *, as_json: bool) -> int:
    steps = Steps(sys.stderr if as_json else sys.stdout)
    ended = []
    for entry in hand.end(os.environ, kernel):
        ended.append(entry.container[:12])
        if not as_json:
            steps.say(f"  ended {ended[-1]} of kernel {entry.kernel}")
    if as_json:
        print(json.dumps({"ended": ended}))
    elif not ended:
        steps.say("nothing is parked")
    return 0


def _fill(args: argparse.Namespace) -> int:
    """Park what is missing; ``warm`` goes on with what is taken, until Ctrl-C."""
    spec = kernelspecs.named(args.kernel or kernelspecs.DEFAULT)
    policy = spec.launched(os.environ)
    wanted = max(1, policy.pool) if args.count is None else args.count
    policy = replace(policy, pool=wanted)
    if args.ttl is not None:
        policy = replace(policy, park_ttl=args.ttl)
    recipe = Recipe(policy=policy, address=find_socket(os.environ))
    steps = Steps(sys.stderr if args.json else sys.stdout)
    if args.action == "warm":
        return _keep(recipe, spec.name, None if args.json else steps)
    lying = hand.count(recipe, os.environ)
    for number in range(lying + 1, policy.pool + 1):
        with steps.step(f"parking {number} of {policy.pool} of kernel {spec.name}"):
            hand.park(recipe, spec.name, os.environ)
    if args.json:
        print(json.dumps([asdict(one) for one in hand.look(os.environ)]))
    else:
        total = max(lying, policy.pool)
        steps.say(f"{total} parked of kernel {spec.name}, for {duration(policy.park_ttl)}")
    return 0


def _keep(recipe: Recipe, kernel: str, steps: Steps | None) -> int:
    """Park what is missing until Ctrl-C, which ends all that this process parked.

    Tells of each change; without ``steps`` by a line of JSON.
    """
    keeper = Keeper(os.environ, ceiling=memory_ceiling(os.environ))
    keeper.want(recipe, kernel)
    lying = -1
    try:
        while True:
            before, lying = lying, hand.count(recipe, os.environ)
            wanted = recipe.policy.pool
            if lying != before and steps is not None:
                steps.say(f"{lying} of {wanted} parked of kernel {kernel}")
            elif lying != before:
                told = {"kernel": kernel, "parked": lying, "wanted": wanted}
                print(json.dumps(told), flush=True)
            time.sleep(LOOK)
    except KeyboardInterrupt:
        return 0
    finally:
        keeper.stop()
