"""What every test can ask for: a kernel target, a type, random numbers; and how hard hypothesis tries."""

import os
import re

import hypothesis
import numpy as np
import pytest

import fastattn
from support import dtypes
from support.targets import on_target

# The same examples on every run; HYPOTHESIS_PROFILE=thorough looks further, at random.
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=fastattn.targets())
def target(request):
    """Each instruction set that this machine can run, in turn."""
    with on_target(request.param):
        yield request.param


@pytest.fixture(params=dtypes.ALL, ids=str)
def dtype(request):
    """Each type that arrays may be stored in; 32 and 64 bits alone for what is marked `wide`."""
    return request.param


def pytest_collection_modifyitems(config, items):
    """Leave out the 16-bit cases of what is marked `wide`; let a case's targets follow one another.

    A test, or a single parameter of one, may be marked. The targets of a case share its answers (see remembering.py).
    """
    left_out = [item for item in items if item.get_closest_marker("wide") and _params(item).get("dtype") in dtypes.HALF]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    out = set(left_out)
    places = {}
    for item in items:
        places.setdefault(_case(item), len(places))
    items[:] = sorted((item for item in items if item not in out), key=lambda item: places[_case(item)])


def _params(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def _case(item):
    """The name that it shares with the same case on other targets."""
    target = _params(item).get("target")
    return re.sub(rf"\b{target}\b", "", item.nodeid, count=1) if target else item.nodeid


@pytest.fixture
def one_thread():
    """By default: for tests of many small calls, where threads would mostly wait for one another."""
    fastattn.set_num_threads(1)
    yield
    fastattn.set_num_threads(None)


@pytest.fixture
def rng():
    return np.random.default_rng(2017)
