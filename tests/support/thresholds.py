"""Thresholds that arrays of a test's size would not pass, lowered."""

import contextlib

from fastattn._core import attention as _attention
from fastattn._core import targets as _targets


@contextlib.contextmanager
def results_stored_around_the_cache():
    """Meanwhile the library does so with every row that is long enough, as otherwise with arrays of many megabytes."""
    former = _targets.assume_cache(0)
    try:
        yield
    finally:
        _targets.assume_cache(former)


@contextlib.contextmanager
def waves_of(parts):
    """Meanwhile so many parts of the keys are computed before they are merged, not a thousand."""
    former = _attention.assume_wave(parts)
    try:
        yield
    finally:
        _attention.assume_wave(former)
