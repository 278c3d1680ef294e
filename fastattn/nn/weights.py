"""Weights: quantised, and read from a state dict, where every entry is judged and converted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from fastattn import _arguments
from fastattn.linear import linear
from fastattn.normalization import layer_norm, rms_norm

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

REALS = ("float32", "float64", "float16", "bfloat16")


class QuantizedWeight(NamedTuple):
    """The matrix ``values * scales[:, None]``, as `fastattn.linear` takes it for a weight."""

    values: NDArray[np.int8]  # (out_features, in_features), from -127 to 127
    scales: NDArray[np.float32]  # (out_features,)


def quantize(weight: NDArray) -> QuantizedWeight:
    """Round each row of a weight to multiples of its largest magnitude / 127.

    Parameters
    ----------
    weight : ndarray, shape (out_features, in_features)
        float32, float64, float16 or bfloat16.

    Returns
    -------
    QuantizedWeight
        int8 values and float32 scales, one for each row.

    Raises
    ------
    TypeError
        `weight` is no array of these types.
    ValueError
        It has not two axes, or is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.nn import quantize
    >>> quantize(np.array([[127.0, -63.6], [0.0, 2.0]])).values
    array([[127, -64],
           [  0, 127]], dtype=int8)
    """
    _judge("weight", weight, (None, None))
    return _quantize("weight", weight)


def _quantize(name: str, weight: NDArray) -> QuantizedWeight:
    weight = weight.astype(np.float32)
    largest = np.abs(weight).max(axis=1, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError(f"{name} must be finite to be quantised, got NaN or infinity")
    scales = largest / np.float32(127)
    # A row without a scale is zero. One of subnormal numbers has a scale of few bits: its quotients may exceed 127.
    weight /= np.where(scales == 0, np.float32(1), scales)[:, np.newaxis]
    np.rint(weight, out=weight)
    return QuantizedWeight(np.clip(weight, -127, 127, out=weight).astype(np.int8), scales)


class Linear:
    """A weight (out_features, in_features), an array or a QuantizedWeight, and a bias or None."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: NDArray | QuantizedWeight, bias: NDArray | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x, activation=None, residual=None, out=None, num_threads=None):
        """`fastattn.linear` with these two."""
        return linear(
            x, self.weight, self.bias, activation=activation, residual=residual, out=out, num_threads=num_threads
        )

    @property
    def stored(self) -> np.dtype:
        """The type of the weight, or of its values."""
        return self.weight[0].dtype if isinstance(self.weight, tuple) else self.weight.dtype

    @property
    def dtype(self) -> np.dtype:
        """The type that inputs should have: the weight's, float32 where it is quantised."""
        return np.dtype(np.float32) if isinstance(self.weight, tuple) else self.weight.dtype

    @property
    def in_features(self) -> int:
        """Size of an input."""
        return (self.weight[0] if isinstance(self.weight, tuple) else self.weight).shape[1]

    def rows(self, first: int, last: int) -> Linear:
        """The part that makes these outputs, a view."""
        cut = slice(first, last)
        weight, bias = self.weight, self.bias
        part = QuantizedWeight(weight[0][cut], weight[1][cut]) if isinstance(weight, tuple) else weight[cut]
        return Linear(part, None if bias is None else bias[cut])


