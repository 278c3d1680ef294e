"""Layer and RMS normalisation over the last axis, optionally of the sum with a residual.

Compiled half: _core/normalization.pyx; kernel: _core/kernels/rows/normalization.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn._core import normalization as _core

if TYPE_CHECKING:
    from fastattn._typing import Array, Out


def layer_norm(
    x: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    out: Out | None = None,
    num_threads: int | None = None,
) -> Out:
    """Shift and scale each row to mean 0 and variance 1, then apply weight and bias.

    Parameters
    ----------
    x : ndarray, shape (..., D)
        float32, float64, float16 or bfloat16, with any strides.
    weight, bias : ndarray, shape (D,), optional
        Any of these dtypes; float64 only if x is float64.
    eps : float
        Added to the variance.
    out : ndarray, shape (..., D), optional
        Output array: writable, of x's dtype; ``out=x`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray, shape (..., D)
        In x's dtype and memory order.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or a value is out of range. In both cases `out` is left unchanged.

    Notes
    -----
    ``(x - mean) / sqrt(var + eps) * weight + bias`` with the biased variance: Ba, Kiros and Hinton, "Layer
    Normalization" (2016); ONNX's LayerNormalization, torch.nn.functional.layer_norm.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> fastattn.layer_norm(np.array([1.0, 2.0, 3.0]), eps=0.0).round(4)
    array([-1.2247,  0.    ,  1.2247])
    """
    return _core.normalize(x, weight, bias, eps, out, num_threads, True)


def rms_norm(
    x: Array,
    weight: Array | None = None,
    *,
    eps: float = 1e-6,
    out: Out | None = None,
    num_threads: int | None = None,
) -> Out:
    """Scale each row to a mean square of 1, then apply the weight.

    Parameters
    ----------
    x : ndarray, shape (..., D)
        float32, float64, float16 or bfloat16, with any strides.
    weight : ndarray, shape (D,), optional
        Any of these dtypes; float64 only if x is float64.
    eps : float
        Added to the mean square.
    out : ndarray, shape (..., D), optional
        Output array: writable, of x's dtype; ``out=x`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray, shape (..., D)
        In x's dtype and memory order.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or a value is out of range. In both cases `out` is left unchanged.

    Notes
    -----
    ``x / sqrt(mean(x**2) + eps) * weight``: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019); ONNX's
    RMSNormalization, torch.nn.functional.rms_norm.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> fastattn.rms_norm(np.array([3.0, 4.0]), eps=0.0).round(4)
    array([0.8485, 1.1314])
    """
    return _core.normalize(x, weight, None, eps, out, num_threads, False)


def add_layer_norm(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    *,
    eps: float = 1e-5,
    out: tuple[Out | None, Out | None] | None = None,
    num_threads: int | None = None,
) -> tuple[Out, Out]:
    """Compute ``x + residual`` and `layer_norm` of that sum in one pass.

    Parameters
    ----------
    x : ndarray, shape (..., D)
        float32, float64, float16 or bfloat16, with any strides.
    residual : ndarray, shape (..., D)
        Of x's shape and dtype.
    weight, bias : ndarray, shape (D,), optional
        Any of these dtypes; float64 only if x is float64.
    eps : float
        Added to the variance.
    out : pair of ndarray, each of shape (..., D), optional
        Output arrays for `y` and `total`; either may be None. ``out=(None, residual)`` updates the residual in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    y : ndarray, shape (..., D)
        The normalised sum.
    total : ndarray, shape (..., D)
        ``x + residual``. 16-bit types round it; `y` is computed from the unrounded sum.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or a value is out of range. In both cases `out` is left unchanged.

    Notes
    -----
    ONNX Runtime's SkipLayerNormalization: the residual step of a post-norm layer, or that of a pre-norm layer together
    with the next normalisation.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> y, total = fastattn.add_layer_norm(np.array([1.0, 2.0]), np.array([0.0, 1.0]), eps=0.0)
    >>> y, total
    (array([-1.,  1.]), array([1., 3.]))
    """
    return _core.add_normalize(x, residual, weight, bias, eps, out, num_threads, True)


def add_rms_norm(
    x: Array,
    residual: Array,
    weight: Array | None = None,
    *,
    eps: float = 1e-6,
    out: tuple[Out | None, Out | None] | None = None,
    num_threads: int | None = None,
) -> tuple[Out, Out]:
    """Compute ``x + residual`` and `rms_norm` of that sum in one pass.

    Parameters
    ----------
    x : ndarray, shape (..., D)
        float32, float64, float16 or bfloat16, with any strides.
    residual : ndarray, shape (..., D)
        Of x's shape and dtype.
    weight : ndarray, shape (D,), optional
        Any of these dtypes; float64 only if x is float64.
    eps : float
        Added to the mean square.
    out : pair of ndarray, each of shape (..., D), optional
        Output arrays for `y` and `total`; either may be None. ``out=(None, residual)`` updates the residual in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    y : ndarray, shape (..., D)
        The normalised sum.
    total : ndarray, shape (..., D)
        ``x + residual``. 16-bit types round it; `y` is computed from the unrounded sum.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or a value is out of range. In both cases `out` is left unchanged.

    Notes
    -----
    ONNX Runtime's SkipSimplifiedLayerNormalization: the residual step of Llama-like layers.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> y, total = fastattn.add_rms_norm(np.array([1.0, 2.0]), np.array([2.0, 2.0]), eps=0.0)
    >>> y.round(4), total
    (array([0.8485, 1.1314]), array([3., 4.]))
    """
    return _core.add_normalize(x, residual, weight, None, eps, out, num_threads, False)
