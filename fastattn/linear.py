"""Linear layers, with bias, activation and residual fused.

Compiled half: _core/linear.pyx; kernel: _core/kernels/linear/linear.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn._core import linear as _core

if TYPE_CHECKING:
    from fastattn._typing import Array, Out
    from fastattn.weights import PackedWeight


def linear(
    x: Array,
    weight: Array | tuple[Array, Array] | PackedWeight,
    bias: Array | None = None,
    *,
    activation: str | None = None,
    residual: Array | None = None,
    out: Out | None = None,
    num_threads: int | None = None,
) -> Out:
    """Compute ``activation(x @ weight.T + bias) + residual``.

    Parameters
    ----------
    x : ndarray, shape (..., K)
        float32, float64, float16 or bfloat16, with any strides.
    weight : ndarray, shape (N, K), or (values, scales), or PackedWeight
        One row per output, as in PyTorch; float32 (float64 if x is float64) or a narrower type. Or a pair of int8
        values (N, K) and float32 scales (N,), where row n stands for ``scales[n] * values[n]``; `fastattn.nn.quantize`
        makes one. Or a weight that `fastattn.pack` copied into the kernels' form once, with the same results.
    bias : ndarray, shape (N,), optional
        float32 (float64 if x is float64) or a narrower type; of shape (2, N) for a gated weight (see Notes).
    activation : None, "gelu", "gelu_tanh", "relu" or "silu"
        "gelu" is exact (computed by the error function), "gelu_tanh" its tanh approximation.
    residual : ndarray, shape (..., N), optional
        Added last; of x's dtype.
    out : ndarray, shape (..., N), optional
        Output array: writable, of x's dtype; ``out=residual`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray, shape (..., N)
        In x's dtype and memory order. A row's bits do not depend on the other rows.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or the activation is unknown. In both cases `out` is left unchanged.

    Notes
    -----
    ONNX's Gemm and torch.nn.functional.linear. Sums are accumulated in float32 (float64 for float64). bfloat16 rows and
    weights are multiplied by dot-product instructions where the processor has them.

    Gated weights: with ``fastattn.pack(weight, gate=gate)`` the activation applies to the gate, and the result is
    ``activation(x @ gate.T + bias[0]) * (x @ weight.T + bias[1]) + residual``, in one pass.

    Pack a weight that is used more than a few times. An array is brought to the kernels' form at every call: for few
    rows of x, blocks of the weight are transposed in registers, which makes a call with one row slower than memory
    would allow; with AMX, the whole weight is repacked. With hundreds of rows the difference is small, except on AMX.

    int8 weights: with 8-bit integer dot products (AVX512_VNNI, DotProd), each row of x is quantised to 255 steps
    between its minimum and maximum (extended to include 0). The error of an element is then at most half a step (a step
    is at least 2^-126), and that of a result half a step times the sum of magnitudes of its weight row; a row of x that
    is not finite gives NaN. Other processors convert the weight to float and leave x unquantised.

    bfloat16 dot-product instructions flush subnormal numbers to 0. Sums below 2^-97, where that could matter, are
    recomputed by multiply-adds; larger sums, of subnormal numbers times numbers beyond 2^29, are not.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> x = np.array([[1.0, 2.0]], np.float32)
    >>> weight = np.array([[1.0, 1.0], [1.0, -1.0]], np.float32)
    >>> fastattn.linear(x, weight, np.array([0.5, 0.5], np.float32), activation="relu")
    array([[3.5, 0. ]], dtype=float32)
    """
    return _core.linear(x, weight, bias, activation, residual, out, num_threads)