class LayerNorm:
    """The weight and bias of a `fastattn.layer_norm`."""

    __slots__ = ("bias", "eps", "weight")

    def __init__(self, entries: Entries, size: int, eps: float, bias: bool | None) -> None:
        self.weight = entries.vector("weight", size)
        self.bias = entries.bias("bias", size, bias)
        self.eps = eps

    def __call__(self, x, out=None, num_threads=None):
        """`fastattn.layer_norm` with these."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps, out=out, num_threads=num_threads)


class RMSNorm:
    """The weight of a `fastattn.rms_norm`."""

    __slots__ = ("eps", "weight")

    def __init__(self, entries: Entries, size: int, eps: float, bias: bool | None) -> None:
        del bias  # it has none in any case
        self.weight = entries.vector("weight", size)
        self.eps = eps

    def __call__(self, x, out=None, num_threads=None):
        """`fastattn.rms_norm` with this."""
        return rms_norm(x, self.weight, eps=self.eps, out=out, num_threads=num_threads)


class Entries:
    """The entries of a state dict below a prefix; each is judged and converted as it is asked for.

    `dtype` is what matrices become: None leaves everything as it is, int8 quantises. Vectors (biases, the weights of
    norms) then become float32, or float64 beside float64: in 16 bits they would cost accuracy and save nothing.
    """

    def __init__(self, mapping: Mapping[str, NDArray], prefix: str = "", dtype: DTypeLike | None = None) -> None:
        if not isinstance(mapping, Mapping):
            raise TypeError(f"mapping must be a mapping of names to arrays, got {type(mapping).__name__}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
        self._mapping = mapping
        self._prefix = prefix
        self._dtype = None if dtype is None else _arguments.storage_dtype("dtype", dtype)
        self._asked: set[str] = set()

    def under(self, name: str) -> Entries:
        """The entries whose names go on with this one."""
        part = Entries.__new__(Entries)
        part._mapping, part._dtype, part._asked = self._mapping, self._dtype, self._asked
        part._prefix = self.key(name)
        return part

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self._mapping

    def key(self, name: str) -> str:
        """The name in full."""
        return f"{self._prefix}{name}"

    def unfit(self, name: str, needed: str) -> NoReturn:
        """Raise for the shape of an entry."""
        raise ValueError(f"{self.key(name)} must have {needed}, got shape {self._mapping[self.key(name)].shape}")

    def numbers(self, name: str) -> list[int]:
        """The numbers that follow `name` in names, in order."""
        start = self.key(name)
        found = {key[len(start) :].partition(".")[0] for key in self._mapping if key.startswith(start)}
        return sorted(int(number) for number in found if number.isdecimal())

    def shape(self, name: str, needed: tuple) -> tuple[int, ...]:
        """The shape of an entry that must have `needed`; None there stands for any size but 0."""
        return self._array(name, needed).shape

    def matrix(self, name: str, needed: tuple) -> NDArray | QuantizedWeight:
        """A weight, in the type asked for."""
        x = self._array(name, needed)
        if self._dtype is None:
            return x
        if self._dtype == np.int8:
            return _quantize(self.key(name), x)
        return x.astype(self._dtype, copy=False)

    def vector(self, name: str, size: int) -> NDArray:
        """A bias or the weight of a norm."""
        x = self._array(name, (size,))
        if self._dtype is None:
            return x
        return x.astype(np.float64 if self._dtype == np.float64 else np.float32, copy=False)

    def bias(self, name: str, size: int, bias: bool | None) -> NDArray | None:
        """A vector that must be there if `bias` is True; where it is None, that which is there is taken."""
        if bias or (bias is None and name in self):
            return self.vector(name, size)
        return None

    def linear(self, name: str, needed: tuple, bias: bool | None) -> Linear:
        """`name`.weight and `name`.bias."""
        weight = self.matrix(f"{name}.weight", needed)
        return Linear(weight, self.bias(f"{name}.bias", self.shape(f"{name}.weight", needed)[0], bias))

    def judge_unread(self) -> None:
        """Raise ValueError for an entry below the prefix that nobody asked for: the result would be wrong without it."""
        for key in self._mapping:
            if key.startswith(self._prefix) and key not in self._asked:
                raise ValueError(f"state dict must hold what is read from it only, got {key!r} as well")

    def _array(self, name: str, needed: tuple) -> NDArray:
        key = self.key(name)
        if key not in self._mapping:
            raise ValueError(f"state dict must have an entry {key!r} of shape {_shape(needed)}, got none")
        self._asked.add(key)
        x = self._mapping[key]
        _judge(key, x, needed)
        return x


def stacked(weights: Iterable[NDArray | QuantizedWeight]) -> NDArray | QuantizedWeight:
    """Matrices one below the other."""
    weights = list(weights)
    if isinstance(weights[0], QuantizedWeight):
        return QuantizedWeight(*map(np.concatenate, zip(*weights, strict=True)))
    return np.concatenate(weights)


def _judge(name: str, x: object, needed: tuple) -> None:
    """Raise unless x is an array of real numbers of this shape."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(x).__name__}")
    if x.dtype.name not in REALS or not x.dtype.isnative:
        raise TypeError(f"{name} must have dtype {', '.join(REALS)} in native byte order, got dtype {x.dtype.str}")
    fits = x.ndim == len(needed) and all(
        size > 0 if need is None else size == need for size, need in zip(x.shape, needed, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {_shape(needed)}, got shape {x.shape}")


def _shape(needed: tuple) -> str:
    sizes = ["any" if need is None else str(need) for need in needed]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
