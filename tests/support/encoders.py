"""Small encoders of every architecture, with random weights: as folders of files, and what they compute, in float64."""

import json
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from fastattn import reference

# A token for each of these characters; those that mark things stand before them in every vocabulary.
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZé .,!?"
MARKS = {0: ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), 1: ("[CLS]", "[PAD]", "[SEP]", "[UNK]")}  # by the padding's id

# The class of tokenizers that takes tokenizer.json as it is.
TOKENIZER_CONFIG, AS_IT_IS = "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"}

TEXTS = [
    "the cat sat on the mat.",
    "a",
    "",
    "Is it so, or is it not? It is!",
    "é",
    "\N{GRINNING FACE}\N{CJK UNIFIED IDEOGRAPH-4ECA}",
    " two  blanks ",
    "word " * 30,
    "the cat sat on the mat.",
]

_SIZE = 4 + len(CHARACTERS)
_BERT = {
    "model_type": "bert",
    "vocab_size": _SIZE,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-3,  # so large that it would be missed
    "pad_token_id": 0,
}
_ROBERTA = _BERT | {"max_position_embeddings": 42, "type_vocab_size": 1, "pad_token_id": 1}
CONFIGURATIONS = {
    "bert": _BERT,
    "roberta": _ROBERTA | {"model_type": "roberta"},
    "xlm-roberta": _ROBERTA | {"model_type": "xlm-roberta"},
    "camembert": _ROBERTA | {"model_type": "camembert"},
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": _SIZE,
        "dim": 24,
        "hidden_dim": 40,
        "n_layers": 2,
        "n_heads": 3,
        "max_position_embeddings": 40,
        "activation": "gelu",
        "pad_token_id": 0,
    },
    "mpnet": {name: x for name, x in _ROBERTA.items() if name != "type_vocab_size"} | {"model_type": "mpnet"},
}


class Words(NamedTuple):
    """What a model_type calls its sizes, and the parts of a layer."""

    hidden: str
    inner: str
    layers: str
    heads: str
    activation: str
    layer: str
    # Query, key, value, output and its norm; the two maps of the feed-forward and its norm.
    parts: tuple[str, ...]


_BERT_WORDS = Words(
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "encoder.layer",
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
     "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
)  # fmt: skip
_DISTILBERT_WORDS = Words(
    "dim", "hidden_dim", "n_layers", "n_heads", "activation", "transformer.layer",
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin",
     "sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"),
)  # fmt: skip
_MPNET_WORDS = _BERT_WORDS._replace(
    parts=("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
           *_BERT_WORDS.parts[5:]),
)  # fmt: skip


def _words(config):
    return {"distilbert": _DISTILBERT_WORDS, "mpnet": _MPNET_WORDS}.get(config["model_type"], _BERT_WORDS)


_erf = np.vectorize(math.erf, otypes=[float])


def _tanh_gelu(x):
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


