"""Biases by distance from buckets, against transformers' buckets; and masks of models that have them."""

import os

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

for package in ("safetensors", "tokenizers"):
    pytest.importorskip(package)

from fastattn.models import SentenceEncoder
from fastattn.models.position_bias import Buckets
from support import encoders
from support.tokenizer_folders import change_json


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return SentenceEncoder.from_pretrained(encoders.random_encoder("mpnet").save(tmp_path_factory.mktemp("model")))


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


# T5's encoder

T5 = {"vocab_size": 62, "d_model": 48, "d_kv": 16, "d_ff": 80, "num_layers": 3, "num_heads": 4, "pad_token_id": 0}
VARIANTS = {
    "relu": {},
    "gated": {"feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-3},
    "gated by silu": {"feed_forward_proj": "gated-silu", "relative_attention_max_distance": 40},
    "buckets": {"relative_attention_num_buckets": 12, "d_kv": 7},
    "mT5": {"kind": "MT5EncoderModel", "feed_forward_proj": "gated-gelu"},
    "umT5": {"kind": "UMT5EncoderModel", "feed_forward_proj": "gated-gelu"},
    "umT5 of one layer": {"kind": "UMT5EncoderModel", "num_layers": 1, "feed_forward_proj": "gated-silu"},
}


@pytest.fixture
def saved_t5(tmp_path):
    """A function that saves a random model; returns (SentenceEncoder, transformers' model)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")

    def save(kind="T5EncoderModel", dtype="float32", **changes):
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind.partition('5')[0]}5Config")
        peer = getattr(transformers, kind)(config(**T5 | changes)).eval()
        for parameter in peer.parameters():
            torch.nn.init.normal_(parameter, *((0.5, 0.3) if parameter.ndim == 1 else (0, parameter.shape[-1] ** -0.5)))
        for block in peer.encoder.block:
            if hasattr(block.layer[0].SelfAttention, "relative_attention_bias"):
                torch.nn.init.normal_(block.layer[0].SelfAttention.relative_attention_bias.weight)
        peer.save_pretrained(tmp_path)
        encoders.tokenizer().save(str(tmp_path / "tokenizer.json"))
        encoders.write_json(tmp_path, {encoders.TOKENIZER_CONFIG: encoders.AS_IT_IS})
        return SentenceEncoder.from_pretrained(tmp_path, dtype), peer

    return save


def assert_like_the_encoder(model, peer, ids, mask, allowed=2e-5):
    import torch

    with torch.no_grad():
        expected = peer.encoder(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask)).last_hidden_state
    result, expected, kept = model(ids, mask), expected.numpy(), mask == 1
    assert not result[~kept].any()
    error = np.linalg.norm(result[kept] - expected[kept], axis=-1) / np.linalg.norm(expected[kept], axis=-1)
    assert error.max() <= allowed


def padded(rng, padding):
    columns = np.arange(170)[:: -1 if padding == "left" else 1]
    mask = columns < np.array([1, 2, 7, 30, 169, 170])[:, None]
    if padding == "holes":
        mask[:, 1:] &= rng.random(mask[:, 1:].shape) < 0.8
    return rng.integers(0, 62, mask.shape), mask.astype(np.int64)


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_encoders_of_t5(rng, saved_t5, variant, padding):
    assert_like_the_encoder(*saved_t5(**VARIANTS[variant]), *padded(rng, padding))


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 5e-2), ("float16", 5e-3), ("int8", 0.15)])
def test_dtypes_of_t5(rng, saved_t5, dtype, allowed):
    assert_like_the_encoder(*saved_t5(dtype=dtype), *padded(rng, "right"), allowed)


def test_every_layer_of_umt5_has_its_biases(tmp_path, saved_t5):
    """Also in its attention maps; a layer whose biases are missing is named."""
    import torch

    model, peer = saved_t5(**VARIANTS["umT5"])
    ids = model.tokenize("a map of a text")["input_ids"]
    peer.set_attn_implementation("eager")
    with torch.no_grad():
        expected = peer(input_ids=torch.tensor(ids), output_attentions=True).attentions
    for layer in range(3):
        _, weights = model.attention_map("a map of a text", layer, 1)
        np.testing.assert_allclose(weights, expected[layer][0, 1], rtol=0, atol=1e-5)
    change_json(tmp_path / "config.json", lambda config: config.update(num_layers=10**18))
    with pytest.raises(ValueError, match=r"must hold the tensor encoder\.block\.3\..*relative_attention_bias"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_a_decoder_is_a_head(rng, saved_t5):
    model, peer = saved_t5("T5Model", is_encoder_decoder=True)
    assert_like_the_encoder(model, peer, *padded(rng, "right"))
    with pytest.raises(ValueError, match=r"a model without a head, got one with decoder\."):
        model.encode("a")


@pytest.mark.parametrize(("changes", "message"), [
    ({"relative_attention_max_distance": 1 << 40}, "relative_attention_max_distance must be at most 65536, got"),
    ({"relative_attention_max_distance": 8}, "relative_attention_max_distance must be an int of at least 9, got 8"),
    ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets must be an int of at least 4, got 2"),
    ({"relative_attention_num_buckets": 64}, r"relative_attention_bias.weight must have shape \(64, 4\), got"),
    ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj must be one of relu, got 'gated-tanh'"),
    ({"feed_forward_proj": ["gated-gelu"]}, r"feed_forward_proj must be one of relu, got \['gated-gelu'\]"),
    ({"is_decoder": True}, "is_decoder must be False or absent, got True"),
    ({"model_type": "umt5"}, "feed_forward_proj must be one of gated-gelu, gated-silu, got 'relu'"),
])  # fmt: skip
def test_configurations_of_t5_that_are_refused(tmp_path, saved_t5, changes, message):
    saved_t5()
    change_json(tmp_path / "config.json", lambda config: config.update(changes))
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(tmp_path)


def test_a_sentence_t5(tmp_path, saved_t5):
    """As sentence-transformers makes its embeddings: mean, a dense layer without bias and activation, length 1."""
    peers = pytest.importorskip("sentence_transformers")
    saved_t5()
    pooling = {"embedding_dimension": 48, "pooling_mode": "mean"}
    encoders.write_json(tmp_path, encoders.modules(pooling, dense=1, normalize=True))
    weight = np.random.default_rng(0).normal(size=(20, 48)).astype(np.float32)
    encoders.add_dense(tmp_path, 2, weight, None, encoders.IDENTITY)
    change_json(tmp_path / encoders.TOKENIZER_CONFIG, lambda config: config.update(pad_token="[PAD]"))
    expected = peers.SentenceTransformer(str(tmp_path), device="cpu").encode(encoders.TEXTS)
    np.testing.assert_allclose(SentenceEncoder.from_pretrained(tmp_path).encode(encoders.TEXTS), expected, atol=1e-5)
