"""Rotary position embedding: where a token stands, told by turning pairs of its components.

Compiled half: _core/rotary.pyx; kernel: _core/kernels/rows/rotary.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn._core import rotary as _core

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def rotary_embedding(
    x: NDArray,
    cos: NDArray,
    sin: NDArray,
    *,
    positions: ArrayLike | None = None,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> NDArray:
    """Turn pairs of components by angles that grow with the token's position.

    Parameters
    ----------
    x : ndarray, shape (..., H, S, D) or (S, D)
        Queries or keys of H heads and S tokens; float32, float64, float16 or bfloat16, any strides.
    cos, sin : ndarray, shape (P, R/2) with `positions`, (..., S, R/2) without
        Cosine and sine of the angle for each position, or each token, and each pair; both of one of these dtypes, but
        not wider than float32 unless x is. Their leading axes broadcast to x's leading axes, which the heads do not
        belong to. R, the rotary size, is at most D; components from R on stay as they are. Of tables that hold each
        number twice, as transformers makes them, pass the half: ``cos[..., :R // 2]``.
    positions : array_like of int, broadcasts to shape (..., S), optional
        Row of `cos` and `sin` for each token, at least 0 and below P.
    interleaved : bool
        A pair is ``(x[2i], x[2i + 1])``; otherwise it is ``(x[i], x[i + R/2])``.
    rotary_dim : int, optional
        R, to confirm the width of `cos` and `sin`. Tables whose every row has equal halves or equal neighbours look as
        if they held each number twice, and are refused without it.
    out : ndarray, shape of x, optional
        Where the result goes: a writable array of x's dtype; ``out=x`` works in place.
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
        A shape or value does not fit. In both cases `out` is left unchanged.

    Notes
    -----
    A pair (a, b) becomes (a cos - b sin, a sin + b cos), so that the product of a query and a key depends on the
    distance between their positions only: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding"
    (2021); ONNX's RotaryEmbedding (opset 23). Half-split pairs are those of GPT-NeoX and of Llama in transformers,
    interleaved ones those of GPT-J.

    Examples
    --------
    A token at position 1; its pairs turn by a quarter and by half a turn a position, and the fifth component stays:

    >>> import numpy as np, fastattn
    >>> angles = np.arange(4)[:, None] * np.array([np.pi / 2, np.pi])
    >>> x = np.array([[1.0, 2.0, 0.0, 0.0, 5.0]])
    >>> fastattn.rotary_embedding(x, np.cos(angles), np.sin(angles), positions=[1]).round(4) + 0.0
    array([[ 0., -2.,  1.,  0.,  5.]])
    """
    return _core.rotate(x, cos, sin, positions, interleaved, rotary_dim, out, num_threads)
