"""Rotary position embedding: encodes a token's position by rotating pairs of its components.

Compiled half: _core/rotary.pyx; kernel: _core/kernels/rows/rotary.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn._core import rotary as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from fastattn._typing import Array, Out


def rotary_embedding(
    x: Array,
    cos: Array,
    sin: Array,
    *,
    positions: ArrayLike | Array | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: Out | None = None,
    num_threads: int | None = None,
) -> Out:
    """Rotate pairs of components by angles that grow with the token's position.

    Parameters
    ----------
    x : ndarray, shape (..., H, S, D) or (S, D)
        Queries or keys of H heads and S tokens; float32, float64, float16 or bfloat16, with any strides.
    cos, sin : ndarray, shape (P, R/2) with `positions`, (..., S, R/2) without
        Cosine and sine of the angle for each position (or token) and pair; both of the same dtype, any of these, but
        float64 only if x is float64. Their leading axes broadcast to those of x (without the heads). R, the rotary
        size, is at most D; components from R on are left unchanged. If your tables hold each number twice, as those of
        transformers do, pass half of them: ``cos[..., :R // 2]``.
    positions : array_like of int, broadcastable to (..., S), optional
        Row of `cos` and `sin` for each token, at least 0 and below P.
    interleaved : bool
        A pair is ``(x[2i], x[2i + 1])``; otherwise it is ``(x[i], x[i + R/2])``.
    rotary_dim : int, optional
        R, to confirm the width of `cos` and `sin`. Without it, tables that seem to hold each number twice (in every row
        the halves or the neighbours are equal) are rejected.
    out : ndarray, shape of x, optional
        Output array: writable, of x's dtype; ``out=x`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray, shape of x
        In x's dtype and memory order.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or a value is out of range. In both cases `out` is left unchanged.

    Notes
    -----
    A pair (a, b) becomes (a cos - b sin, a sin + b cos), so that the dot product of a query and a key depends only on
    the distance between their positions: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding"
    (2021); ONNX's RotaryEmbedding (opset 23). GPT-NeoX and Llama in transformers use half-split pairs, GPT-J
    interleaved ones.

    Examples
    --------
    A token at position 1. Its pairs rotate by a quarter and a half turn per position; the fifth component is unchanged:

    >>> import numpy as np, fastattn
    >>> angles = np.arange(4)[:, None] * np.array([np.pi / 2, np.pi])
    >>> x = np.array([[1.0, 2.0, 0.0, 0.0, 5.0]])
    >>> fastattn.rotary_embedding(x, np.cos(angles), np.sin(angles), positions=[1]).round(4) + 0.0
    array([[ 0., -2.,  1.,  0.,  5.]])
    """
    return _core.rotate(x, cos, sin, positions, interleaved, rotary_dim, out, num_threads)
