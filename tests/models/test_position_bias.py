"""Biases by distance from those of buckets, against transformers' buckets."""

import os

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package)

from fastattn.models.position_bias import Buckets


@pytest.mark.parametrize(("count", "farthest"), [(32, 128), (32, 256), (16, 64), (64, 300), (8, 20), (4, 3)])
def test_buckets_are_those_of_transformers(count, farthest):
    torch = pytest.importorskip("torch")
    mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet").MPNetEncoder
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    distance = np.arange(-2000, 2001)
    found = Buckets(count, farthest).of(distance)
    given = torch.tensor(distance)
    np.testing.assert_array_equal(found, mpnet.relative_position_bucket(given, count, farthest).numpy())
    np.testing.assert_array_equal(found, t5._relative_position_bucket(given, True, count, farthest).numpy())


@pytest.mark.parametrize("positions", [1, 2, 30, 129, 500])
def test_tables_hold_every_distance(rng, positions):
    buckets, biases = Buckets(32, 128), rng.normal(size=(32, 3)).astype(np.float16)
    table = buckets.position_bias(biases, positions)
    reach = table.shape[1] // 2
    assert (table.dtype, len(table), reach) == (np.float32, 3, min(128, positions - 1))
    for distance in range(1 - positions, positions):
        expected = biases[buckets.of(np.array(distance))]
        np.testing.assert_array_equal(table[:, reach + min(max(distance, -reach), reach)], expected)
