"""Linear layers, with bias, activation and residual in the same pass.

Compiled half: _core/linear.pyx; kernel: _core/kernels/linear/linear.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn._core import linear as _core

if TYPE_CHECKING:
    from numpy.typing import NDArray


def linear(
    x: NDArray,
    weight: NDArray | tuple[NDArray, NDArray],
    bias: NDArray | None = None,
    *,
    activation: str | None = None,
    residual: NDArray | None = None,
    out: NDArray | None = None,
    num_threads: int | None = None,
) -> NDArray:
    """``activation(x @ weight.T + bias) + residual``.

    Parameters
    ----------
    x : ndarray, shape (..., K)
        float32, float64, float16 or bfloat16, any strides.
    weight : ndarray, shape (N, K), or (values, scales)
        A row for each output, as PyTorch stores it; of the type that x is computed in (float32, or float64 for float64)
        or a narrower one. Or a pair: int8 values (N, K) and float32 scales (N,), where row n stands for
        ``scales[n] * values[n]``; `fastattn.nn.quantize` makes one.
    bias : ndarray, shape (N,), optional
        Of a type as for `weight`.
    activation : None, "gelu", "gelu_tanh", "relu" or "silu"
        "gelu" is exact (by the error function), "gelu_tanh" its approximation by tanh.
    residual : ndarray, shape (..., N), optional
        Added last; of x's dtype.
    out : ndarray, shape (..., N), optional
        Where the result goes: a writable array of x's dtype; ``out=residual`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray, shape (..., N)
        Of x's dtype and memory order. A row's bits do not depend on what other rows there are.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not fit, or the activation is not known. In both cases `out` is left unchanged.

    Notes
    -----
    ONNX's Gemm and torch.nn.functional.linear. Sums are made in float32 (float64 for float64). bfloat16 rows and
    weights are multiplied by dot products of pairs where the machine has them. With int8 values and a machine that
    multiplies 8-bit integers (AVX512_VNNI), each row of x is quantised to 255 steps between its least and its largest
    element, 0 among them; an element is then off by at most half a step (of 2^-126 at least), a result by half a step
    times the sum of the magnitudes of its row of the weight, and a row that is not finite gives NaN. Other machines
    widen the weight and leave x as it is.

    Dot products of bfloat16 take subnormal numbers for 0. Sums below 2^-97, where that would show, are made again by
    multiply-adds; larger ones, of subnormal numbers times numbers beyond 2^29, are not.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> x = np.array([[1.0, 2.0]], np.float32)
    >>> weight = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
    >>> fastattn.linear(x, weight, np.array([0.5, 0.5], np.float32), activation="relu")
    array([[3.5, 0. ]], dtype=float32)
    """
    return _core.linear(x, weight, bias, activation, residual, out, num_threads)
