"""A line on standard error that says how far long work has come."""

from __future__ import annotations

import contextlib
import sys
import time

LONG = 2.0  # seconds, before which a line is not worth the reader's attention
BETWEEN = 0.1  # seconds


class Progress:
    """The share that is done, and the time that the rest will take.

    `shown`: True or False; None: only on a terminal, and once the work has taken some seconds.
    """

    def __init__(self, total: int, shown: bool | None = None) -> None:
        self._total, self._done = total, 0
        self._begun = time.monotonic()
        self._next = self._begun + (LONG if shown is None else 0)
        # There may be no standard error at all: closed, or of a program with windows only.
        self._shown = sys.stderr is not None and (sys.stderr.isatty() if shown is None else shown)
        self._written = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._written:
            _write("\n")

    def add(self, count: int) -> None:
        """So much more is done."""
        self._done += count
        now = time.monotonic()
        if self._shown and (now >= self._next or (self._written and self._done == self._total)):
            self._next = now + BETWEEN
            self._written = True
            left = (now - self._begun) * (self._total - self._done) / self._done
            bar = "#" * (30 * self._done // self._total)
            line = f"\r[{bar:30}] {self._done}/{self._total} {_clock(now - self._begun)} gone, {_clock(left)} left"
            _write(f"{line:79}")


def _write(text: str) -> None:
    """To standard error; that it is full must not end the work."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
