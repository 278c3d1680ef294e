"""Numbers and tables as text, and the progress line."""

import functools
import math
import os
import sys

NOTHING = "—"

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def _number(format):
    """Make a formatter show NaN as a dash."""

    @functools.wraps(format)
    def shown(value, *more):
        return NOTHING if math.isnan(value) else format(value, *more)

    return shown


def digits(value):
    """A positive number with three significant digits, or its whole integer part."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


@_number
def duration(seconds):
    """A time in a suitable unit: 812 ns, 12.3 µs, 4.56 ms, 1.23 s."""
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= 0.9995 * size), _UNITS[-1])
    return f"{digits(seconds / size)} {unit}"


@_number
def rate(per_second, unit):
    """A speed in billions: 212 GFLOP/s."""
    return f"{digits(per_second / 1e9)} G{unit}"


@_number
def megabytes(nbytes):
    """A size in millions of bytes: 147 MB."""
    return f"{nbytes / 1e6:.0f} MB"


@_number
def count(value):
    """A number without a unit: 1.42, or 2345."""
    return digits(value)


@_number
def ratio(value):
    """How many times faster: 1.42×."""
    return f"{digits(value)}×"


@_number
def percent(share):
    """A share of a limit: 87 %."""
    return f"{100 * share:.0f} %"


@_number
def scientific(value):
    """An error: 2.4e-07, or 0."""
    return f"{value:.1e}" if value else "0"


def text(header, rows, align, paint=lambda row, column, cell: cell):
    """A table in aligned columns.

    Parameters
    ----------
    header, rows : sequences of str
    align : str
        One letter per column, ``l`` or ``r``.
    paint : function of (row, column, cell) to str
        Colours a padded cell; the header is row None.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(row, cells):
        padded = map(_pad, cells, widths, align)
        return "  ".join(paint(row, column, cell) for column, cell in enumerate(padded)).rstrip()

    rule = "  ".join("─" * width for width in widths).rstrip()
    return "\n".join([line(None, header), rule, *(line(n, cells) for n, cells in enumerate(rows))])


#: The codes of terminal escape sequences.
_CODES = {"bold": 1, "red": 31, "green": 32, "yellow": 33}


def painted(cell, colour):
    """A cell in a colour; unchanged for "" and if it is blank."""
    return f"\x1b[{_CODES[colour]}m{cell}\x1b[0m" if colour and cell.strip() else cell


def in_colour():
    """Whether standard output is a terminal with colours, and the user has not disabled them (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def markdown(header, rows, align):
    """The same table in Markdown."""
    rules = ["---" if side == "l" else "---:" for side in align]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rules, *rows])


def _pad(cell, width, side):
    return cell.ljust(width) if side == "l" else cell.rjust(width)


class Progress:
    """A line on standard error that is rewritten during work; silent if that is not a terminal."""

    def __init__(self, total, stream=None):
        self.total = total
        self.done = 0
        self.stream = sys.stderr if stream is None else stream

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._write("")

    def step(self, doing):
        """Show the next step, and count it."""
        self.done += 1
        self._write(f"[{self.done}/{self.total}] {doing}")

    def _write(self, line):
        if self.stream is not None and self.stream.isatty():
            self.stream.write(f"\r\x1b[K{line}")
            self.stream.flush()
