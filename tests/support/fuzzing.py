"""How many examples the tests in tests/fuzz draw, and what every call that they make must keep."""

import contextlib
import re

import hypothesis
import numpy as np

# In the ordinary suite, of each test: together they take 6 s of a processor.
FEW = 20

examples = FEW  # set by `pytest --fuzz-examples N`, before the tests are imported

# What was tried, by test: {test: [calls that gave a result, calls that were refused]}.
counts = {}


def fuzzed(share=1.0):
    """Settings of a test that takes this share of the examples: the same ones in the ordinary suite, else random."""
    return hypothesis.settings(
        max_examples=max(1, int(examples * share)),
        derandomize=examples == FEW,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],  # shrinking takes minutes: a failure tells its calls by themselves
    )


def count(test, gave):
    """Record an input: whether it gave a result or was refused."""
    counts.setdefault(test, [0, 0])[0 if gave else 1] += 1


def summary():
    """The counts as lines of text."""
    rows = [
        f"{test}: {gave + refused} inputs, of which {refused} were refused" for test, (gave, refused) in counts.items()
    ]
    return "\n".join(["", "Tried:", *rows])


def outcome(function, arguments, names):
    """The result of a call with these arguments; None if it was refused, by name and with nothing written.

    An argument whose size no machine has may end in a MemoryError.
    """
    before = [(x, x.tobytes()) for x in map(_whole, _arrays(list(arguments.values())))]
    try:
        return function(**arguments)
    except MemoryError:
        pass
    except (TypeError, ValueError) as error:
        if not re.search(rf"\b({'|'.join(names)})\b", str(error)):
            raise AssertionError("an error that names no argument") from error
    assert all(x.tobytes() == former for x, former in before), "refused, and something was written"
    return None


def _arrays(x):
    """The arrays in an argument that are small enough to be copied."""
    if isinstance(x, np.ndarray):
        return [x] if x.dtype != object else []
    return [array for part in x for array in _arrays(part)] if isinstance(x, list | tuple) else []


def _whole(x):
    """The memory that an array is a view of, or as much as its own elements if those are few."""
    while isinstance(x.base, np.ndarray):
        x = x.base
    return x if x.nbytes < 1 << 24 else x[:0]


@contextlib.contextmanager
def silent():
    """Without NumPy's warnings of the oracle's overflows."""
    with np.errstate(all="ignore"):
        yield
