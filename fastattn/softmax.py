"""softmax and log_softmax along any axis.

Compiled half: _core/softmax.pyx; kernel: _core/kernels/rows/softmax.h; definition: reference.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn._core import softmax as _core

if TYPE_CHECKING:
    from fastattn._typing import Array, Out


def softmax(
    x: Array,
    axis: int = -1,
    *,
    where: Array | None = None,
    out: Out | None = None,
    num_threads: int | None = None,
) -> Out:
    """Compute the softmax along an axis: exponentials, scaled to sum to one.

    Parameters
    ----------
    x : ndarray
        float32, float64, float16 or bfloat16, with at least one axis and any strides.
    axis : int
        The axis to sum over.
    where : bool ndarray, broadcastable to x's shape, optional
        Elements where it is False are excluded: their result is 0, even if they are NaN.
    out : ndarray, optional
        Output array: writable, of x's shape and dtype; ``out=x`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray
        Of x's shape, dtype and memory order. Rows that are all -inf or all excluded are zero.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or the axis does not exist. In both cases `out` is left unchanged.

    Notes
    -----
    ``exp(x - max) / sum(exp(x - max))``: ONNX's Softmax, torch.softmax, scipy.special.softmax with ``axis=-1``.

    Two differences from scipy.special.softmax: the default axis is the last one, not all of them; and a row of -inf
    gives zeros, where SciPy (and PyTorch) give NaN.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> fastattn.softmax(np.array([[0.0, 0.0], [0.0, -np.inf]]))
    array([[0.5, 0.5],
           [1. , 0. ]])
    """
    return _core.softmax(x, axis, where, out, num_threads, False)


def log_softmax(
    x: Array,
    axis: int = -1,
    *,
    where: Array | None = None,
    out: Out | None = None,
    num_threads: int | None = None,
) -> Out:
    """Compute the logarithm of `softmax`, accurately even where the softmax underflows.

    Parameters
    ----------
    x : ndarray
        float32, float64, float16 or bfloat16, with at least one axis and any strides.
    axis : int
        The axis to sum over.
    where : bool ndarray, broadcastable to x's shape, optional
        Elements where it is False are excluded: their result is -inf, even if they are NaN.
    out : ndarray, optional
        Output array: writable, of x's shape and dtype; ``out=x`` works in place.
    num_threads : int, optional
        Maximum number of threads; see `set_num_threads`.

    Returns
    -------
    ndarray
        Of x's shape, dtype and memory order. Rows that are all -inf or all excluded are -inf.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, or the axis does not exist. In both cases `out` is left unchanged.

    Notes
    -----
    ``x - max - log(sum(exp(x - max)))``: ONNX's LogSoftmax, torch.log_softmax, scipy.special.log_softmax with
    ``axis=-1``.

    Two differences from scipy.special.log_softmax: the default axis is the last one, not all of them; and a row of
    -inf stays -inf, where SciPy (and PyTorch) give NaN.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> fastattn.log_softmax(np.array([1000.0, 0.0]))
    array([    0., -1000.])
    """
    return _core.softmax(x, axis, where, out, num_threads, True)
