"""Layer and RMS normalisation and linear layers of dask arrays: over the last axis, which is made one chunk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np

import fastattn
from fastattn.integrations.dask.chunks import blockwise, collection, rechunked, stand_in, threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn import PackedWeight


def layer_norm(
    x: da.Array | NDArray,
    weight: da.Array | NDArray | None = None,
    bias: da.Array | NDArray | None = None,
    *,
    eps: float = 1e-5,
    num_threads: int | None = None,
) -> da.Array:
    """Compute `fastattn.layer_norm` of a dask array.

    Parameters
    ----------
    x : dask Array or ndarray, shape (..., D)
        float32, float64, float16 or bfloat16. A chunked last axis is made one chunk.
    weight, bias : dask Array or ndarray, shape (D,), optional
    eps : float
        Added to the variance.
    num_threads : int, optional
        Maximum number of threads of each task; 1 by default, as a worker runs a task on each of its threads.

    Returns
    -------
    dask Array, shape (..., D)
        In x's dtype.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, a value is out of range, or an array has chunks of unknown sizes.

    Notes
    -----
    Ba, Kiros and Hinton, "Layer Normalization" (2016).

    Examples
    --------
    >>> import dask.array as da
    >>> from fastattn.integrations.dask import layer_norm
    >>> layer_norm(da.ones((100, 64), chunks=(30, 16), dtype="float32")).chunks
    ((30, 30, 30, 10), (64,))
    """
    return _normalized("layer_norm", x, {"weight": weight, "bias": bias}, eps, num_threads)


def rms_norm(
    x: da.Array | NDArray,
    weight: da.Array | NDArray | None = None,
    *,
    eps: float = 1e-6,
    num_threads: int | None = None,
) -> da.Array:
    """Compute `fastattn.rms_norm` of a dask array.

    Parameters
    ----------
    x : dask Array or ndarray, shape (..., D)
        float32, float64, float16 or bfloat16. A chunked last axis is made one chunk.
    weight : dask Array or ndarray, shape (D,), optional
    eps : float
        Added to the mean square.
    num_threads : int, optional
        Maximum number of threads of each task; 1 by default, as a worker runs a task on each of its threads.

    Returns
    -------
    dask Array, shape (..., D)
        In x's dtype.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    Notes
    -----
    Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019).

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from fastattn.integrations.dask import rms_norm
    >>> rms_norm(da.from_array(np.array([3.0, 4.0]), chunks=1), eps=0.0).compute(scheduler="synchronous").round(4)
    array([0.8485, 1.1314])
    """
    return _normalized("rms_norm", x, {"weight": weight}, eps, num_threads)


def linear(
    x: da.Array | NDArray,
    weight: da.Array | NDArray | tuple[NDArray, NDArray] | PackedWeight,
    bias: da.Array | NDArray | None = None,
    *,
    activation: str | None = None,
    residual: da.Array | NDArray | None = None,
    num_threads: int | None = None,
) -> da.Array:
    """Compute `fastattn.linear` of a dask array: ``activation(x @ weight.T + bias) + residual``.

    Parameters
    ----------
    x : dask Array or ndarray, shape (..., K)
        float32, float64, float16 or bfloat16. A chunked last axis is made one chunk.
    weight : dask Array or ndarray, shape (N, K), or (values, scales), or PackedWeight
        A worker gets it once. A dask array may be chunked along the outputs, so that each worker reads some of them. A
        packed weight is sent unpacked, and packed anew for the worker's own processor.
    bias : dask Array or ndarray, shape (N,), optional
        Of shape (2, N) for a gated weight.
    activation : None, "gelu", "gelu_tanh", "relu" or "silu"
    residual : dask Array or ndarray, shape (..., N), optional
    num_threads : int, optional
        Maximum number of threads of each task; 1 by default, as a worker runs a task on each of its threads.

    Returns
    -------
    dask Array, shape (..., N)
        In x's dtype.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype.
    ValueError
        A shape does not match, the activation is unknown, or an array has chunks of unknown sizes.

    Examples
    --------
    >>> import dask.array as da
    >>> import fastattn
    >>> import numpy as np
    >>> from fastattn.integrations.dask import linear
    >>> weight = fastattn.pack(np.ones((32, 64), np.float32))
    >>> linear(da.ones((100, 64), chunks=(30, 16), dtype="float32"), weight, activation="gelu").chunks
    ((30, 30, 30, 10), (32,))
    """
    x = collection("x", x)
    weight = collection("weight", weight) if isinstance(weight, np.ndarray | da.Array) else weight
    bias = None if bias is None else collection("bias", bias)
    residual = None if residual is None else collection("residual", residual)
    _check_linear(x, weight, bias, activation, residual, num_threads)

    # Axes of all operands. Those that the result lacks, the last two, have one chunk.
    x, (*rows, outputs, inputs, gates) = _whole_rows(x), range(x.ndim + 2)
    if isinstance(weight, da.Array):
        weight = _whole_rows(weight)
        columns, weight_axes, new_axes = weight.chunks[0], (outputs, inputs), {}
    else:
        columns = (weight[0] if isinstance(weight, tuple) else weight).shape[:1]
        weight, weight_axes, new_axes = dask.delayed(weight, pure=True, traverse=False), None, {outputs: columns}
    if bias is not None:
        bias = bias.rechunk((-1, columns)[-bias.ndim :])
    if residual is not None:
        residual = residual.rechunk((*x.chunks[:-1], columns))
    return da.blockwise(
        _linear, (*rows, outputs), x, (*rows, inputs), weight, weight_axes,
        bias, None if bias is None else (gates, outputs)[-bias.ndim :],
        residual, None if residual is None else (*rows, outputs), new_axes=new_axes,
        dtype=x.dtype, meta=np.empty((0,) * x.ndim, x.dtype), activation=activation, num_threads=num_threads,
    )  # fmt: skip


def _check_linear(
    x: da.Array, weight: Any, bias: da.Array | None, activation: str | None, residual: da.Array | None,
    num_threads: int | None,
) -> None:  # fmt: skip
    arrays = _no_rows(x), stand_in(weight), stand_in(bias)
    result = fastattn.linear(*arrays, activation=activation, num_threads=num_threads)
    if residual is not None:
        fastattn.linear(*arrays, residual=np.empty(result.shape, residual.dtype))
        shape = (*x.shape[:-1], result.shape[-1])
        if residual.shape != shape:
            raise ValueError(f"residual must have the result's shape {shape}, got shape {residual.shape}")


def _linear(
    x: list[NDArray],
    weight: Any,
    bias: Any,
    residual: NDArray | None,
    *,
    activation: str | None,
    num_threads: int | None,
) -> NDArray:
    """Operands with an axis that the result lacks come as lists of their only chunk along it."""
    x, weight, bias = (a[0] if isinstance(a, list) else a for a in (x, weight, bias))
    return fastattn.linear(x, weight, bias, activation=activation, residual=residual, num_threads=threads(num_threads))


def _normalized(name: str, x: object, parameters: dict[str, object], eps: float, num_threads: int | None) -> da.Array:
    x = collection("x", x)
    arrays = {key: None if a is None else collection(key, a) for key, a in parameters.items()}
    stand_ins = {key: stand_in(a) for key, a in arrays.items()}
    getattr(fastattn, name)(_no_rows(x), **stand_ins, eps=eps, num_threads=num_threads)
    x = _whole_rows(x)
    others = (a if a is None else rechunked(a, x.chunks) for a in arrays.values())
    return blockwise(_normalize, x, *others, dtype=x.dtype, operation=name, eps=eps, num_threads=num_threads)


def _normalize(x: NDArray, *parameters: NDArray | None, operation: str, eps: float, num_threads: int | None) -> NDArray:
    return getattr(fastattn, operation)(x, *parameters, eps=eps, num_threads=threads(num_threads))


def _no_rows(x: da.Array) -> NDArray:
    """An array of no rows, of which fastattn checks all and computes nothing."""
    return np.empty((0, *x.shape[-1:]) if x.ndim else (), x.dtype)


def _whole_rows(x: da.Array) -> da.Array:
    return x.rechunk({x.ndim - 1: -1})
