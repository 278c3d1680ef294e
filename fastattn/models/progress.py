"""A progress bar on standard error."""

from __future__ import annotations

import contextlib
import sys
import time

LONG = 2.0  # seconds before a bar is shown by default
BETWEEN = 0.1  # seconds between updates


class Progress:
    """A bar with the time elapsed and an estimate of the time left.

    `shown`: True, False, or None: only on a terminal, and after LONG seconds.
    """

    def __init__(self, total: int, shown: bool | None = None, *, unit: str = "") -> None:
        self._total, self._done, self._unit = total, 0, unit
        self._begun = time.monotonic()
        self._next = self._begun + (LONG if shown is None else 0)
        # There may be no standard error: it is closed, or this is a Windows GUI program.
        self._shown = sys.stderr is not None and (sys.stderr.isatty() if shown is None else shown)
        self._written = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._written:
            _write("\n")

    def add(self, count: int) -> None:
        """Report `count` more units as done."""
        self._done += count
        now = time.monotonic()
        if self._shown and (now >= self._next or (self._written and self._done == self._total)):
            self._next = now + BETWEEN
            self._written = True
            left = (now - self._begun) * (self._total - self._done) / self._done
            bar = "#" * (30 * self._done // self._total)
            count = f"{self._done}/{self._total}{self._unit}"
            line = f"\r[{bar:30}] {count} {_clock(now - self._begun)} gone, {_clock(left)} left"
            _write(f"{line:79}")


def _write(text: str) -> None:
    """Write to standard error; an error there must not end the work."""
    with contextlib.suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"
