"""Thresholds that arrays of a test's size would not pass, lowered."""

import contextlib

from fastattn._core import plan as _plan
from fastattn._core import targets as _targets


def results_stored_around_the_cache():
    """Meanwhile the library does so with every row that is long enough, as otherwise with arrays of many megabytes."""
    return _assuming(_targets.assume_cache, 0)


def waves_of(parts):
    """Meanwhile so many parts of the keys are computed before they are merged, not a thousand."""
    return _assuming(_plan.assume_wave, parts)


@contextlib.contextmanager
def _assuming(assume, value):
    former = assume(value)
    try:
        yield
    finally:
        assume(former)
