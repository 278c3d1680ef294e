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
    activation: str  # one of _ACTIVATIONS, or a field of config.json that names one
    norm: str = ""  # empty: none
    norm_eps: float | None = None  # None: that of the layers
    biases: bool = True  # False: dense layer and norm may have none
    pooling: str = ""  # the field of config.json that says which rows are classified; empty: the first one


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
    row = _CLASSIFIERS.get(configuration.model_type)
    if row is None:
        raise ValueError(
            f"{path}: model_type must be one of {', '.join(_CLASSIFIERS)} for a classification head, "
            f"got {configuration.model_type!r}"
        )
    classes = configuration.classes
    if classes and not any(name.endswith("ForSequenceClassification") for name in classes):
        raise ValueError(
            f"{path}: architectures must name a ...ForSequenceClassification, whose head scores pairs, "
            f"got {', '.join(classes)}"
        )
    transform = _transform(path, raw, configuration, checkpoint, row)
    size = len(transform.dense.weight)
    name = f"{row.output}weight"
    labels = checkpoint.rows(name)
    weight, bias = _float32(checkpoint, name, (labels, size)), _float32(checkpoint, f"{row.output}bias", (labels,))
    return Classifier(_means(path, raw, row), transform, Dense(weight, bias, None))


def _transform(
    path: Path, raw: dict[str, Any], configuration: Configuration, checkpoint: Checkpoint, row: _Row
) -> Transform:
    hidden = configuration.hidden
    prefix = checkpoint.prefix(f"{row.dense}weight") + row.dense  # BERT's pooler is below "bert."
    weight = _float32(checkpoint, f"{prefix}weight", (hidden, hidden))
    dense = Dense(weight, _bias(checkpoint, f"{prefix}bias", hidden, row), _ACTIVATIONS[_activation(path, raw, row)])
    if not row.norm:
        return Transform(dense, None, None, 0)
    norm = _float32(checkpoint, f"{row.norm}weight", (hidden,))
    eps = configuration.norm_eps if row.norm_eps is None else row.norm_eps
    return Transform(dense, norm, _bias(checkpoint, f"{row.norm}bias", hidden, row), eps)


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
