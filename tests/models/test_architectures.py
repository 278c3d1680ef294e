"""Every architecture against transformers, on small random models as it saves them: hidden states."""

import json
import os
from types import SimpleNamespace

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import safetensors.numpy

from fastattn.models import SentenceEncoder
from support import encoders, jina, jina3

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
_YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 3.0, "original_max_position_embeddings": 40}
_LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
_LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}

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
        "yarn": _COMMON
        | _NO_MARKS
        | {"rope_parameters": {"full_attention": _YARN, "sliding_attention": {"rope_type": "default"}}},
    },
    "JinaEmbeddingsV3": {
        "": _TYPED | {"type_vocab_size": 1, "pad_token_id": 1},
        "theta": _TYPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
    },
    "MPNet": {"": _COMMON | {"pad_token_id": 1, "layer_norm_eps": 1e-3, "max_position_embeddings": 170}},
    "NomicBert": {"": _TYPED, "theta": _TYPED | {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}},
    "Gte": {"": _TYPED | {"type_vocab_size": 1}, "scaled": _TYPED | _NTK, "no types": _TYPED | {"type_vocab_size": 0}},
    "Qwen3": {
        "": _GROUPED,
        "bias": _GROUPED | {"attention_bias": True, "rope_parameters": _NTK["rope_parameters"]},
        "yarn": _GROUPED | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}},
        "yarn, factor": _GROUPED | {"rope_parameters": _YARN | {"factor": None, "beta_fast": 4, "beta_slow": 2}},
    },
    "EuroBert": {
        "": _GROUPED | {"head_dim": None},
        "biases": _GROUPED | {"attention_bias": True, "mlp_bias": True, "rope_parameters": _LLAMA3},
    },
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


_MAPPED = ["ModernBert", "Qwen3", "Gemma3Text", "Albert", "NomicBert", "JinaEmbeddingsV3"]


@pytest.mark.parametrize("architecture", _MAPPED)
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


@pytest.mark.parametrize("task", [None, *jina3.TASKS])
def test_jina_v3_in_its_own_form(rng, tmp_path, task):
    """Hidden states of a task are those with its adapter; and embeddings, through modules of the folder's own code."""
    config = jina3.CONFIGURATION
    tensors = jina3.random_tensors(config)
    files = encoders.modules(normalize=True)
    files["modules.json"][0]["type"] = "custom_st.Transformer"
    model = SentenceEncoder.from_pretrained(jina3.save(config, tensors, tmp_path, **files), task=task)
    arrays = batch(rng, SimpleNamespace(config=None), "holes")
    result, mask = model(**arrays), arrays["attention_mask"] == 1
    for ids, kept, found in zip(arrays["input_ids"], mask, result, strict=True):
        assert largest_error(found[kept], jina3.hidden_states(config, tensors, ids, kept, task)) <= 2e-5
    ids = np.array(model.tokenize("a text")["input_ids"][0])
    mean = jina3.hidden_states(config, tensors, ids, np.ones(len(ids)), task).mean(axis=0)
    np.testing.assert_allclose(model.encode("a text"), mean / np.linalg.norm(mean), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("changes", "task", "message"), [
    ({}, "separation", "task must be one of retrieval.query, text-matching, got 'separation'"),
    ({"lora_adaptations": None}, "text-matching", "lora_adaptations must be a list of the names of tasks, got None"),
    ({"lora_adaptations": []}, None, r"lora_adaptations must be a list of the names of tasks, got \[\]"),
    ({"lora_rank": 4}, "text-matching", r"lora_A must have shape \(2, 62, 4\), got \(2, 62, 3\)"),
    ({"lora_rank": 10**18}, "text-matching", "lora_A must have shape"),
    ({"lora_alpha": None}, "text-matching", "lora_alpha must be a number above 0"),
    ({"lora_adaptations": ["a", "b", "c"]}, "c", r"lora_A must have shape \(3, 62, 3\), got \(2, 62, 3\)"),
    ({"rotary_emb_interleaved": True}, None, "rotary_emb_interleaved must be False or absent"),
    ({"num_hidden_layers": 2}, None, r"must hold no tensor roberta\.encoder\.layers\.2"),
])  # fmt: skip
def test_refused_jina_v3(tmp_path, changes, task, message):
    config = jina3.CONFIGURATION
    jina3.save(config, jina3.random_tensors(config), tmp_path, **{"config.json": config | changes})
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(tmp_path, task=task)


