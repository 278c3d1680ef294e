"""Options that what measures has in common."""

import argparse
import re

from fastattn.commands import dtypes


def add_arguments(parser):
    """Which cases, and on how many threads."""
    parser.add_argument("--only", type=re.compile, default="", metavar="REGEX", help="only cases with a matching name")
    parser.add_argument(
        "--threads", type=_count, metavar="N", help="threads of every engine (default: the library's own choice)"
    )


def _count(text):
    """A whole number from 1 up; argparse tells the user of the ValueError."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


_count.__name__ = "thread count"  # as argparse calls it


def add_dtype(parser, default):
    """In which types."""
    help = f"only these types, of {', '.join(dtypes.NEEDS)} (default: {default})"
    parser.add_argument("--dtype", type=_types, default=(), metavar="NAME[,NAME]", help=help)


def _types(text):
    """Names of types, each once and with commas between them."""
    names = dict.fromkeys(text.split(","))
    unknown = [name for name in names if name not in dtypes.NEEDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(dtypes.NEEDS)}")
    return tuple(names)
