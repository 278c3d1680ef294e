"""Backbone: packed token ids to hidden states, the part that all encoders of a folder share."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn import _arguments
from fastattn._dtypes import TYPES
from fastattn.models.embeddings import Embeddings
from fastattn.models.float16 import check_finite, check_scores
from fastattn.models.folders import naming
from fastattn.models.inputs import checked, has_holes
from fastattn.models.parameters import embedding_parameters, layer_parameters, position_biases
from fastattn.models.positions import alibi_slopes
from fastattn.nn import TransformerEncoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn.models.checkpoint import Checkpoint
    from fastattn.models.configuration import Configuration
    from fastattn.models.inputs import Packed
    from fastattn.models.positions import LayerKind
    from fastattn.models.rotary import Rotary

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

    __slots__ = ("_activations", "_biases", "_embeddings", "_encoder", "_options", "_tables", "configuration", "dtype")

    def __init__(self, configuration: Configuration, checkpoint: Checkpoint, dtype: str, pack: bool) -> None:
        """Take the tensors from the checkpoint; those of heads are left in it (`checkpoint.unread()`)."""
        self.configuration, self.dtype = configuration, dtype
        architecture, attention = configuration.architecture, configuration.attention
        self._embeddings = Embeddings(
            **embedding_parameters(checkpoint, configuration),
            eps=configuration.norm_eps,
            scale=math.sqrt(configuration.hidden) if architecture.scales_words else None,
        )
        biases = position_biases(checkpoint, configuration)
        with naming(checkpoint.folder):
            self._encoder = TransformerEncoder.from_state_dict(
                layer_parameters(checkpoint, configuration),
                num_heads=configuration.heads,
                num_kv_heads=configuration.kv_heads,
                activation=configuration.activation,
                norm=architecture.norm,
                norm_eps=configuration.norm_eps,
                norm_first=architecture.norm_first,
                first_attention_norm=not architecture.lacks_first_norm,
                bias=None,  # those that are there: the tensors were checked against the configuration
                dtype=dtype,
                pack=pack,
            )
        layers, groups = configuration.layers, self._encoder.layers
        self._encoder.layers = [groups[i * len(groups) // layers] for i in range(layers)]
        self._options: dict[str, Any] = {"is_causal": attention.is_causal, "scale": attention.scale}
        if attention.alibi:
            self._options["alibi_slopes"] = alibi_slopes(configuration.heads)
        self._biases = biases if len(biases) > 1 else []  # an own table for each layer
        if len(biases) == 1:
            self._options["position_bias"] = biases[0]
        self._tables: dict[Rotary, tuple[NDArray, NDArray]] = {}
        with naming(checkpoint.folder):
            check_scores(self._encoder, self._embeddings)
        self._activations = _arguments.storage_dtype("dtype", ACTIVATIONS[dtype])

    def __call__(self, packed: Packed, num_threads: int | None = None) -> NDArray[np.float32]:
        """The output of the last layer: (tokens, H)."""
        x = self._rows(packed, num_threads)
        longest = int(np.diff(packed.cu_seqlens).max(initial=0))
        call = {"cu_seqlens": packed.cu_seqlens, "out": x, "num_threads": num_threads}
        call |= {} if packed.attended is None else {"kv_lengths": packed.attended}
        self._encoder(x, **call, **self._options_for(longest))
        return self._checked(x)

    def padded(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """The output of the last layer for padded ids: (B, S, H), zeros where the mask is 0; the arguments checked."""
        packed = checked(self.configuration, input_ids, attention_mask, token_type_ids)
        shape, size = np.shape(input_ids), self.configuration.hidden
        if packed.kept is None:
            return self(packed, num_threads).reshape(*shape, size)
        mask = packed.kept.reshape(shape)
        padded = np.zeros((*shape, size), np.float32)
        if self.configuration.attention.by_distance and has_holes(mask):
            padded[mask] = self._in_place(packed, mask, num_threads)[mask]
        else:
            padded[mask] = self(packed, num_threads)
        return padded

    def _in_place(self, packed: Packed, mask: NDArray, num_threads: int | None) -> NDArray[np.float32]:
        """The output of the last layer at all columns (B, S, H): packed, tokens around a hole would be neighbours."""
        x = np.zeros((*mask.shape, self.configuration.hidden), self._activations)
        x[mask] = self._rows(packed, num_threads)
        call = {"attn_mask": mask[:, np.newaxis, np.newaxis, :], "out": x, "num_threads": num_threads}
        self._encoder(x, **call, **self._options_for(mask.shape[1]))
        return self._checked(x)

    def attention_weights(self, packed: Packed, layer: int, head: int) -> NDArray[np.float32]:
        """The attention weights of one sequence in one head, (S, S)."""
        x = self._rows(packed)
        options = self._options_for(len(x))
        each = options.pop("layer_options", [{}] * self.configuration.layers)
        for below, own in zip(self._encoder.layers[:layer], each, strict=False):
            x = below(x, cu_seqlens=packed.cu_seqlens, **options | own)
        chosen = self._encoder.layers[layer]
        if chosen.norm_first and chosen.norm1 is not None:
            x = chosen.norm1(x)
        found = chosen.self_attn.attention_weights(x[np.newaxis], **options | each[layer])
        weights = found[0, head].astype(np.float32)
        check_finite(self.dtype, x.astype(np.float32), weights)
        return weights

    def _options_for(self, positions: int) -> dict[str, Any]:
        """The options of the layers for sequences of up to so many tokens."""
        kinds = self.configuration.attention.kinds
        each = {kind: self._options_of(kind, positions) for kind in kinds}
        if self._biases:  # such layers are all of one kind
            own = [each[kinds[0]] | {"position_bias": table} for table in self._biases]
            return self._options | {"layer_options": own}
        if len(each) == 1:
            return self._options | each[kinds[0]]
        layers = range(self.configuration.layers)
        return self._options | {"layer_options": [each[kinds[i % len(kinds)]] for i in layers]}

    def _options_of(self, kind: LayerKind, positions: int) -> dict[str, Any]:
        options: dict[str, Any] = {} if kind.window is None else {"window": (kind.window, kind.window)}
        if kind.rotary is not None:
            cos, sin = self._tables.get(kind.rotary, ((), ()))
            if len(cos) < positions:
                # Twice as many as are needed, so that growing texts make few tables; a thread that makes one at the
                # same time makes the same.
                cos, sin = self._tables[kind.rotary] = kind.rotary.tables(2 * positions)
            options |= {"cos": cos, "sin": sin}
        return options

    def _checked(self, x: NDArray) -> NDArray[np.float32]:
        hidden = x.astype(np.float32, copy=False)
        check_finite(self.dtype, hidden)
        return hidden

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
