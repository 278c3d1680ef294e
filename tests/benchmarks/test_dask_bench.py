"""The benchmark of a cluster, with small arrays."""

import pytest

from support.scripts import script

pytest.importorskip("dask")
pytest.importorskip("distributed")

bench = script("dask_cluster")

SMALL = {
    "causal": bench.self_attention(1, 8, 2, 64, 8, (1, 4, 16), (1, 2, 32), is_causal=True),
    "linear": bench.Case("linear", ((64, 768),), ((16, 768),), {"activation": "gelu"}),
}


def test_table():
    head, rule, *rows, empty, machine = bench.results(SMALL, rounds=1)
    assert head.count("|") == rule.count("|") == 8
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| causal", "4 heads, 16 tokens, 32 tokens"],
        ["| linear", "16 rows"],
    ]
    assert all(row.count("|") == 8 for row in rows)
    assert empty == ""
    assert "threads 2" in machine


def test_cases_say_how_they_are_cut():
    assert all(case.said for case in bench.CASES.values())