def test_tasks_are_names(tmp_path):
    with pytest.raises(TypeError, match="task must be a str or None, got int"):
        SentenceEncoder.from_pretrained(tmp_path, task=1)


# What is refused: every message names the file and the field or tensor

_HUGE = 10**18
REFUSED = [
    ("Electra", {"embedding_size": 23}, r"word_embeddings.weight must have shape \(62, 23\), got \(62, 24\)"),
    ("Electra", {"embedding_size": 0}, "config.json: embedding_size must be an int of at least 1, got 0"),
    ("Electra", {"hidden_size": 96}, r"embeddings_project.weight must have shape \(96, 24\)"),
    ("Albert", {"num_hidden_groups": 9}, "num_hidden_groups must be at most num_hidden_layers, 4, got 9"),
    ("Albert", {"num_hidden_groups": _HUGE, "num_hidden_layers": _HUGE}, "must hold the tensor .*layer_groups.1"),
    ("Albert", {"num_hidden_layers": _HUGE}, "num_hidden_layers must be at most 1000 where layers share tensors, got"),
    ("Albert", {"inner_group_num": 2}, "inner_group_num must be 1 or absent, got 2"),
    ("ModernBert", {"hidden_activation": "mish"}, "hidden_activation must be one of gelu, .* got 'mish'"),
    ("ModernBert", {"local_attention": 0}, "local_attention must be an int of at least 1, got 0"),
    ("ModernBert", {"layer_types": ["full_attention"]}, "layer_types must be a list of one name for each layer, got"),
    ("ModernBert", {"layer_types": ["chunked"] * 4}, "layer_types must be one of full_attention, .* got 'chunked'"),
    ("ModernBert", {"layer_types": None, "global_attn_every_n_layers": 0}, "global_attn_every_n_layers must be an int"),
    ("ModernBert", {"rope_parameters": 3}, "rope_parameters must be an object, got 3"),
    (
        "ModernBert",
        {"rope_parameters": {"full_attention": {"rope_type": "longrope"}}},
        "rope_parameters.full_attention.rope_type must be one of default, linear, .* got 'longrope'",
    ),
    (
        "ModernBert",
        {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": -1}}},
        "rope_parameters.full_attention.factor must be a number above 0 and below 1e38, got -1",
    ),
    ("ModernBert", {"attention_bias": 1}, "attention_bias must be true or false, got 1"),
    ("ModernBert", {"attention_bias": True}, r"must hold the tensor layers.0.attn.Wqkv.bias of shape \(144,\)"),
    ("ModernBert", {"intermediate_size": 81}, r"layers.0.mlp.Wi.weight must have shape \(162, 48\), got \(160, 48\)"),
    ("ModernBert", {"num_hidden_layers": _HUGE, "layer_types": None}, "must hold the tensor layers.4"),
    (
        "ModernBert",
        {"num_hidden_layers": _HUGE, "global_attn_every_n_layers": _HUGE - 1, "layer_types": None},
        "must hold the tensor layers.4",
    ),
    ("ModernBert", {"max_position_embeddings": 10**40}, "max_position_embeddings must be an int of at most 92233720"),
    ("ModernBert", {"num_hidden_layers": 3, "layer_types": None}, "must hold no tensor layers.3"),
    ("ModernBert", {"hidden_size": _HUGE}, r"tok_embeddings.weight must have shape \(62, 10{18}\)"),
    ("NomicBert", {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction must be 1.0 or absent, got 0.5"),
    ("NomicBert", {"prenorm": True}, "prenorm must be False or absent, got True"),
    ("NomicBert", {"rope_parameters": {"rope_theta": -1}}, "rotary_emb_base must be a number above 0"),
    ("NomicBert", {"num_attention_heads": 16}, "the size of a head must be even with a rotary embedding, got 3"),
    ("Gte", {"logn_attention_scale": True}, "logn_attention_scale must be False or absent"),
    ("Gte", {"position_embedding_type": "absolute"}, "position_embedding_type must be 'rope' or absent"),
    ("Gte", {"rope_parameters": None, "rope_scaling": {"type": "ntk"}}, "rope_scaling.factor must be a number above 0"),
    (
        "Gte",
        {"rope_parameters": None, "rope_scaling": {"type": "ntk", "factor": 2, "mixed_b": 0.1}},
        "rope_scaling.mixed_b must be null or absent, got 0.1",
    ),
    ("JinaEmbeddingsV3", {"position_embedding_type": "relative_key"}, "position_embedding_type must be 'absolute'"),
    ("JinaEmbeddingsV3", {"num_hidden_layers": 3}, "must hold no tensor encoder.layers.3"),
    ("Qwen3", {"rope_parameters": _YARN | {"rope_theta": 1}}, "rope_theta must be above 1 with rope_type yarn, got 1"),
    *(
        (
            "Qwen3",
            {"rope_parameters": _YARN | {name: 5e-324}},
            rf"original_max_position_embeddings / \(2 pi {which}\) must be a number above 0 and below 1e38, got {got}",
        )
        for name, which, got in (
            ("original_max_position_embeddings", "beta_fast", 0),
            ("beta_fast", "beta_fast", "inf"),
            ("beta_slow", "beta_slow", "inf"),
        )
    ),
    ("Qwen3", {"rope_parameters": _YARN | {"truncate": 1}}, "rope_parameters.truncate must be true or false, got 1"),
    ("Qwen3", {"rope_parameters": _LLAMA3 | {"low_freq_factor": 4}}, "high_freq_factor must be above low_freq_factor"),
    ("Qwen3", {"rope_parameters": _LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor must be a number above 0"),
    ("Qwen3", {"use_sliding_window": True}, "use_sliding_window must be False or absent, got True"),
    ("Qwen3", {"num_key_value_heads": 3}, "num_key_value_heads must divide num_attention_heads, 4, got 3"),
    ("Qwen3", {"head_dim": _HUGE}, r"q_proj.weight must have shape \(40{18}, 48\), got \(64, 48\)"),
    ("Qwen3", {"head_dim": 15}, "the size of a head must be even"),
    ("Qwen3", {"head_dim": 8}, r"q_proj.weight must have shape \(32, 48\), got \(64, 48\)"),
    ("Qwen3", {"layer_types": ["sliding_attention"] * 4}, "layer_types must be full_attention for every layer"),
    ("EuroBert", {"rms_norm_eps": 2}, "rms_norm_eps must be a number of at least 0 and below 1, got 2"),
    ("EuroBert", {"mlp_bias": True}, "must hold the tensor layers.0.mlp.gate_proj.bias"),
    ("Gemma3Text", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be a number above 0"),
    ("Gemma3Text", {"sliding_window": None}, "sliding_window must be an int of at least 1, got None"),
    ("Gemma3Text", {"use_bidirectional_attention": "yes"}, "use_bidirectional_attention must be true or false"),
    ("Gemma3Text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping must be None or absent"),
    ("Gemma3Text", {"layer_types": None, "sliding_window_pattern": _HUGE}, None),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    known = {}

    def get(architecture):
        if architecture not in known:
            known[architecture] = tmp_path_factory.mktemp("refused")
            saved(random_peer(architecture), known[architecture])
        return known[architecture]

    return get


@pytest.mark.parametrize(("architecture", "changes", "message"), REFUSED)
def test_refused_configurations(tmp_path, folders, architecture, changes, message):
    for path in folders(architecture).iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").unlink()
    encoders.write_json(tmp_path, {"config.json": config})
    if message is None:  # odd, but nothing is allocated for it
        SentenceEncoder.from_pretrained(tmp_path)
        return
    with pytest.raises(ValueError, match=message) as caught:
        SentenceEncoder.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("architecture", ["ModernBert", "Qwen3", "Albert", "JinaEmbeddingsV3"])
def test_missing_and_odd_tensors(tmp_path, architecture):
    peer = random_peer(architecture)
    saved(peer, tmp_path)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    for name in tensors:
        if "pooler" in name:
            continue
        others = {other: x for other, x in tensors.items() if other != name}
        safetensors.numpy.save_file(others, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=f"the tensor {name.removeprefix('model.')}"):
            SentenceEncoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(("changes", "message"), [
    ({"feed_forward_type": "original"}, "feed_forward_type must be one of geglu, reglu, got 'original'"),
    ({"max_position_embeddings": 0}, "max_position_embeddings must be an int of at least 1"),
])  # fmt: skip
def test_refused_jina_v2(tmp_path, changes, message):
    config = jina.CONFIGURATION
    jina.save(config, jina.random_tensors(config), tmp_path, **{"config.json": config | changes})
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(tmp_path)
