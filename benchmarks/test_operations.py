"""Every case of `python -m fastattn bench --full` as a pytest-benchmark, beside the plain NumPy formula.

Run some of them with ``pytest benchmarks -k "bert and fastattn"``; pytest-benchmark compares runs over time.
"""

import pytest

from fastattn.commands.measuring import accuracy
from fastattn.commands.measuring.cases import CASES
from fastattn.commands.measuring.peers import PEERS


@pytest.mark.parametrize("engine", ["fastattn", "numpy"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_operation(benchmark, case, engine):
    """The result is right, and takes this long."""
    (build,) = PEERS[engine].load().VARIANTS[case.operation].values()
    call, fetch = build(case, case.inputs())
    assert accuracy.judge(fetch(call()), accuracy.expected(case, sampled=True)).kept
    benchmark.group = f"{case.title} {case.shape} {case.dtype}"
    benchmark.extra_info.update(flops=case.flops, traffic=case.traffic)
    benchmark(call)
