"""Weights: quantisation, and the entries of a state dict, each checked and converted once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from fastattn import _arguments
from fastattn._dtypes import REALS
from fastattn.linear import linear
from fastattn.normalization import layer_norm, rms_norm

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

_REALS = [row.name for row in REALS]

# Advice: how to convert a state dict of tensors to arrays.
_OF_TENSORS = "{name: x.numpy() for name, x in state_dict.items()}"


class QuantizedWeight(NamedTuple):
    """The matrix ``values * scales[:, None]``, a weight that `fastattn.linear` takes."""

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
        int8 values, and a float32 scale for each row.

    Raises
    ------
    TypeError
        `weight` is not an array of one of these dtypes.
    ValueError
        It does not have two axes, or is not finite in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.nn import quantize
    >>> weight = quantize(np.array([[127.0, -63.6], [0.0, 0.5]]))
    >>> weight.values
    array([[127, -64],
           [  0, 127]], dtype=int8)
    >>> weight.scales * 127
    array([127. ,   0.5], dtype=float32)
    """
    _check("weight", weight, (None, None))
    return _quantized("weight", weight)


def _quantized(name: str, weight: NDArray) -> QuantizedWeight:
    with np.errstate(over="ignore"):  # float64 may overflow: checked below
        weight = weight.astype(np.float32)
    largest = np.abs(weight).max(axis=1)
    if not np.isfinite(largest).all():
        raise ValueError(f"{name} must be finite to be quantised, got NaN or infinity")
    scales = largest / np.float32(127)
    weight /= np.where(scales == 0, np.float32(1), scales)[:, np.newaxis]
    np.rint(weight, out=weight)
    # In a row of subnormal numbers the scale is rounded so coarsely that a quotient may exceed 127.
    np.clip(weight, -127, 127, out=weight)
    return QuantizedWeight(weight.astype(np.int8), scales)