# By hidden_act.
ACTIVATIONS = {
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_new": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


@dataclass(frozen=True)
class Encoder:
    """A model by its definition: config.json and {name: array}."""

    config: dict
    tensors: dict

    @property
    def padding_id(self):
        return self.config["pad_token_id"]

    @property
    def counts_tokens(self):
        """Whether positions count tokens, from behind the padding's id, and not columns."""
        return self.config["model_type"] in ("roberta", "xlm-roberta", "camembert", "mpnet")

    @property
    def max_length(self):
        rows = self.config["max_position_embeddings"]
        return rows - self.padding_id - 1 if self.counts_tokens else rows

    def token_ids(self, text, max_length=None):
        """What the tokenizer should make of a text."""
        marks = MARKS[self.padding_id]
        ids = [4 + CHARACTERS.index(c) if c in CHARACTERS else marks.index("[UNK]") for c in text]
        return [marks.index("[CLS]"), *ids[: (max_length or self.max_length) - 2], marks.index("[SEP]")]

    def positions(self, ids):
        """Of all columns."""
        if not self.counts_tokens:
            return list(range(len(ids)))
        found, position = [], self.padding_id
        for token in ids:
            position += token != self.padding_id
            found.append(position if token != self.padding_id else self.padding_id)
        return found

    def run(self, ids, kept=None, types=None):
        """(last hidden states (S, H), attention weights (layers, heads, S, S)) of the `kept` columns of a sequence."""
        kept = np.ones(len(ids), bool) if kept is None else np.asarray(kept, bool)
        x = self._parameter("embeddings.word_embeddings.weight")[ids]
        x = x + self._parameter("embeddings.position_embeddings.weight")[self.positions(ids)]
        if "type_vocab_size" in self.config:
            types = np.zeros(len(ids), int) if types is None else types
            x = x + self._parameter("embeddings.token_type_embeddings.weight")[types]
        x = self._norm(x[kept], "embeddings.LayerNorm")
        weights = []
        for number in range(self.config[_words(self.config).layers]):
            x, seen = self._layer(x, number, self._bias(np.flatnonzero(kept)))
            weights.append(seen)
        return x, np.array(weights)

    def hidden_states(self, ids, kept=None, types=None):
        return self.run(ids, kept, types)[0]

    def _layer(self, x, number, bias):
        words = _words(self.config)
        query, key, value, output, norm1, inner, outer, norm2 = (f"{words.layer}.{number}.{x}" for x in words.parts)
        query, key, value = (
            self._linear(x, name).reshape(len(x), self.config[words.heads], -1).swapaxes(0, 1)
            for name in (query, key, value)
        )
        weights = reference.attention_weights(query, key, bias)
        attended = (weights @ value).swapaxes(0, 1).reshape(x.shape)
        x = self._norm(x + self._linear(attended, output), norm1)
        hidden = ACTIVATIONS[self.config[words.activation]](self._linear(x, inner))
        return self._norm(x + self._linear(hidden, outer), norm2), weights

    def _bias(self, columns):
        """What a score gets by the distance of its columns, (heads, S, S), if the model has such: 32 buckets."""
        if self.config["model_type"] != "mpnet":
            return None
        buckets = np.zeros((len(columns),) * 2, int)
        for i, j in np.ndindex(buckets.shape):
            distance = columns[j] - columns[i]
            far = abs(distance)
            by_logarithm = 8 + int(math.log(max(far, 8) / 8) / math.log(128 / 8) * 8)
            buckets[i, j] = (far if far < 8 else min(by_logarithm, 15)) + (16 if distance > 0 else 0)
        return np.moveaxis(self._parameter("encoder.relative_attention_bias.weight")[buckets], -1, 0)

    def _parameter(self, name):
        return self.tensors[name].astype(float)

    def _linear(self, x, name):
        return x @ self._parameter(f"{name}.weight").T + self._parameter(f"{name}.bias")

    def _norm(self, x, name):
        eps = self.config.get("layer_norm_eps", 1e-12)
        return reference.layer_norm(x, self._parameter(f"{name}.weight"), self._parameter(f"{name}.bias"), eps=eps)

    def save(self, folder, files=None, tensors=None):
        """Write config.json, model.safetensors, tokenizer.json and `files`, {path: what a JSON file holds}."""
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer(self.padding_id).save(str(folder / "tokenizer.json"))
        save_file(self.tensors if tensors is None else tensors, folder / "model.safetensors")
        files = {"config.json": self.config, TOKENIZER_CONFIG: {}} | (files or {})
        if isinstance(files[TOKENIZER_CONFIG], dict):
            files[TOKENIZER_CONFIG] = AS_IT_IS | files[TOKENIZER_CONFIG]
        write_json(folder, files)
        return folder


def random_encoder(model_type, seed=0, **changes):
    """An encoder whose attention and activations are neither flat nor saturated."""
    rng = np.random.default_rng(seed)
    config = CONFIGURATIONS[model_type] | changes
    words = _words(config)
    hidden, inner = config[words.hidden], config[words.inner]
    tables = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
    tensors = {
        f"embeddings.{name}_embeddings.weight": rng.normal(size=(config[rows], hidden))
        for name, rows in tables.items()
        if rows in config
    }
    tensors |= _vectors(rng, "embeddings.LayerNorm", hidden)
    shapes = [(hidden, hidden)] * 4 + [None, (inner, hidden), (hidden, inner), None]
    for number in range(config[words.layers]):
        for part, shape in zip(words.parts, shapes, strict=True):
            name = f"{words.layer}.{number}.{part}"
            tensors |= _vectors(rng, name, hidden) if shape is None else _map(rng, name, shape)
    if model_type == "mpnet":
        tensors["encoder.relative_attention_bias.weight"] = rng.normal(size=(32, config[words.heads]))
    return Encoder(config, {name: x.astype(np.float32) for name, x in tensors.items()})


def _map(rng, name, shape):
    weight = rng.normal(size=shape) * 1.5 / math.sqrt(shape[1])
    return {f"{name}.weight": weight, f"{name}.bias": rng.normal(size=shape[0]) / 3}


def _vectors(rng, name, size):
    return {f"{name}.weight": rng.normal(1, 0.2, size), f"{name}.bias": rng.normal(size=size) / 3}


def tokenizer(padding_id=0):
    """A token for each character, between [CLS] and [SEP], with one more [SEP] after the second text of a pair."""
    marks = MARKS[padding_id]
    vocabulary = {token: number for number, token in enumerate((*marks, *CHARACTERS))}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    found.add_special_tokens(list(marks))
    found.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(mark, vocabulary[mark]) for mark in ("[CLS]", "[SEP]")],
    )
    return found


