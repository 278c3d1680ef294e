"""Long and awkward rows: the error of their sums does not grow with their length, whatever dominates them."""

import numpy as np
import pytest

import fastattn
from support.accuracy import assert_accurate, by_formula, by_oracle
from support.dtypes import eps
from support.problems import assert_attention_accurate
from support.telling import telling

pytestmark = [pytest.mark.usefixtures("target"), pytest.mark.wide]


@pytest.fixture(params=["softmax", "log_softmax"])
def operation(request):
    return request.param


def assert_rows_accurate(operation, x, **options):
    expected = by_oracle(operation, x.dtype, x, **options)
    result = getattr(fastattn, operation)(x, **options)
    assert_accurate(result, by_formula(operation, x, **options), expected)


def one_dominates(size, rng):
    """Half of the sum is one term, the other half all the others."""
    x = rng.normal(size=size)
    x[size // 3] = np.log(size) + 0.5
    return x


# Scores by what is awkward about them: functions of their number.
SCORES = {
    "one dominates": one_dominates,
    "two dominate": lambda size, rng: np.where(np.arange(size) % (size // 2) == 7, 12.25, rng.normal(size=size)),
    "one is nearly all": lambda size, rng: np.where(np.arange(size) == size // 3, 60, rng.normal(size=size)),
    "equal": lambda size, rng: np.full(size, 7.25),
    "+-1e4": lambda size, rng: np.where(rng.random(size) < 0.5, 1e4, -1e4),
    "1e4 apart": lambda size, rng: 1e4 * rng.normal(size=size),
    "subnormal": lambda size, rng: 1e-310 * rng.normal(size=size),
    "rising": lambda size, rng: np.linspace(0, 40, size),
    "rising slowly": lambda size, rng: np.linspace(0, 1, size),
    "rising span by span": lambda size, rng: 0.01 * (np.arange(size) // 32_768),
    "falling": lambda size, rng: np.linspace(1, 0, size),
}


def scores(kind, size, dtype):
    x = SCORES[kind](size, np.random.default_rng(size))
    return (x * 1e270 if kind == "subnormal" and dtype == np.float32 else x).astype(dtype)


@pytest.mark.parametrize("size", [1500, 5000, 70_001])
def test_many_draws(operation, rng, dtype, size):
    """Among these were errors of up to 2.3 times what is allowed, when a row's runs were added plainly."""
    for draw in range(4 if size > 5000 else 12):
        x = rng.normal(0, 3, size=(3, size)).astype(dtype)
        where = rng.random(x.shape) < 0.5 if draw % 2 else None
        with telling(draw=draw):
            assert_rows_accurate(operation, x, where=where)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("size", [5000, 100_001])
def test_softmax(operation, dtype, kind, size):
    assert_rows_accurate(operation, scores(kind, size, dtype)[None])


@pytest.mark.parametrize("dtype", [np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("kind", ["one dominates", "rising span by span", "+-1e4"])
def test_softmax_of_a_million(dtype, kind):
    assert_rows_accurate("softmax", scores(kind, 1_000_003, dtype)[None])


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize(("queries", "keys"), [(1, 40_001), (40, 2000)])
def test_attention(dtype, kind, queries, keys):
    """Few queries, as in decoding, and as many as fill tiles; they differ by their factor of the scores."""
    query = np.linspace(1, 0.5, queries)[:, None].astype(dtype)
    key = scores(kind, keys, dtype)[:, None]
    value = np.random.default_rng(1).normal(size=(keys, 16)).astype(dtype)
    assert_attention_accurate(*(x[None] for x in (query, key, value)), scale=1.0)


@pytest.mark.parametrize("dtype", [np.dtype(np.float32)], ids=str)
@pytest.mark.parametrize("kind", ["one dominates", "rising slowly"])
def test_attention_over_a_million_keys(dtype, kind):
    """Held to units of what is added, times the scores, and of the lse: so few results are no measure of a formula."""
    query, key = np.ones((1, 1, 1), dtype), scores(kind, 1_000_003, dtype)[None, :, None]
    value = np.random.default_rng(1).normal(size=(1, 1_000_003, 2)).astype(dtype)
    expected, exact = by_oracle("scaled_dot_product_attention", dtype, query, key, value, scale=1.0, return_lse=True)
    added = by_oracle("scaled_dot_product_attention", dtype, query, key, np.abs(value), scale=1.0)
    result, lse = fastattn.scaled_dot_product_attention(query, key, value, scale=1.0, return_lse=True)
    assert (np.abs(result - expected) <= eps(dtype) * (1 + key.max()) * added).all()
    assert (np.abs(lse - exact) <= 4 * np.spacing(lse)).all()
