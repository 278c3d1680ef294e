"""What every test can ask for: a kernel target, a type, random numbers; and how hard hypothesis tries."""

import os

import hypothesis
import numpy as np
import pytest

import fastattn
from targets import on_target

# The same examples on every run; HYPOTHESIS_PROFILE=thorough looks further, at random.
hypothesis.settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=5000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=fastattn.targets())
def target(request):
    """Each instruction set that this machine can run, in turn."""
    with on_target(request.param):
        yield request.param


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(2017)
