"""Options that several commands have."""

import argparse
import functools
import re
from pathlib import Path

from fastattn.commands.measuring import dtypes

#: The kinds of pictures that matplotlib writes for us.
PICTURES = (".png", ".svg", ".pdf")


def add_arguments(parser):
    """Of what measures: which cases, and on how many threads."""
    parser.add_argument("--only", type=pattern, default="", metavar="REGEX", help="only cases with a matching name")
    add_threads(parser)


def add_threads(parser):
    """On how many threads."""
    parser.add_argument(
        "--threads", type=count, metavar="N", help="threads of every engine (default: the library's own choice)"
    )


def pattern(text):
    """A regular expression; the error of `re.compile` is no ValueError, which argparse would report."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def count(text):
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def picture(name):
    """A file that a picture is written to."""
    if Path(name).suffix.lower() not in PICTURES:
        raise argparse.ArgumentTypeError(f"{name!r} does not end in {', '.join(PICTURES)}")
    return name


def add_dtype(parser, default, known=tuple(dtypes.NEEDS)):
    """Of what measures: in which types."""
    help = f"only these types, of {', '.join(known)} (default: {default})"
    parser.add_argument("--dtype", type=functools.partial(_types, known), default=(), metavar="NAME[,NAME]", help=help)


def _types(known, text):
    """Names of types, each once and with commas between them."""
    names = dict.fromkeys(text.split(","))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
    return tuple(names)
