"""Jina v2 by its definition, in float64: BERT with ALiBi in both directions and a gated feed-forward network.

Written from Press et al., "Train Short, Test Long" (2022), Shazeer, "GLU Variants" (2020), and Günther et al., "Jina
Embeddings 2" (2023).
"""

import math

import numpy as np

from fastattn import reference
from support import encoders

CONFIGURATION = encoders.CONFIGURATIONS["bert"] | {
    "hidden_size": 48,
    "num_attention_heads": 6,
    "max_position_embeddings": 160,
    "position_embedding_type": "alibi",
    "feed_forward_type": "geglu",
}


def random_tensors(config, seed=0):
    rng = np.random.default_rng(seed)
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tensors = {
        "embeddings.word_embeddings.weight": rng.normal(size=(config["vocab_size"], hidden)),
        "embeddings.token_type_embeddings.weight": rng.normal(size=(config["type_vocab_size"], hidden)),
        **_norm(rng, "embeddings.LayerNorm", hidden),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            tensors |= _map(rng, f"{layer}.attention.{name}", hidden, hidden)
        tensors |= _norm(rng, f"{layer}.attention.output.LayerNorm", hidden)
        tensors |= _map(rng, f"{layer}.mlp.gated_layers", 2 * inner, hidden)
        del tensors[f"{layer}.mlp.gated_layers.bias"]
        tensors |= _map(rng, f"{layer}.mlp.wo", hidden, inner) | _norm(rng, f"{layer}.mlp.layernorm", hidden)
    return {name: x.astype(np.float32) for name, x in tensors.items()}


def _map(rng, name, rows, columns):
    weight = rng.normal(size=(rows, columns)) * 1.5 / math.sqrt(columns)
    return {f"{name}.weight": weight, f"{name}.bias": rng.normal(size=rows) / 3}


def _norm(rng, name, size):
    return {f"{name}.weight": rng.normal(1, 0.2, size), f"{name}.bias": rng.normal(size=size) / 3}


def slopes(heads):
    """Of each head: a geometric sequence that starts where its ratio is; more heads take every other one between."""
    if math.log2(heads).is_integer():
        ratio = 2.0 ** (-8 / heads)
        return [ratio ** (i + 1) for i in range(heads)]
    power = 2 ** math.floor(math.log2(heads))
    return slopes(power) + slopes(2 * power)[::2][: heads - power]


def hidden_states(config, tensors, ids, kept, types):
    """Last hidden states (tokens, H) of the `kept` columns of a sequence."""

    def linear(x, name):
        bias = tensors.get(f"{name}.bias")
        return x @ tensors[f"{name}.weight"].astype(float).T + (0 if bias is None else bias)

    def norm(x, name):
        weight, bias = (tensors[f"{name}.{kind}"].astype(float) for kind in ("weight", "bias"))
        return reference.layer_norm(x, weight, bias, eps=config["layer_norm_eps"])

    places, heads = np.flatnonzero(kept), config["num_attention_heads"]
    bias = -np.array(slopes(heads))[:, None, None] * np.abs(places[:, None] - places)
    words, of_types = (tensors[f"embeddings.{name}_embeddings.weight"].astype(float) for name in ("word", "token_type"))
    x = norm(words[ids[places]] + of_types[types[places]], "embeddings.LayerNorm")
    activation = {"geglu": encoders.ACTIVATIONS["gelu"], "reglu": encoders.ACTIVATIONS["relu"]}
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}"
        query, key, value = (
            linear(x, f"{layer}.attention.self.{name}").reshape(len(x), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1]) + bias
        attended = (reference.softmax(scores) @ value).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + linear(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        gate, up = np.split(linear(x, f"{layer}.mlp.gated_layers"), 2, axis=1)
        gated = activation[config["feed_forward_type"]](gate) * up
        x = norm(x + linear(gated, f"{layer}.mlp.wo"), f"{layer}.mlp.layernorm")
    return x


def save(config, tensors, folder, **files):
    return encoders.Encoder(config, tensors).save(folder, files)
