"""Every architecture against transformers, on small random models as it saves them: hidden states."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from fastattn.models import SentenceEncoder
from support import encoders, jina

VOCABULARY = encoders.CONFIGURATIONS["bert"]["vocab_size"]
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,  # so that attention is not flat
    "pad_token_id": 0,
}
_TYPED = _COMMON | {"type_vocab_size": 3, "layer_norm_eps": 1e-3}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "head_dim": 16, "bos_token_id": None, "eos_token_id": None}
_NO_MARKS = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
_NTK = {"rope_parameters": {"rope_type": "linear", "factor": 1.3, "rope_theta": 500.0}}

# transformers' class -> variants of its configuration.
ARCHITECTURES = {
    "Electra": {"": _TYPED | {"embedding_size": 24}, "no projection": _TYPED | {"embedding_size": 48}},
    "Albert": {
        "": _TYPED | {"embedding_size": 24},
        "groups": _TYPED | {"embedding_size": 48, "num_hidden_groups": 2, "hidden_act": "gelu"},
    },
    "ModernBert": {
        "": _COMMON | _NO_MARKS | {"local_attention": 12},
        "biases": _COMMON
        | _NO_MARKS
        | {"local_attention": 8, "attention_bias": True, "mlp_bias": True, "norm_bias": True, "norm_eps": 1e-3},
        "layer types": _COMMON
        | _NO_MARKS
        | {"layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]},
    },
    "MPNet": {"": _COMMON | {"pad_token_id": 1, "layer_norm_eps": 1e-3, "max_position_embeddings": 170}},
    "NomicBert": {"": _TYPED, "theta": _TYPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}},
    "Gte": {"": _TYPED | {"type_vocab_size": 1}, "scaled": _TYPED | _NTK, "no types": _TYPED | {"type_vocab_size": 0}},
    "Qwen3": {"": _GROUPED, "bias": _GROUPED | {"attention_bias": True, "rope_parameters": _NTK["rope_parameters"]}},
    "EuroBert": {"": _GROUPED | {"head_dim": None}, "biases": _GROUPED | {"attention_bias": True, "mlp_bias": True}},
    "Gemma3Text": {
        "": _GROUPED | {"use_bidirectional_attention": True, "sliding_window": 11, "query_pre_attn_scalar": 24},
        "causal": _GROUPED | {"sliding_window": 10, "sliding_window_pattern": 2},
    },
}
CASES = [(name, variant) for name, variants in ARCHITECTURES.items() for variant in variants]


def random_peer(architecture, variant="", kind="Model"):
    """A model of transformers, biases and norms drawn at random as well."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture][variant])
    peer = getattr(transformers, f"{architecture}{kind}")(config).eval()
    for parameter in peer.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return peer


