"""PyTorch in the same process, with an OpenMP library of its own or sharing one: neither harms the other.

Whichever is imported first. A wheel brings its own OpenMP library; a build of the machine's uses the system's.
"""

import importlib.util
import textwrap

import pytest

from fastattn import _runtime
from support.processes import output

pytestmark = [
    pytest.mark.torch,
    pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs PyTorch"),
    pytest.mark.skipif(not _runtime.has_openmp(), reason="a serial build"),
]

either_first = pytest.mark.parametrize("imports", ["torch, fastattn", "fastattn, torch"])

BOTH = """
    import os, sys, threading
    import {imports}
    import numpy as np

    x = np.random.default_rng(0).normal(size=(8, 4, 130, 32)).astype(np.float32)
    tensor = torch.from_numpy(x)

    def ours(threads=4):
        return fastattn.scaled_dot_product_attention(x, x, x, num_threads=threads)

    def theirs():
        return torch.nn.functional.scaled_dot_product_attention(tensor, tensor, tensor).numpy()

    expected = ours(1), theirs()
    np.testing.assert_allclose(*expected, atol=1e-5)

    def both_right():
        return np.array_equal(ours(), expected[0]) and np.array_equal(theirs(), expected[1])
"""


def said(imports, code, **environment):
    """What a script prints that begins with BOTH."""
    return output(textwrap.dedent(BOTH.format(imports=imports)) + textwrap.dedent(code), **environment)


def threads_of(library, **environment):
    """The threads that a library takes where it is alone."""
    return output(f"import {library}; print({library}.get_num_threads())", **environment)


@either_first
@pytest.mark.parametrize("environment", [{}, {"OMP_PROC_BIND": "true"}, {"OMP_NUM_THREADS": "1"}], ids=str)
def test_both_take_the_threads_that_they_take_alone(imports, environment):
    code = "print(fastattn.get_num_threads(), torch.get_num_threads())"
    alone = [threads_of(library, **environment) for library in ("fastattn", "torch")]
    assert said(imports, code, **environment).split() == alone


@either_first
def test_calls_of_both_at_once(imports):
    code = """
    wrong = []
    def work():
        for _ in range(30):
            if not both_right():
                wrong.append(threading.get_ident())
    callers = [threading.Thread(target=work) for _ in range(4)]
    for caller in callers: caller.start()
    for caller in callers: caller.join()
    print(wrong, both_right())
    """
    assert said(imports, code) == "[] True"


@either_first
def test_a_child_computes_after_both_had_threads(imports):
    """PyTorch by itself would wait forever there for threads that the child does not have; nothing is asked of it."""
    code = """
    assert both_right()
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(ours(), expected[0]) else 1)
    print(os.waitpid(child, 0)[1], both_right())
    """
    assert said(imports, code) == "0 True"


@either_first
def test_threadpoolctl_limits_both(imports):
    pytest.importorskip("threadpoolctl")
    code = """
    import threadpoolctl
    with threadpoolctl.threadpool_limits(1, user_api="openmp"):
        print(fastattn.get_num_threads(), torch.get_num_threads(), both_right())
    """
    assert said(imports, code) == "1 1 True"
