"""StaticEmbedding of sentence-transformers, and Model2Vec: hidden states are rows of a table, without layers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

from fastattn.models.architectures import STATIC
from fastattn.models.checkpoint import INTEGERS, REALS
from fastattn.models.configuration import Configuration
from fastattn.models.folders import LARGEST_VOCABULARY, existing
from fastattn.models.inputs import checked
from fastattn.models.positions import Attention
from fastattn.models.tokenizer_files import TokenizerFiles, library_errors
from fastattn.models.tokens import Tokens

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fastattn.models.checkpoint import Checkpoint
    from fastattn.models.inputs import Packed
    from fastattn.models.modules import Modules

# The table's name in sentence-transformers. Model2Vec's may be int8, and have a row and a weight for each token.
_TABLE = "embedding.weight"
_MODEL2VEC, _ROWS, _WEIGHTS = "embeddings", "mapping", "weights"


class StaticBackbone:
    """A table of embeddings, in the place of a `Backbone`. It is immutable.

    Attributes
    ----------
    configuration : Configuration
        With the table's sizes, and no layers.
    dtype : str
        What the caller asked for: the table is not converted.
    """

    __slots__ = ("_rows", "_table", "_weights", "configuration", "dtype")

    def __init__(self, checkpoint: Checkpoint, dtype: str) -> None:
        name = _MODEL2VEC if _MODEL2VEC in checkpoint and _TABLE not in checkpoint else _TABLE
        shape = checkpoint.shape(name, 2)
        self._rows = self._weights = None
        if name == _TABLE:
            self._table = checkpoint.take(name, shape)
        else:
            self._table = checkpoint.take(name, shape, REALS | {"I8": "int8"})
            self._rows = _mapping(checkpoint, shape[0])
        vocabulary = shape[0] if self._rows is None else len(self._rows)
        if name != _TABLE and _WEIGHTS in checkpoint:
            self._weights = checkpoint.take(_WEIGHTS, (vocabulary,))
        if unread := checkpoint.unread():
            raise ValueError(f"{checkpoint.folder} must hold no tensor {unread[0]} beside {name}")
        self.configuration, self.dtype = _configuration(vocabulary, shape[1]), dtype

    def __call__(self, packed: Packed, num_threads: int | None = None) -> NDArray[np.float32]:
        """The embeddings of tokens: (tokens, H)."""
        del num_threads  # taken as `Backbone` takes it
        rows = packed.ids if self._rows is None else self._rows[packed.ids]
        x = self._table[rows].astype(np.float32, copy=False)
        if self._weights is not None:
            x = (x * self._weights[packed.ids, np.newaxis]).astype(np.float32, copy=False)
        return x

    def padded(
        self, input_ids: Any, attention_mask: Any, token_type_ids: Any, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """The embeddings of padded ids: (B, S, H), zeros where the mask is 0; the arguments checked."""
        packed = checked(self.configuration, input_ids, attention_mask, token_type_ids)
        found = self(packed, num_threads)
        shape = (*np.shape(input_ids), self.configuration.hidden)
        if packed.kept is None:
            return found.reshape(shape)
        padded = np.zeros(shape, np.float32)
        padded[packed.kept.reshape(shape[:2])] = found
        return padded


def _mapping(checkpoint: Checkpoint, rows: int) -> NDArray | None:
    """The row of each token, if the vocabulary is quantized: several tokens then share one."""
    if _ROWS not in checkpoint:
        return None
    found = checkpoint.take(_ROWS, checkpoint.shape(_ROWS, 1), INTEGERS)
    if found.size and not 0 <= found.min() <= found.max() < rows:
        raise ValueError(
            f"{checkpoint.folder}: the tensor {_ROWS} must hold rows from 0 to {rows - 1}, got {found.min()} to "
            f"{found.max()}"
        )
    return found


def _configuration(vocabulary: int, size: int) -> Configuration:
    return Configuration(
        architecture=STATIC,
        attention=Attention(),
        model_type="static",
        classes=(),
        tokenizer_class=STATIC.tokenizer_class,
        vocabulary=vocabulary,
        hidden=size,
        feed_forward=0,
        layers=0,
        heads=0,
        table_rows=sys.maxsize,  # a mean of any number of tokens
        token_types=0,
        activation="",
        norm_eps=0.0,
        padding_id=0,
        kv_heads=0,
        head_dim=0,
        embedding=size,
        groups=0,
    )


def static_tokens(modules: Modules, configuration: Configuration) -> Tokens:
    """The tokenizer of a folder, without special tokens."""
    return Tokens(modules, configuration, special=False, files=_tokenizer(modules.transformer))


def _tokenizer(folder: Path) -> TokenizerFiles:
    """tokenizer.json as it is: sentence-transformers reads no other file for this module."""
    path = existing(folder / "tokenizer.json", LARGEST_VOCABULARY)
    with library_errors(path):
        tokenizer = Tokenizer.from_file(str(path))
    cut = tokenizer.truncation or {}
    fields = {"truncation_side": cut.get("direction"), "model_max_length": cut.get("max_length")}
    return TokenizerFiles(tokenizer, path, path, fields, frozenset(), token_types=False)
