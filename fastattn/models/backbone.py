"""Backbone: packed token ids to hidden states, the part that all encoders of a folder share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn import _arguments
from fastattn._dtypes import TYPES
from fastattn.models.embeddings import Embeddings
from fastattn.models.float16 import check_finite, check_scores
from fastattn.models.inputs import checked
from fastattn.models.parameters import embedding_parameters, layer_parameters
from fastattn.nn import TransformerEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn.models.checkpoint import Checkpoint
    from fastattn.models.configuration import Configuration
    from fastattn.models.inputs import Packed

# dtype of the weights -> dtype of the hidden states. With 8-bit weights, rounding these to 16 bits does not matter.
ACTIVATIONS = {row.name: row.activations for row in TYPES if row.activations}


class Backbone:
    """The embeddings and layers of a model, without what follows the last hidden state. It is immutable.

    Attributes
    ----------
    configuration : Configuration
    dtype : str
        Dtype of the layers' weights.
    """

    __slots__ = ("_activations", "_embeddings", "_encoder", "configuration", "dtype")

    def __init__(self, configuration: Configuration, checkpoint: Checkpoint, dtype: str, pack: bool) -> None:
        """Take the tensors from the checkpoint; those of heads are left in it (`checkpoint.unread()`)."""
        self.configuration, self.dtype = configuration, dtype
        self._embeddings = Embeddings(**embedding_parameters(checkpoint, configuration), eps=configuration.norm_eps)
        self._encoder = TransformerEncoder.from_state_dict(
            layer_parameters(checkpoint, configuration),
            num_heads=configuration.heads,
            activation=configuration.activation,
            norm_eps=configuration.norm_eps,
            dtype=dtype,
            pack=pack,
        )
        check_scores(self._encoder, self._embeddings)
        self._activations = _arguments.storage_dtype("dtype", ACTIVATIONS[dtype])

    def __call__(self, packed: Packed, num_threads: int | None = None) -> NDArray[np.float32]:
        """The output of the last layer: (tokens, H)."""
        x = self._rows(packed, num_threads)
        options = {} if packed.attended is None else {"kv_lengths": packed.attended}
        self._encoder(x, cu_seqlens=packed.cu_seqlens, out=x, num_threads=num_threads, **options)
        hidden = x.astype(np.float32, copy=False)
        check_finite(self.dtype, hidden)
        return hidden

    def padded(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """The output of the last layer for padded ids: (B, S, H), zeros where the mask is 0; the arguments checked."""
        packed = checked(self.configuration, input_ids, attention_mask, token_type_ids)
        hidden, size = self(packed, num_threads), self.configuration.hidden
        padded = hidden if packed.kept is None else np.zeros((packed.kept.size, size), np.float32)
        if packed.kept is not None:
            padded[packed.kept] = hidden
        return padded.reshape(*np.shape(input_ids), size)

    def attention_weights(self, packed: Packed, layer: int, head: int) -> NDArray[np.float32]:
        """The attention weights of one sequence in one head, (S, S)."""
        x = self._rows(packed)
        for below in self._encoder.layers[:layer]:
            x = below(x, cu_seqlens=packed.cu_seqlens)
        weights = self._encoder.layers[layer].self_attn.attention_weights(x[np.newaxis])[0, head].astype(np.float32)
        check_finite(self.dtype, x.astype(np.float32), weights)
        return weights

    def _rows(self, packed: Packed, num_threads: int | None = None) -> NDArray:
        """The input of the first layer: (tokens, H) in the dtype of the hidden states."""
        x = self._embeddings(packed.ids, packed.positions, packed.token_types, num_threads)
        with np.errstate(over="ignore"):  # float16 may overflow: the result is checked
            return x.astype(self._activations, copy=False)


def checked_dtype(dtype: Any) -> str:
    """The dtype of a model's weights; TypeError or ValueError unless it is one that can be computed here."""
    if not isinstance(dtype, str):
        raise TypeError(f"dtype must be a str, got {type(dtype).__name__}")
    if dtype not in ACTIVATIONS:
        raise ValueError(f"dtype must be one of {', '.join(ACTIVATIONS)}, got {dtype!r}")
    _arguments.storage_dtype("dtype", ACTIVATIONS[dtype])
    return dtype