def saved(peer, folder, dtype="float32", **changes):
    peer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    encoders.write_json(folder, {"config.json": config, encoders.TOKENIZER_CONFIG: encoders.AS_IT_IS})
    encoders.tokenizer(0).save(str(folder / "tokenizer.json"))
    return SentenceEncoder.from_pretrained(folder, dtype)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(model, peer) of each case, made once."""
    known = {}

    def get(architecture, variant=""):
        if (architecture, variant) not in known:
            peer = random_peer(architecture, variant)
            known[architecture, variant] = saved(peer, tmp_path_factory.mktemp(architecture)), peer
        return known[architecture, variant]

    return get


def batch(rng, peer, padding):
    """Sequences of 1 to 130 tokens, padded on one side, or with holes."""
    lengths = np.array([1, 2, 7, 30, 129, 130])
    columns = np.arange(130)[::-1] if padding == "left" else np.arange(130)
    mask = columns < lengths[:, None]
    if padding == "holes":
        mask[:, 1:] &= rng.random(mask[:, 1:].shape) < 0.8
    arrays = {"input_ids": rng.integers(4, VOCABULARY, mask.shape), "attention_mask": mask.astype(np.int64)}
    if (types := getattr(peer.config, "type_vocab_size", 0)) > 0:
        arrays["token_type_ids"] = rng.integers(0, types, mask.shape)
    return arrays


@torch.no_grad()
def hidden_states(peer, arrays):
    return peer(**{name: torch.tensor(x) for name, x in arrays.items()}).last_hidden_state.numpy()


def largest_error(result, expected):
    """Of a token's hidden states, relative to their length."""
    return (np.linalg.norm(result - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_hidden_states(rng, made, architecture, variant, padding):
    model, peer = made(architecture, variant)
    arrays = batch(rng, peer, padding)
    kept = arrays["attention_mask"] == 1
    result = model(**arrays)
    assert not result[~kept].any()
    assert largest_error(result[kept], hidden_states(peer, arrays)[kept]) <= 2e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize(("architecture", "variant"), [(name, "") for name in ARCHITECTURES])
def test_other_dtypes(rng, tmp_path, architecture, variant, dtype):
    """Each architecture's shapes in each dtype; random weights are far less kind to int8 than trained ones."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture][variant])
    config.initializer_range = 0.1
    peer = getattr(transformers, f"{architecture}Model")(config).eval()
    arrays = batch(rng, peer, "right")
    kept = arrays["attention_mask"] == 1
    result, expected = saved(peer, tmp_path, dtype)(**arrays)[kept], hidden_states(peer, arrays)[kept]
    error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
    assert error <= {"float16": 5e-3, "bfloat16": 5e-2, "int8": 0.15}[dtype]


@pytest.mark.parametrize("architecture", ["ModernBert", "Qwen3", "Gemma3Text", "Albert", "NomicBert"])
def test_attention_maps(made, architecture):
    model, _ = made(architecture)
    peer = random_peer(architecture)
    peer.set_attn_implementation("eager")
    ids = model.tokenize("a map of a text that is longer than its windows are")["input_ids"]
    with torch.no_grad():
        expected = peer(input_ids=torch.tensor(ids), output_attentions=True).attentions
    for layer in range(model.num_layers):
        for head in (0, 3):
            _, weights = model.attention_map("a map of a text that is longer than its windows are", layer, head)
            np.testing.assert_allclose(weights, expected[layer][0, head], rtol=0, atol=1e-5)


# Models whose own code is not run: their tensors' names are those that transformers writes, their fields are not

_SIZES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
}


def _nomic(config):
    """As nomic-embed-text-v1.5 has them."""
    sizes = {theirs: config.pop(name) for theirs, name in _SIZES.items()}
    own = {"activation_function": "swiglu", "rotary_emb_base": 77, "rotary_emb_fraction": 1.0, "qkv_proj_bias": False}
    return {name: config[name] for name in ("model_type", "vocab_size", "type_vocab_size")} | sizes | own


def _new(config):
    """As gte-base-en-v1.5 has them: a base 2 times as large, and all pairs slower by the factor below."""
    own = {"model_type": "new", "position_embedding_type": "rope", "rope_theta": 250.0, "pack_qkv": True}
    del config["rope_parameters"]
    return config | own | {"rope_scaling": {"factor": 2.0, "type": "ntk"}, "layer_norm_type": "layer_norm"}


ARCHITECTURES["Gte"]["ntk"] = _TYPED | {
    "rope_parameters": {"rope_type": "linear", "factor": 2 ** (2 / 12), "rope_theta": 500.0}
}


@pytest.mark.parametrize(("architecture", "variant", "fields"), [("NomicBert", "theta", _nomic), ("Gte", "ntk", _new)])
def test_configurations_of_own_code(rng, tmp_path, architecture, variant, fields):
    peer = random_peer(architecture, variant)
    saved(peer, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    encoders.write_json(tmp_path, {"config.json": fields(config) | {"auto_map": {"AutoModel": "other--code.Model"}}})
    arrays = batch(rng, peer, "right")
    kept = arrays["attention_mask"] == 1
    result = SentenceEncoder.from_pretrained(tmp_path)(**arrays)[kept]
    assert largest_error(result, hidden_states(peer, arrays)[kept]) <= 2e-5


@pytest.mark.parametrize("padding", ["right", "left", "holes"])
@pytest.mark.parametrize("changes", [{}, {"feed_forward_type": "reglu"}, {"num_attention_heads": 4}], ids=str)
def test_jina_v2(rng, tmp_path, changes, padding):
    config = jina.CONFIGURATION | changes
    tensors = jina.random_tensors(config)
    model = SentenceEncoder.from_pretrained(jina.save(config, tensors, tmp_path))
    arrays = batch(rng, SimpleNamespace(config=SimpleNamespace(type_vocab_size=2)), padding)
    result, mask = model(**arrays), arrays["attention_mask"] == 1
    for ids, types, kept, found in zip(arrays["input_ids"], arrays["token_type_ids"], mask, result, strict=True):
        expected = jina.hidden_states(config, tensors, ids, kept, types)
        assert largest_error(found[kept], expected) <= 2e-5
