"""Heads, which follow the last hidden state in transformers' models: the names of their tensors, one row each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.architectures import ACTIVATIONS
from fastattn.models.pooling import Dense
from fastattn.normalization import layer_norm

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from fastattn.models.checkpoint import Checkpoint
    from fastattn.models.configuration import Configuration

# Activations of a head, by the names of transformers -> the activation of `linear`, or a function applied after it.
_ACTIVATIONS: dict[str, str | Callable[[NDArray], NDArray]] = {**ACTIVATIONS, "tanh": np.tanh}


class _Row(NamedTuple):
    """The tensors of a head: output(norm(activation(dense(x)))). Names are without "weight" and "bias"."""

    dense: str
    output: str
    activation: str  # one of _ACTIVATIONS, or a field of config.json that names one; empty: that of the layers
    norm: str = ""  # empty: none
    norm_eps: float | None = None  # None: that of the layers
    biases: bool = True  # False: dense layer and norm may have none
    pooling: str = ""  # the field of config.json that says which rows are classified; empty: the first one
    output_bias: str = ""  # the bias of the output, if it has a name of its own


_FIRST_TOKEN = _Row("classifier.dense.", "classifier.out_proj.", "tanh")

# *ForSequenceClassification.
_CLASSIFIERS = {
    "bert": _Row("pooler.dense.", "classifier.", "tanh"),
    "camembert": _FIRST_TOKEN,
    "distilbert": _Row("pre_classifier.", "classifier.", "relu"),
    "electra": _FIRST_TOKEN._replace(activation="gelu"),
    "modernbert": _Row(
        "head.dense.",
        "classifier.",
        "classifier_activation",
        norm="head.norm.",
        biases=False,
        pooling="classifier_pooling",
    ),
    "roberta": _FIRST_TOKEN,
    "xlm-roberta": _FIRST_TOKEN,
}

_ROBERTA_WORDS = _Row(
    "lm_head.dense.", "lm_head.decoder.", "gelu", norm="lm_head.layer_norm.", output_bias="lm_head.bias"
)

# *ForMaskedLM.
_VOCABULARIES = {
    "bert": _Row(
        "cls.predictions.transform.dense.",
        "cls.predictions.decoder.",
        "",
        norm="cls.predictions.transform.LayerNorm.",
        output_bias="cls.predictions.bias",
    ),
    "camembert": _ROBERTA_WORDS,
    "distilbert": _Row("vocab_transform.", "vocab_projector.", "", norm="vocab_layer_norm.", norm_eps=1e-12),
    "electra": _Row(
        "generator_predictions.dense.", "generator_lm_head.", "gelu", norm="generator_predictions.LayerNorm."
    ),
    "modernbert": _Row(
        "head.dense.",
        "decoder.",
        "classifier_activation",
        norm="head.norm.",
        biases=False,
    ),
    "roberta": _ROBERTA_WORDS,
    "xlm-roberta": _ROBERTA_WORDS,
}

# Fields of config.json that rows name, with the defaults of transformers.
_DEFAULTS = {"classifier_activation": "gelu", "classifier_pooling": "cls"}


class Transform(NamedTuple):
    """A dense layer and its normalisation, or none."""

    dense: Dense
    weight: NDArray | None
    bias: NDArray | None
    eps: float

    def __call__(self, x: NDArray) -> NDArray:
        """Rows (N, out_features)."""
        x = self.dense(x)
        return x if self.weight is None else layer_norm(x, self.weight, self.bias, eps=self.eps, out=x)


class Classifier(NamedTuple):
    """The head of a *ForSequenceClassification model."""

    means: bool  # classifies the mean of a sequence's rows instead of the first row
    transform: Transform
    output: Dense

    def __call__(self, hidden: NDArray, cu_seqlens: NDArray) -> NDArray:
        """Logits (N, labels) of N sequences packed in hidden states (tokens, H)."""
        starts = cu_seqlens[:-1]
        if self.means:
            x = np.add.reduceat(hidden, starts, axis=0) / np.diff(cu_seqlens).astype(hidden.dtype)[:, None]
        else:
            x = hidden[starts]
        return self.output(self.transform(x))

    @property
    def labels(self) -> int:
        """Number of labels."""
        return len(self.output.weight)


def read_classifier(
    path: Path, raw: dict[str, Any], configuration: Configuration, checkpoint: Checkpoint
) -> Classifier:
    """The classification head of a checkpoint; `raw` is the content of config.json, whose path is for errors."""
    row = _row(path, configuration, _CLASSIFIERS, "ForSequenceClassification")
    transform = _transform(path, raw, configuration, checkpoint, row)
    size = len(transform.dense.weight)
    name = f"{row.output}weight"
    labels = checkpoint.shape(name, 2)[0]
    weight, bias = _float32(checkpoint, name, (labels, size)), _float32(checkpoint, f"{row.output}bias", (labels,))
    return Classifier(_means(path, raw, row), transform, Dense(weight, bias, None))


class Vocabulary(NamedTuple):
    """The head of a *ForMaskedLM model: logits are transform(hidden) @ weight.T + bias."""

    transform: Transform
    weight: NDArray  # (vocabulary, columns), a view of the file
    bias: NDArray | None


def read_vocabulary(
    path: Path, raw: dict[str, Any], configuration: Configuration, checkpoint: Checkpoint
) -> Vocabulary:
    """The head of a checkpoint that gives a logit for each word; `raw` is the content of config.json."""
    row = _row(path, configuration, _VOCABULARIES, "ForMaskedLM")
    transform = _transform(path, raw, configuration, checkpoint, row)
    words = configuration.vocabulary
    name = f"{row.output}weight"
    if name not in checkpoint:  # it is that of the words
        name = f"{configuration.architecture.embeddings['words']}weight"
        name = checkpoint.prefix(name) + name
    weight = checkpoint.take(name, (words, len(transform.dense.weight)))
    bias = next((x for x in (f"{row.output}bias", row.output_bias) if x in checkpoint), None)
    if bias is None and row.biases:
        raise ValueError(f"{checkpoint.folder} must hold the tensor {row.output_bias or f'{row.output}bias'}, got none")
    return Vocabulary(transform, weight, None if bias is None else _float32(checkpoint, bias, (words,)))


def _transform(
    path: Path, raw: dict[str, Any], configuration: Configuration, checkpoint: Checkpoint, row: _Row
) -> Transform:
    prefix = checkpoint.prefix(f"{row.dense}weight") + row.dense  # BERT's pooler is below "bert."
    size = checkpoint.shape(f"{prefix}weight", 2)[0]
    weight = _float32(checkpoint, f"{prefix}weight", (size, configuration.hidden))
    activation = _ACTIVATIONS[_activation(path, raw, row)] if row.activation else configuration.activation
    dense = Dense(weight, _bias(checkpoint, f"{prefix}bias", size, row), activation)
    if not row.norm:
        return Transform(dense, None, None, 0)
    norm = _float32(checkpoint, f"{row.norm}weight", (size,))
    eps = configuration.norm_eps if row.norm_eps is None else row.norm_eps
    return Transform(dense, norm, _bias(checkpoint, f"{row.norm}bias", size, row), eps)


def _row(path: Path, configuration: Configuration, rows: dict[str, _Row], ending: str) -> _Row:
    """The row of a model_type; ValueError unless config.json names a class with that ending, or none."""
    row, classes = rows.get(configuration.model_type), configuration.classes
    if row is None:
        raise ValueError(
            f"{path}: model_type must be one of {', '.join(rows)} for the head of a ...{ending}, "
            f"got {configuration.model_type!r}"
        )
    if classes and not any(name.endswith(ending) for name in classes):
        raise ValueError(
            f"{path}: architectures must name a ...{ending}, whose head is needed, got {', '.join(classes)}"
        )
    return row


def _float32(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> NDArray:
    return checkpoint.take(name, shape).astype(np.float32)


def _bias(checkpoint: Checkpoint, name: str, size: int, row: _Row) -> NDArray | None:
    return _float32(checkpoint, name, (size,)) if row.biases or name in checkpoint else None


def _activation(path: Path, raw: dict[str, Any], row: _Row) -> str:
    if row.activation in _ACTIVATIONS:
        return row.activation
    value = raw.get(row.activation, _DEFAULTS[row.activation])
    if not isinstance(value, str) or value not in _ACTIVATIONS:
        raise ValueError(f"{path}: {row.activation} must be one of {', '.join(_ACTIVATIONS)}, got {value!r}")
    return value


def _means(path: Path, raw: dict[str, Any], row: _Row) -> bool:
    if not row.pooling:
        return False
    value = raw.get(row.pooling, _DEFAULTS[row.pooling])
    if value not in ("cls", "mean"):
        raise ValueError(f"{path}: {row.pooling} must be cls or mean, got {value!r}")
    return value == "mean"
