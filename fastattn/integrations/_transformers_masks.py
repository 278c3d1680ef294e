"""The masks of transformers' models in a compact form: windows, lengths and sequences instead of a matrix.

transformers describes a mask by functions of indices and a padding mask (B, keys). `attention_mask` recognises the
functions that transformers makes itself and lowers them, once for all layers, to options of
`fastattn.scaled_dot_product_attention`. Any other function becomes the real mask (B, 1, Sq, Sk) that transformers
makes for "sdpa".
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils._pytree import tree_map
from transformers import masking_utils

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from numpy.typing import NDArray

    #: For each row of a batch, the boundaries of its sequences among the queries and among the keys.
    Segments = list[tuple[NDArray, NDArray]]

# What transformers' "sdpa" leaves to the attention function: no mask means causal if the module is, from position 0.
_CAUSAL = {"window": (None, 0), "q_offset": 0}

# Operations that leave a mask as it is; models slice it to the keys that there are, `mask[:, :, :, :keys]`.
_SAME = (torch.ops.aten.alias.default, torch.ops.aten.detach.default)


class CompactMask(torch.Tensor):
    """A boolean mask (B, 1, Sq, Sk) without memory, which a model can pass on like any other.

    Attention reads `options`, and `segments` if rows hold several sequences. An operation on the mask gets the real
    one, which `build` makes.
    """

    options: dict[str, Any]
    segments: Segments | None
    build: Callable[[], torch.Tensor]
    tokens: tuple[int, int]  # Sq and Sk, as attribute cheaper than those of `shape`

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(
        cls,
        shape: tuple[int, ...],
        options: dict[str, Any],
        segments: Segments | None,
        build: Callable[[], torch.Tensor],
    ) -> CompactMask:
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool)
        self.options, self.segments, self.build = options, segments, build
        self.tokens = shape[2:]
        return self

    def __repr__(self) -> str:
        return f"CompactMask({tuple(self.shape)}, {self.options}, segments={self.segments})"

    @classmethod
    def __torch_dispatch__(cls, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in _SAME:
            return cls(args[0].shape, args[0].options, args[0].segments, args[0].build)
        args, kwargs = tree_map(lambda x: x.build() if isinstance(x, cls) else x, (args, kwargs or {}))
        return function(*args, **kwargs)


def attention_mask(
    batch_size: int,
    q_length: int = 0,
    kv_length: int = 0,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable = masking_utils.causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    device: torch.device | str = "cpu",
    cache_position: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor | None:
    """Return a `CompactMask` if there is one, else the real mask; None where "sdpa" needs none either.

    Arguments are those of transformers' ``AttentionMaskInterface``; older versions pass the positions of the queries,
    `cache_position`, instead of `q_length` and `q_offset`. The real mask is also what code that is being compiled gets,
    and devices other than the CPU.
    """
    positions: dict[str, Any] = {"q_length": q_length, "q_offset": q_offset}
    if cache_position is not None:
        positions = {"cache_position": cache_position}
        q_length, q_offset = len(cache_position), cache_position[0]
    build = partial(
        masking_utils.sdpa_mask, batch_size=batch_size, kv_length=kv_length, kv_offset=kv_offset,
        mask_function=mask_function, attention_mask=attention_mask, allow_is_causal_skip=False,
        allow_is_bidirectional_skip=False, device=device, **positions, **others,
    )  # fmt: skip
    is_plain = attention_mask is None or attention_mask.ndim == 2
    if torch.compiler.is_compiling() or torch.device(device).type != "cpu" or not is_plain:
        return build()
    try:
        limits = _limits(mask_function)
    except LookupError:
        return build()
    lowered = _lowered(limits, attention_mask, q_length, kv_length, int(q_offset) - kv_offset, kv_offset)
    if lowered is None or ("remapped" in limits and "packed" not in limits):
        return build()
    options, segments = lowered
    if (allow_is_causal_skip or allow_is_bidirectional_skip) and segments is None and options in ({}, _CAUSAL):
        return None
    return CompactMask((batch_size, 1, q_length, kv_length), options, segments, build)


# From functions to limits


def _limits(function: Callable) -> dict[str, Any]:
    """What a mask function of transformers' own excludes; LookupError if it is not one of `_FORMS`."""
    if getattr(function, "__module__", None) != masking_utils.__name__:
        raise LookupError(function)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return _FORMS[function.__qualname__.partition(".")[0]]({name: cell.cell_contents for name, cell in cells})


