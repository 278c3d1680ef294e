"""Arrays of embeddings from the caller, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn import _arguments

if TYPE_CHECKING:
    from numpy.typing import NDArray


def numbers(name: str, x: Any, kinds: str) -> NDArray[np.float32]:
    """An array, or lists, of numbers of these kinds (`dtype.kind`), in float32."""
    try:
        array = np.asarray(_arguments.adopted(name, x))
    except ValueError:  # rows of unlike length
        raise ValueError(f"{name} must have rows of one length, got a ragged {type(x).__name__}") from None
    if array.dtype.kind not in kinds and array.dtype.name != "bfloat16":
        what = "numbers" if "i" in kinds else "floating-point numbers"
        raise TypeError(f"{name} must hold {what}, got dtype {array.dtype}")
    return array.astype(np.float32, copy=False)


def embeddings(name: str, x: Any, kinds: str = "f") -> NDArray[np.float32]:
    """One embedding (D,) or several (N, D)."""
    array = numbers(name, x, kinds)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must have shape (N, D) or (D,), got shape {array.shape}")
    return array
