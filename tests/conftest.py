"""What every test can ask for: a kernel target, a type, random numbers; and which cases are drawn."""

import os
import re
from collections import defaultdict

import hypothesis
import numpy as np
import pytest

import fastattn
from fastattn._runtime import on_target
from support import dtypes, fuzzing
from support.drawing import drawn
from support.targets import runs

# Neither tests nor examples use the network; set before these libraries are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "LANGSMITH_TRACING": "false"}

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


def pytest_addoption(parser):
    """`--every-case` for the whole product of a test's parameters, `--every N` for a part of the tests."""
    parser.addoption("--every-case", action="store_true", help="run every case of a test, not those that are drawn")
    parser.addoption("--every", type=int, default=1, metavar="N", help="run every N-th test of those that are left")
    parser.addoption("--fuzz-examples", type=int, metavar="N", help="draw N examples at random for each test in fuzz/")


def pytest_configure(config):
    """Before tests/fuzz is imported."""
    fuzzing.examples = config.getoption("fuzz_examples") or fuzzing.FEW


def pytest_terminal_summary(terminalreporter, config):
    """What a long run tried."""
    if config.getoption("fuzz_examples"):
        terminalreporter.write_line(fuzzing.summary())


def pytest_collection_modifyitems(config, items):
    """Leave out what is not drawn; let a case's targets follow one another, which share its answers (remembering.py).

    Nor is anything run in 16 bits that is marked `wide`: a test, or a single parameter of one; nor on a target that has
    the same kernels for it as another one.
    """
    out = {item for item in items if item.get_closest_marker("wide") and _params(item).get("dtype") in dtypes.HALF}
    out |= {item for item in items if not runs(_params(item).get("target"), item.nodeid)}
    if not config.getoption("every_case"):
        out |= _not_drawn([item for item in items if item not in out])
    places = {}
    for item in items:
        places.setdefault(_case(item), len(places))
    chosen = sorted((item for item in items if item not in out), key=lambda item: places[_case(item)])
    chosen = chosen[:: config.getoption("every")]
    out = set(items).difference(chosen)
    if out:
        config.hook.pytest_deselected(items=[item for item in items if item in out])
    items[:] = chosen


def _not_drawn(items):
    """Of the tests that run kernels, the cases in which no two parameters meet that do not meet elsewhere."""
    tests = defaultdict(list)
    for item in items:
        if "target" in _params(item) and not item.get_closest_marker("every_case"):
            tests[item.nodeid.partition("[")[0]].append(item)
    left = set()
    for cases in tests.values():
        left.update(cases)
        left.difference_update(cases[place] for place in drawn([_params(case) for case in cases]))
    return left


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
