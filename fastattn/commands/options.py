"""Options that what measures has in common."""

import re


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
