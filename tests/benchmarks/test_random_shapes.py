"""The random shapes are the same for a seed, within their bounds, and calls that the library computes rightly."""

import math

import pytest

from fastattn.commands.measuring.engines import Outcome
from fastattn.commands.measuring.peers import PEERS
from laboratory.random_cases import KINDS, MOST_WORK, drawn
from support.scripts import script


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_follow_from_the_seed(kind):
    first, again, other = (drawn(kind, 20, seed, ("float32",)) for seed in (3, 3, 4))
    assert first == again != other
    assert all(case.flops <= MOST_WORK for case in first)
    assert len({case.name for case in first}) == 20
    assert len({case.shape for case in first}) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_calls_are_right(kind):
    ours = PEERS["fastattn"].load()
    for case in sorted(drawn(kind, 12, 0, ("float32",)), key=lambda case: case.traffic + case.flops)[:6]:
        for build in ours.VARIANTS[case.operation].values():
            call, fetch = build(case, case.inputs())
            verdict = case.verifier()(fetch(call()))
            assert verdict.error <= verdict.allowed, case


def test_the_table_counts_every_ratio_once():
    page = script("random_shapes")
    cases = drawn("softmax", 5, 0, ("float32",))
    times = [0.4, 0.9, 1.0, 1.2, math.nan]
    rows = [(case, Outcome(times=[1.0]), Outcome(times=[time])) for case, time in zip(cases, times, strict=True)]
    rows[-1] = (cases[-1], Outcome(times=[1.0]), Outcome(failure="out of memory"))
    text = page.render(rows)
    assert "| softmax | float32 | 4 | 0.81× | 0.40× | 1 | 0 | 1 | 1 | 1 | 0 | 0 | 0 |" in text
    assert text.index("0.40×") < text.index("0.90×") < text.index("1.00×")
    assert f"{cases[-1].name}, {cases[-1].described}, PyTorch: out of memory." in text
