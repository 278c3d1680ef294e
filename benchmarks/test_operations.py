"""Every case of `python -m fastattn bench --all` as a pytest-benchmark, in every type, for fastattn and NumPy.

Run some of them with ``pytest benchmarks -k "attention-bert and fastattn"``, one by its name in the table with
``pytest "benchmarks/test_operations.py::test_operation[attention-bert-512-fastattn]"``. pytest-benchmark
compares runs over time.
"""

import pytest

from fastattn.commands.measuring import accuracy
from fastattn.commands.measuring.cases import CASES
from fastattn.commands.measuring.peers import PEERS


@pytest.mark.parametrize("engine", ["fastattn", "numpy"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_operation(benchmark, case, engine):
    """Check the result, and time the call."""
    (build,) = PEERS[engine].load().VARIANTS[case.operation].values()
    call, fetch = build(case, case.inputs())
    verdict = accuracy.check(fetch(call()), accuracy.expected(case, sampled=True))
    assert verdict.kept if engine == "fastattn" else verdict.plausible
    benchmark.group = f"{case.title} {case.shape} {case.dtype}"
    benchmark.extra_info.update(flops=case.flops, traffic=case.traffic)
    benchmark(call)
