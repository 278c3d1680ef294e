"""Biases by distance from buckets, against transformers' buckets; and masks of models that have them."""

import os

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package)

from fastattn.models import SentenceEncoder
from fastattn.models.position_bias import Buckets
from support.encoders import random_encoder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SentenceEncoder.from_pretrained(random_encoder("mpnet").save(tmp_path_factory.mktemp("model")))


@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (32, 256), (16, 64), (64, 300), (8, 20), (4, 3)])
def test_buckets_are_those_of_transformers(count, farthest):
    torch = pytest.importorskip("torch")
    mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet").MPNetEncoder
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    distance = np.arange(-2000, 2001)
    found = Buckets("", count, farthest).of(distance)
    given = torch.tensor(distance)
    np.testing.assert_array_equal(found, mpnet.relative_position_bucket(given, count, farthest).numpy())
    np.testing.assert_array_equal(found, t5._relative_position_bucket(given, True, count, farthest).numpy())


@pytest.mark.parametrize("positions", [1, 2, 30, 129, 500])
def test_tables_hold_every_distance(rng, positions):
    buckets, biases = Buckets("", 32, 128), rng.normal(size=(32, 3)).astype(np.float16)
    table = buckets.position_bias(biases, positions)
    reach = table.shape[1] // 2
    assert (table.dtype, len(table), reach) == (np.float32, 3, min(128, positions - 1))
    for distance in range(1 - positions, positions):
        expected = biases[buckets.of(np.array(distance))]
        np.testing.assert_array_equal(table[:, reach + min(max(distance, -reach), reach)], expected)


def test_masks_without_holes_are_taken_anywhere(rng, model):
    mask = np.array([[0, 0, 1, 1, 1, 1, 0, 0, 0], [0] * 9, [1] * 9])
    ids = np.where(mask, rng.integers(4, 20, mask.shape), 1)
    result = model(ids, mask)
    assert not result[1].any()
    np.testing.assert_array_equal(result[0, 2:6], model(ids[:1, 2:6])[0])
    np.testing.assert_array_equal(result[2], model(ids[2:])[0])


def test_masks_with_holes_keep_distances(rng, model):
    """What is in a hole does not matter, but that it is there does."""
    ids, mask = rng.integers(4, 20, (3, 5)), np.ones((3, 5), int)
    mask[1] = 0, 1, 0, 1, 1
    result = model(ids, mask)
    others = np.where(mask, ids, 4)
    np.testing.assert_array_equal(model(others, mask), result)
    closed_up = model(ids[1:2, [1, 3, 4]])
    assert not np.allclose(result[1, [1, 3, 4]], closed_up[0], atol=1e-3)
    np.testing.assert_allclose(result[[0, 2]], model(ids[[0, 2]]), rtol=0, atol=1e-5)
