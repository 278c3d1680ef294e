"""Options that several commands share."""

import argparse
import functools
import re
from pathlib import Path

from fastattn.commands.measuring import dtypes

#: The picture formats that we let matplotlib write.
PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser):
    """Add the options of measuring scripts: the cases and the number of threads."""
    parser.add_argument("--only", type=pattern, default="", metavar="REGEX", help="only cases with a matching name")
    add_threads(parser)


def add_threads(parser):
    """Add the option for the number of threads."""
    parser.add_argument(
        "--threads", type=count, metavar="N", help="threads of every engine (default: the library's own choice)"
    )


def pattern(text):
    """A regular expression; re.error is not a ValueError, which argparse would report."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a regular expression: {error}") from error


def count(text):
    """An int of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an int of at least 1")
    return int(text)


def picture(name):
    """The name of a picture file."""
    if Path(name).suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{name!r} does not end in {', '.join(PICTURES)}")
    return name


def add_dtype(parser, default, known=tuple(dtypes.NEEDS)):
    """Add the option for the types of the cases."""
    help = f"only these types, of {', '.join(known)} (default: {default})"
    parser.add_argument("--dtype", type=functools.partial(_types, known), default=(), metavar="NAME[,NAME]", help=help)


def _types(known, text):
    """Names of types, each once and with commas between them."""
    names = dict.fromkeys(text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(known)}")
    return tuple(names)
