"""Token ids and masks from the caller: checked, and packed without what the mask excludes."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.embeddings import token_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn.models.configuration import Configuration


class Packed(NamedTuple):
    """The tokens of sequences, one after the other."""

    ids: NDArray
    positions: NDArray
    token_types: NDArray | None
    cu_seqlens: NDArray
    kept: NDArray | None = None  # mask of the flattened (B, S) that selects these; None: all
    attended: NDArray | None = None  # how many tokens of each sequence others attend to, from the first; None: all


def checked(configuration: Configuration, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Packed:
    """Check and pack token ids (B, S); ids and token types where the mask is 0 are ignored."""
    ids = _integers("input_ids", input_ids)
    if ids.ndim != 2:
        raise ValueError(f"input_ids must have shape (B, S), got shape {ids.shape}")
    mask = None if attention_mask is None else _mask(attention_mask, ids.shape)
    types = None if token_type_ids is None else _integers("token_type_ids", token_type_ids, ids.shape)
    batch, length = ids.shape
    starts = np.arange(0, (batch + 1) * length, length) if length else np.zeros(batch + 1, np.int64)
    skipped = _skipped(configuration)
    if skipped is None:
        positions = np.empty((batch, length), np.int64)
        positions[:] = np.arange(length)
        positions = positions.reshape(-1)
    else:
        positions = token_positions(ids.reshape(-1), starts[:-1], np.full(batch, length), skipped)
    packed = Packed(ids.reshape(-1), positions, None if types is None else types.reshape(-1), starts)
    if mask is not None:
        packed = _without_padding(packed, mask)
    _check_ids("input_ids", "words", packed.ids, configuration.vocabulary)
    if length > configuration.max_length:
        _check_positions(packed.positions, configuration)
    if packed.token_types is not None:
        # A model without a table of types takes zeros, which tokenizers may return.
        _check_ids("token_type_ids", "token types", packed.token_types, max(configuration.token_types, 1))
    return packed


def _without_padding(packed: Packed, mask: NDArray) -> Packed:
    kept = mask.reshape(-1)
    types = None if packed.token_types is None else packed.token_types[kept]
    return Packed(packed.ids[kept], packed.positions[kept], types, cumulated(np.count_nonzero(mask, axis=1)), kept)


def has_holes(mask: NDArray) -> bool:
    """Whether a row of a mask (B, S) excludes columns between others."""
    begins = np.count_nonzero(mask[:, 1:] & ~mask[:, :-1], axis=1) + mask[:, :1].sum(axis=1)
    return bool((begins > 1).any())


def gathered(
    configuration: Configuration, ids: NDArray, starts: NDArray, lengths: NDArray, token_types: NDArray | None = None
) -> Packed:
    """Pack some texts, given the ids (and token types) of all, one after the other."""
    cu_seqlens = cumulated(lengths)
    places = np.arange(cu_seqlens[-1]) + np.repeat(starts - cu_seqlens[:-1], lengths)
    ids = ids[places]
    _check_ids("the ids of tokenizer.json's tokens", "words", ids, configuration.vocabulary)
    positions = token_positions(ids, cu_seqlens[:-1], lengths, _skipped(configuration))
    if token_types is not None:
        token_types = token_types[places]
        _check_ids("the tokenizer's token types", "token types", token_types, max(configuration.token_types, 1))
    return Packed(ids, positions, token_types, cu_seqlens)


def chosen(name: str, x: Any, count: int) -> int:
    """An index below `count`; negative ones count from the last."""
    try:
        i = operator.index(x)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {type(x).__name__}") from None
    if not -count <= i < count:
        raise ValueError(f"{name} must be at least {-count} and below {count}, got {i}")
    return i % count


def _skipped(configuration: Configuration) -> int | None:
    """The id whose tokens positions do not count, if the model has such a rule."""
    return configuration.padding_id if configuration.architecture.skips_padding else None


def cumulated(lengths: NDArray) -> NDArray:
    """Cumulative lengths: where sequences begin, and where the last one ends."""
    sums = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=sums[1:])
    return sums


def _integers(name: str, x: Any, shape: tuple[int, ...] | None = None, kinds: str = "iu") -> NDArray:
    try:
        array = np.asarray(x)
    except ValueError:  # rows of unlike length
        raise ValueError(f"{name} must be an array of integers, got a ragged {type(x).__name__}") from None
    if array.dtype.kind not in kinds:
        raise TypeError(f"{name} must have an integer dtype{' or bool' * ('b' in kinds)}, got dtype {array.dtype}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have input_ids' shape {shape}, got shape {array.shape}")
    return array


def _mask(x: Any, shape: tuple[int, ...]) -> NDArray | None:
    """A bool mask, True at tokens; None if there is nothing else."""
    mask = _integers("attention_mask", x, shape, "biu")
    tokens = mask if mask.dtype == bool else mask == 1
    if tokens.all():
        return None
    if mask is not tokens and mask[~tokens].any():
        raise ValueError(f"attention_mask must be 1 at tokens and 0 elsewhere, got {mask.min()} to {mask.max()}")
    return tokens


def _check_ids(name: str, what: str, ids: NDArray, size: int) -> None:
    if ids.size and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(
            f"{name} must be at least 0 and below {size}, the number of {what}, got {ids.min()} to {ids.max()}"
        )


def _check_positions(positions: NDArray, configuration: Configuration) -> None:
    if positions.size and positions.max() >= configuration.table_rows:
        raise ValueError(
            f"input_ids must have at most {configuration.max_length} tokens in a row, the number of positions, "
            f"got one at position {positions.max() + configuration.max_length - configuration.table_rows}"
        )
