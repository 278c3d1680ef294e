"""Jina v3 by its definition, in float64: XLM-RoBERTa with a rotary embedding and an adapter for each task.

Written from Sturua et al., "jina-embeddings-v3" (2024), Su et al., "RoFormer" (2021), and Hu et al., "LoRA" (2021); the
tensors' names are those of the model's own files.
"""

import math

import numpy as np

from fastattn import reference
from support import encoders

TASKS = ["retrieval.query", "text-matching"]

CONFIGURATION = {
    "model_type": "xlm-roberta",
    "architectures": ["XLMRobertaModel"],
    "auto_map": {"AutoModel": "other--modeling_lora.XLMRobertaLoRA"},
    "vocab_size": encoders.CONFIGURATIONS["bert"]["vocab_size"],
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 160,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "position_embedding_type": "rotary",
    "rotary_emb_base": 200.0,
    "lora_adaptations": TASKS,
    "lora_rank": 3,
    "lora_alpha": 2,
}

_ADAPTED = ".parametrizations.weight."


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    hidden, inner, count, rank = 48, 80, len(TASKS), config["lora_rank"]

    def adapted(name, rows, columns, left, right, scale):
        return {
            f"{name}{_ADAPTED}original": scale * rng.normal(size=(rows, columns)),
            f"{name}{_ADAPTED}0.lora_{left}": scale * rng.normal(size=(count, rows, rank)),
            f"{name}{_ADAPTED}0.lora_{right}": rng.normal(size=(count, rank, columns)),
        }

    def linear(name, rows, columns):
        scale = 1.5 / math.sqrt(columns)
        return adapted(name, rows, columns, "B", "A", scale) | {f"{name}.bias": rng.normal(size=rows) / 3}

    def norm(name):
        return {f"{name}.weight": rng.normal(1, 0.2, hidden), f"{name}.bias": rng.normal(size=hidden) / 3}

    tensors = adapted("roberta.embeddings.word_embeddings", config["vocab_size"], hidden, "A", "B", 1)
    tensors |= adapted("roberta.embeddings.token_type_embeddings", 1, hidden, "A", "B", 1) | norm("roberta.emb_ln")
    tensors |= linear("roberta.pooler.dense", hidden, hidden)
    for number in range(config["num_hidden_layers"]):
        layer = f"roberta.encoder.layers.{number}"
        tensors |= linear(f"{layer}.mixer.Wqkv", 3 * hidden, hidden) | linear(f"{layer}.mixer.out_proj", hidden, hidden)
        tensors |= linear(f"{layer}.mlp.fc1", inner, hidden) | linear(f"{layer}.mlp.fc2", hidden, inner)
        tensors |= norm(f"{layer}.norm1") | norm(f"{layer}.norm2")
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def hidden_states(config, tensors, ids, kept, task=None):
    """Last hidden states (tokens, H) of the `kept` columns of a sequence."""

    def weight(name, left="B", right="A"):
        parts = ("original", f"0.lora_{left}", f"0.lora_{right}")
        original, left, right = (tensors[f"roberta.{name}{_ADAPTED}{part}"].astype(float) for part in parts)
        if task is None:
            return original
        number = config["lora_adaptations"].index(task)
        return original + config["lora_alpha"] / config["lora_rank"] * left[number] @ right[number]

    def linear(x, name):
        return x @ weight(name).T + tensors[f"roberta.{name}.bias"]

    def norm(x, name):
        of = (tensors[f"roberta.{name}.{kind}"].astype(float) for kind in ("weight", "bias"))
        return reference.layer_norm(x, *of, eps=config["layer_norm_eps"])

    places, heads = np.flatnonzero(kept), config["num_attention_heads"]
    words, types = (weight(f"embeddings.{name}_embeddings", "A", "B") for name in ("word", "token_type"))
    x = norm(words[ids[places]] + types[0], "emb_ln")
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layers.{number}"
        query, key, value = (
            part.reshape(len(x), heads, -1).swapaxes(0, 1) for part in np.split(linear(x, f"{layer}.mixer.Wqkv"), 3, 1)
        )
        query, key = (turned(part, places, config["rotary_emb_base"]) for part in (query, key))
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        attended = (reference.softmax(scores) @ value).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + linear(attended, f"{layer}.mixer.out_proj"), f"{layer}.norm1")
        inner = encoders.ACTIVATIONS["gelu"](linear(x, f"{layer}.mlp.fc1"))
        x = norm(x + linear(inner, f"{layer}.mlp.fc2"), f"{layer}.norm2")
    return x


def turned(x, places, base):
    """Heads (heads, tokens, size), element i and i + size/2 a pair that turns by place * base^(-2i / size)."""
    half = x.shape[-1] // 2
    angles = places[:, None] * base ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def save(config, tensors, folder, **files):
    return encoders.Encoder(config, tensors).save(folder, files)