class Linear:
    """A weight (out_features, in_features), an array or a QuantizedWeight, and a bias or None."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: NDArray | QuantizedWeight, bias: NDArray | None) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(
        self,
        x: NDArray,
        *,
        activation: str | None = None,
        residual: NDArray | None = None,
        out: NDArray | None = None,
        num_threads: int | None = None,
    ) -> NDArray:
        """Compute `fastattn.linear` with this weight and bias."""
        return linear(
            x, self.weight, self.bias, activation=activation, residual=residual, out=out, num_threads=num_threads
        )

    def rows(self, first: int, last: int) -> Linear:
        """The part that computes these outputs, as views."""
        cut = slice(first, last)
        weight = self.weight
        part = QuantizedWeight(*(x[cut] for x in weight)) if isinstance(weight, QuantizedWeight) else weight[cut]
        return Linear(part, None if self.bias is None else self.bias[cut])

    @property
    def stored(self) -> NDArray:
        """The weight itself, or its int8 values."""
        return self.weight.values if isinstance(self.weight, QuantizedWeight) else self.weight

    @property
    def dtype(self) -> np.dtype:
        """Dtype that inputs should have: that of the weight, float32 for a quantised one."""
        return np.dtype(np.float32) if isinstance(self.weight, QuantizedWeight) else self.weight.dtype


class LayerNorm:
    """`fastattn.layer_norm` with its weight, bias and eps."""

    __slots__ = ("bias", "eps", "weight")

    def __init__(self, entries: Entries, size: int, eps: float, bias: bool | None) -> None:
        self.weight = entries.vector("weight", size)
        self.bias = entries.bias("bias", size, bias)
        self.eps = eps

    def __call__(self, x: NDArray, *, out: NDArray | None = None, num_threads: int | None = None) -> NDArray:
        """Normalise x."""
        return layer_norm(x, self.weight, self.bias, eps=self.eps, out=out, num_threads=num_threads)


class RMSNorm:
    """`fastattn.rms_norm` with its weight and eps."""

    __slots__ = ("eps", "weight")

    def __init__(self, entries: Entries, size: int, eps: float, bias: bool | None) -> None:
        del bias  # an RMS norm has none
        self.weight = entries.vector("weight", size)
        self.eps = eps

    def __call__(self, x: NDArray, *, out: NDArray | None = None, num_threads: int | None = None) -> NDArray:
        """Normalise x."""
        return rms_norm(x, self.weight, eps=self.eps, out=out, num_threads=num_threads)


class Entries:
    """The entries of a state dict under a prefix; each is checked and converted as it is read.

    Matrices are converted to `dtype` (int8 quantises them), vectors (biases, weights of norms) to float32 or, for
    float64, to float64: in 16 bits they would cost accuracy and save nothing. With None nothing is converted.
    """

    def __init__(self, mapping: Mapping[str, NDArray], prefix: str, dtype: DTypeLike | None) -> None:
        if not isinstance(mapping, Mapping):
            advice = f": {_OF_TENSORS} of its state_dict() is one" if hasattr(mapping, "state_dict") else ""
            raise TypeError(f"mapping must be a mapping of names to arrays, got {type(mapping).__name__}{advice}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
        for key in mapping:
            if not isinstance(key, str):
                raise TypeError(f"mapping must have str keys, got {key!r}")
        self._mapping, self._prefix = mapping, prefix
        self._dtype = None if dtype is None else _arguments.storage_dtype("dtype", dtype)
        self._read: dict[str, np.dtype] = {}

    def under(self, name: str) -> Entries:
        """The entries whose names continue with this one."""
        part = copy.copy(self)
        part._prefix = self.key(name)
        return part

    def key(self, name: str) -> str:
        """The full name."""
        return f"{self._prefix}{name}"

    def __contains__(self, name: str) -> bool:
        return self.key(name) in self._mapping

    def count(self, name: str) -> int:
        """Number of layers: one more than the largest number that follows `name` in any name; at least 1."""
        start = self.key(name)
        after = (key[len(start) :].partition(".")[0] for key in self._mapping if key.startswith(start))
        return 1 + max((int(number) for number in after if number.isdecimal()), default=0)

    def array(self, name: str, needed: tuple[int | None, ...]) -> NDArray:
        """An entry of this shape, not converted; None stands for any size but 0."""
        key = self.key(name)
        if key not in self._mapping:
            raise ValueError(f"mapping must have an entry {key!r} of shape {_shape(needed)}, got none")
        x = self._mapping[key]
        _check(key, x, needed)
        self._read[key] = x.dtype
        return np.asarray(x)  # not an np.memmap: each view and check of one takes longer

    def matrix(self, name: str, needed: tuple[int | None, ...]) -> NDArray | QuantizedWeight:
        """A weight, converted to `dtype`."""
        x = self.array(name, needed)
        if self._dtype is None:
            return x
        return _quantized(self.key(name), x) if self._dtype == np.int8 else self._converted(name, x)

    def _converted(self, name: str, x: NDArray) -> NDArray:
        """A weight converted to `dtype`; ValueError if a finite number would become infinite in float16."""
        if self._dtype != np.float16:
            return x.astype(self._dtype, copy=False)
        if x.dtype.name == "bfloat16":
            x = x.astype(np.float32)  # whose conversion to float16 reports an overflow
        try:
            with np.errstate(over="raise"):
                return x.astype(np.float16, copy=False)
        except FloatingPointError:
            largest = np.abs(x[np.isfinite(x)]).max()
            raise ValueError(
                f"{self.key(name)} must be below 65520 in magnitude to become float16, got {largest:.6g}: use dtype "
                f"'bfloat16' or 'float32'"
            ) from None

    def matrices(self, needed: dict[str, tuple[int, int]]) -> list[NDArray | QuantizedWeight]:
        """Weights of one dtype."""
        weights = [self.matrix(name, shape) for name, shape in needed.items()]
        first, *others = (self.key(name) for name in needed)
        for other in others:
            if self._dtype is None and self._read[other] != self._read[first]:
                raise TypeError(f"{other} must have dtype {self._read[first]}, like {first}, got {self._read[other]}")
        return weights

    def vector(self, name: str, size: int) -> NDArray:
        """A bias, or the weight of a norm."""
        x = self.array(name, (size,))
        if self._dtype is None:
            return x
        return x.astype(np.float64 if self._dtype == np.float64 else np.float32, copy=False)

    def bias(self, name: str, size: int, bias: bool | None) -> NDArray | None:
        """A vector if `bias` is True or, with None, if the mapping has one; else None."""
        wanted = name in self if bias is None else _arguments.flag("bias", bias)
        return self.vector(name, size) if wanted else None

    def linear(self, name: str, needed: tuple[int, int], bias: bool | None) -> Linear:
        """`name`.weight and `name`.bias."""
        return Linear(self.matrix(f"{name}.weight", needed), self.bias(f"{name}.bias", needed[0], bias))

    def unfit(self, name: str, needed: str) -> NoReturn:
        """Raise for the shape of an entry."""
        raise ValueError(f"{self.key(name)} must have {needed}, got shape {self._mapping[self.key(name)].shape}")

    def check_rest(self) -> None:
        """Raise for entries that were not read, and for a mix of float64 with other types.

        An entry that is not read would be ignored silently; a float64 entry accepts only tokens that the others do not.
        """
        for key in self._mapping:
            if key.startswith(self._prefix) and key not in self._read:
                raise ValueError(f"mapping must have no entries under {self._prefix!r} that are not read, got {key!r}")
        by_width = {dtype == np.float64: key for key, dtype in self._read.items()}
        if self._dtype is None and len(by_width) == 2:
            raise TypeError(
                f"mapping must be float64 in all entries or in none, got float64 in {by_width[True]!r}, "
                f"{self._read[by_width[False]]} in {by_width[False]!r}: pass a dtype to convert them"
            )


def stacked(weights: list[NDArray | QuantizedWeight]) -> NDArray | QuantizedWeight:
    """Matrices stacked by rows; a single one is not copied."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if isinstance(first, QuantizedWeight):
        return QuantizedWeight(*map(np.concatenate, zip(*weights, strict=True)))
    return np.concatenate(weights)


def _check(name: str, x: object, needed: tuple[int | None, ...]) -> None:
    """Raise unless x is an array of real numbers of this shape."""
    if not isinstance(x, np.ndarray) or hasattr(x, "mask"):
        advice = f": take {_OF_TENSORS}, of bfloat16 with x.float().numpy()" if hasattr(x, "numpy") else ""
        raise TypeError(f"{name} must be a plain numpy.ndarray, got {type(x).__name__}{advice}")
    if x.dtype.name not in _REALS or not x.dtype.isnative:
        raise TypeError(f"{name} must have dtype {', '.join(_REALS)} in native byte order, got dtype {x.dtype.str}")
    if x.ndim != len(needed) or any(
        size == 0 if need is None else size != need for size, need in zip(x.shape, needed, strict=True)
    ):
        raise ValueError(f"{name} must have shape {_shape(needed)}, got shape {x.shape}")


def _shape(needed: tuple[int | None, ...]) -> str:
    """A shape in words: an axis of any size is named by what it counts."""
    names = ("rows", "columns") if len(needed) == 2 else ("elements",) * len(needed)
    sizes = (name if need is None else str(need) for name, need in zip(names, needed, strict=True))
    shape = f"({', '.join(sizes)}{',' * (len(needed) == 1)})"
    return f"{shape}, none of them 0" if None in needed else shape