def write_json(folder, files):
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


# What sentence-transformers keeps beside a model

TANH, IDENTITY = "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity"


def modules(pooling=None, *, normalize=False, dense=0, more=(), prefix="sentence_transformers.models."):
    """modules.json and the pooling's configuration as sentence-transformers writes them."""
    kinds = ["Transformer", "Pooling", *["Dense"] * dense, *more, *["Normalize"] * normalize]
    paths = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds)]
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": prefix + kind}
        for i, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    return {"modules.json": rows, "1_Pooling/config.json": {"pooling_mode": "mean"} if pooling is None else pooling}


def add_dense(folder, place, weight, bias, activation):
    rows, columns = weight.shape
    config = {"in_features": columns, "out_features": rows, "bias": bias is not None, "activation_function": activation}
    tensors = {"linear.weight": weight} | ({} if bias is None else {"linear.bias": bias})
    write_json(folder, {f"{place}_Dense/config.json": config})
    (folder / f"{place}_Dense" / "model.safetensors").write_bytes(safetensors_bytes(tensors))


# safetensors, byte by byte: for files that the library would not write

_CODES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "int32": "I32",
    "int64": "I64",
}


def safetensors_header(tensors):
    """{name: what the header says of it}."""
    header, end = {}, 0
    for name, x in tensors.items():
        start, end = end, end + x.nbytes
        header[name] = {"dtype": _CODES[x.dtype.name], "shape": list(x.shape), "data_offsets": [start, end]}
    return header


def safetensors_bytes(tensors, header=None, padding=0):
    """A file of these tensors, whatever the header says, with so many blanks behind it."""
    text = json.dumps(safetensors_header(tensors) if header is None else header).encode() + b" " * padding
    return struct.pack("<Q", len(text)) + text + b"".join(x.tobytes() for x in tensors.values())


def stored_as(tensors, name):
    dtype = ml_dtypes.bfloat16 if name == "bfloat16" else name
    return {key: x.astype(dtype) for key, x in tensors.items()}


def save_shards(encoder, folder, count=3):
    """The tensors dealt out to several files."""
    encoder.save(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(encoder.tensors)
    files = {name: f"model-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        shard = {name: encoder.tensors[name] for name in names if files[name] == file}
        (folder / file).write_bytes(safetensors_bytes(shard))
    write_json(folder, {"model.safetensors.index.json": {"metadata": {}, "weight_map": files}})
    return folder