def _all_of(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The limits of an intersection."""
    limits: dict[str, Any] = {}
    for part in parts:
        for name, limit in part.items():
            if name in limits and name not in ("left", "right"):
                raise LookupError(name)
            limits[name] = min(limit, limits[name]) if name in limits else limit
    return limits


# By the name of a function in transformers.masking_utils, or of the one that made it: its limits, from its closure.
# A query at position p sees the keys p - left to p + right, those of its chunk, and those of its packed sequence.
_FORMS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "bidirectional_mask_function": lambda of: {},
    "causal_mask_function": lambda of: {"right": 0},
    "sliding_window_overlay": lambda of: {"left": of["sliding_window"] - 1},
    "sliding_window_bidirectional_overlay": lambda of: dict.fromkeys(("left", "right"), of["sliding_window"]),
    "chunked_overlay": lambda of: {"chunks": (of["chunk_size"], of["left_padding"])},
    "packed_sequence_mask_function": lambda of: {"packed": of["packed_sequence_mask"]},
    "remap_positions_for_packed_sequence": lambda of: {"remapped": True, **_limits(of["mask_function"])},
    "and_masks": lambda of: _all_of(map(_limits, of["mask_functions"])),
}


# From limits to options


def _lowered(
    limits: dict[str, Any], mask: torch.Tensor | None, queries: int, keys: int, first: int, kv_offset: int
) -> tuple[dict[str, Any], Segments | None] | None:
    """Options and segments for the limits and a padding mask; None if they need a real mask.

    Keys are counted from the first one that is there, `kv_offset`; the first query stands at position `first`.
    """
    left, right = limits.get("left"), limits.get("right")
    visible = keys if right is None else min(keys, first + queries + right)
    padding = None if mask is None else _padding(mask, kv_offset, keys, visible)
    cuts = _cuts(limits, kv_offset, visible)
    if cuts is not None:
        # A single query needs no more than a row of a mask.
        if queries == 1 or right != 0 or (padding is not None and not _are_runs(padding)):
            return None
        return {"window": (left, 0)}, [_boundaries(row, first, queries, keys, visible) for row in cuts]

    options: dict[str, Any] = {}
    if left is not None and left >= first + queries - 1:
        left = None  # the last query sees the first key
    if right is not None and right >= keys - 1 - first:
        right = None  # the first query sees the last key
    if left is not None or right is not None:
        options |= {"window": (left, right), "q_offset": first}
    if padding is not None:
        options |= _without_padding(padding)
    return options, None


def _padding(mask: torch.Tensor, kv_offset: int, keys: int, visible: int) -> NDArray | None:
    """The padding mask of the keys (B, keys); None if all that are visible are valid. What it lacks is padding."""
    valid = mask.numpy().astype(bool, copy=False)[:, kv_offset : kv_offset + keys]
    missing = keys - valid.shape[1]
    if valid.shape[1] >= visible and valid[:, :visible].all():
        return None
    return np.pad(valid, ((0, 0), (0, missing))) if missing else valid


def _without_padding(valid: NDArray) -> dict[str, Any]:
    """The option that excludes padding: lengths if it is on the right of every row, else a mask (B, 1, 1, keys)."""
    lengths = valid.sum(axis=1)
    if np.array_equal(valid, np.arange(valid.shape[1]) < lengths[:, None]):
        return {"kv_lengths": lengths}
    return {"attn_mask": valid[:, None, None, :]}


def _are_runs(valid: NDArray) -> bool:
    """Whether the valid keys of each row stand side by side."""
    starts = np.diff(valid.astype(np.int8), axis=1, prepend=0) == 1
    return starts.sum(axis=1).max() <= 1


def _cuts(limits: dict[str, Any], kv_offset: int, visible: int) -> list[NDArray] | None:
    """For each row, the keys at which a sequence or chunk begins; None if no query sees keys before such a one."""
    if "packed" in limits:
        return [np.flatnonzero(np.diff(row)) + 1 for row in limits["packed"].numpy()]
    if "chunks" not in limits:
        return None
    length, begins = limits["chunks"]
    begins = begins.numpy() - kv_offset  # before them there is padding
    cuts = [np.arange(begin % length, visible, length) for begin in begins]
    return cuts if any((row > max(begin, 0)).any() for row, begin in zip(cuts, begins, strict=True)) else None


def _boundaries(cuts: NDArray, first: int, queries: int, keys: int, visible: int) -> tuple[NDArray, NDArray]:
    """The boundaries of a row's sequences among queries and keys; keys that no query sees are one without queries."""
    of_keys = np.unique(np.concatenate(([0, visible, keys], cuts)))
    return np.clip(of_keys - first, 0, queries), of_keys
