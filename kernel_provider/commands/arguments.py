"""What options of commands hold, read with words that a person understands.

argparse tells the name of a function where a value is none that it reads; these tell
what to write instead.
"""

from argparse import ArgumentTypeError
from contextlib import suppress

from kernel_provider.run.text import parse_duration
from kernel_provider.values import parse_count, parse_number, parse_size


def duration(text: str) -> float:
    """Seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def size(text: str) -> int:
    """Bytes."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error


def number(text: str) -> float:
    """A number above nothing."""
    try:
        value = parse_number(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    if value <= 0:
        msg = f"{text!r}: write a number above 0"
        raise ArgumentTypeError(msg)
    return value


def at_least_one(text: str) -> int:
    """How many of something, which is not none."""
    count = 0
    with suppress(ValueError):
        count = parse_count(text)
    if count < 1:
        msg = f"{text!r}: write a whole number, 1 or more"
        raise ArgumentTypeError(msg)
    return count
