"""Which cases are run: every two values of parameters meet, and each kernel meets every value."""

import itertools
from types import SimpleNamespace

import pytest

from support.drawing import FEW, drawn

PARAMETERS = {
    "target": ["portable", "avx2", "avx512"],
    "dtype": ["float32", "float16"],
    "size": [1, 2, 3, 4, 5, 6, 7],
    "layout": ["plain", "swapped", "gaps"],
    "option": [None, {"scale": 2.0}],
}


def product(parameters):
    return [dict(zip(parameters, values, strict=True)) for values in itertools.product(*parameters.values())]


def pairs_that_meet(cases, one, other):
    return {(str(case[one]), str(case[other])) for case in cases}


def test_every_two_values_meet():
    cases = product(PARAMETERS)
    chosen = [cases[place] for place in drawn(cases)]
    assert len(chosen) < len(cases) / 4
    for one, other in itertools.combinations(PARAMETERS, 2):
        assert pairs_that_meet(chosen, one, other) == pairs_that_meet(cases, one, other)


@pytest.mark.parametrize("other", ["size", "layout", "option"])
def test_each_kernel_meets_every_value(other):
    cases = product(PARAMETERS)
    chosen = [cases[place] for place in drawn(cases)]
    met = {(case["target"], case["dtype"], str(case[other])) for case in chosen}
    assert len(met) == 3 * 2 * len(PARAMETERS[other])


def test_few_rows_and_many_are_kernels_of_their_own():
    shapes = [SimpleNamespace(queries=queries) for queries in (1, FEW, FEW + 1, 100)]
    cases = product({"target": ["avx2", "avx512"], "shape": shapes, "option": ["causal", "window", "sinks"]})
    chosen = [cases[place] for place in drawn(cases)]
    met = {(case["target"], case["shape"].queries <= FEW, case["option"]) for case in chosen}
    assert len(met) == 2 * 2 * 3


def test_holes_in_the_product_are_left_out():
    """As where a parameter of a single type is marked."""
    cases = [case for case in product(PARAMETERS) if case["size"] < 5 or case["dtype"] == "float32"]
    chosen = [cases[place] for place in drawn(cases)]
    for one, other in itertools.combinations(PARAMETERS, 2):
        assert pairs_that_meet(chosen, one, other) == pairs_that_meet(cases, one, other)


def test_two_parameters_are_not_thinned_out():
    cases = product({"target": ["avx2", "avx512"], "dtype": ["float32", "float16"], "size": [1, 2, 3]})
    assert drawn(cases) == list(range(len(cases)))
    assert drawn([{"target": "avx2"}]) == [0]


def test_the_same_are_chosen_each_time():
    cases = product(PARAMETERS)
    assert drawn(cases) == drawn(cases)
