"""The entries of a state dict, each checked and converted once, and the linear layers and norms that hold them.

These call the compiled functions themselves. A public function between adds a frame of the interpreter, which runs with
cold caches after every matrix.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from fastattn import _arguments
from fastattn._core.linear import linear
from fastattn._core.normalization import normalize
from fastattn.weights import PackedWeight, QuantizedWeight, check, converted, in_words, pack, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from numpy.typing import DTypeLike, NDArray

    Weight = NDArray | QuantizedWeight | PackedWeight


class Linear:
    """A weight (out_features, in_features), an array, a QuantizedWeight or a PackedWeight, and a bias or None."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: Weight, bias: NDArray | None) -> None:
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
        return linear(x, self.weight, self.bias, activation, residual, out, num_threads)

    def rows(self, first: int, last: int) -> Linear:
        """The part that computes these outputs: views, except of a packed weight that is cut within a panel."""
        packed = isinstance(self.weight, PackedWeight)
        part = self.weight.rows(first, last) if packed else rows_of(self.weight, first, last)
        return Linear(part, None if self.bias is None else self.bias[..., first:last])

    @property
    def stored(self) -> NDArray | PackedWeight:
        """What has the weight's shape and dtype: the weight itself, or its int8 values."""
        return self.weight.values if isinstance(self.weight, QuantizedWeight) else self.weight

    @property
    def dtype(self) -> np.dtype:
        """Dtype that inputs should have: that of the weight, float32 for a quantised one."""
        return np.dtype(np.float32) if self.stored.dtype == np.int8 else self.stored.dtype

    def check_dtype(self, name: str, x: NDArray) -> None:
        """Raise unless x fits the weight: weights of float64 take nothing else."""
        if self.dtype == np.float64 != x.dtype:
            raise TypeError(f"{name} must have dtype float64, like the weights, got dtype {x.dtype}")


class LayerNorm:
    """`fastattn.layer_norm` with its weight, bias and eps."""

    __slots__ = ("bias", "eps", "weight")

    def __init__(self, entries: Entries, size: int, eps: float, bias: bool | None) -> None:
        self.weight = entries.vector("weight", size)
        self.bias = entries.bias("bias", size, bias)
        self.eps = eps

    def __call__(self, x: NDArray, *, out: NDArray | None = None, num_threads: int | None = None) -> NDArray:
        """Normalise x."""
        return normalize(x, self.weight, self.bias, self.eps, out, num_threads, True)


class RMSNorm:
    """`fastattn.rms_norm` with its weight and eps."""

    __slots__ = ("eps", "weight")

    def __init__(self, entries: Entries, size: int, eps: float, bias: bool | None) -> None:
        del bias  # an RMS norm has none
        self.weight = entries.vector("weight", size)
        self.eps = eps

    def __call__(self, x: NDArray, *, out: NDArray | None = None, num_threads: int | None = None) -> NDArray:
        """Normalise x."""
        return normalize(x, self.weight, None, self.eps, out, num_threads, False)


NORMS = {"layer": LayerNorm, "rms": RMSNorm}


class Entries:
    """The entries of a state dict under a prefix; each is checked and converted as it is read.

    Matrices are converted to `dtype` (int8 quantises them) and, in linear layers, packed. Vectors (biases, weights of
    norms) are converted to float32 or, for float64, to float64: in 16 bits they would cost accuracy and save nothing.
    With None nothing is converted.
    """

    def __init__(self, mapping: Mapping[str, Any], prefix: str, dtype: DTypeLike | None, pack: bool) -> None:
        if not isinstance(mapping, Mapping):
            advice = ": its state_dict() is one" if hasattr(mapping, "state_dict") else ""
            raise TypeError(f"mapping must be a mapping of names to arrays, got {type(mapping).__name__}{advice}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a str, got {type(prefix).__name__}")
        for key in mapping:
            if not isinstance(key, str):
                raise TypeError(f"mapping must have str keys, got {key!r}")
        self._mapping, self._prefix = mapping, prefix
        self._dtype = None if dtype is None else _arguments.storage_dtype("dtype", dtype)
        self._packs = _arguments.flag("pack", pack)
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
            raise ValueError(f"mapping must have an entry {key!r} of shape {in_words(needed)}, got none")
        x = check(key, self._mapping[key], needed)
        self._read[key] = x.dtype
        return np.asarray(x)  # not an np.memmap: each view and check of one takes longer

    def matrix(self, name: str, needed: tuple[int | None, ...]) -> NDArray | QuantizedWeight:
        """A weight, converted to `dtype`."""
        x = self.array(name, needed)
        if self._dtype is None:
            return x
        return converted(self.key(name), x, self._dtype)

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
        return Linear(self.packed(self.matrix(f"{name}.weight", needed)), self.bias(f"{name}.bias", needed[0], bias))

    def packed(self, weight: NDArray | QuantizedWeight) -> Weight:
        """A weight as layers keep it: packed, or with ``pack=False`` as it is."""
        return pack(weight) if self._packs else weight

    def gated(self, name: str, needed: tuple[int, int], bias: bool | None) -> tuple[Linear, Linear | None]:
        """The second half of `name`.weight and bias, then the first, the gate: None if one is packed with the other."""
        both = Linear(self.matrix(f"{name}.weight", needed), self.bias(f"{name}.bias", needed[0], bias))
        half = needed[0] // 2
        gate, linear = both.rows(0, half), both.rows(half, needed[0])
        if not self._packs:
            return linear, gate
        biases = None if both.bias is None else both.bias.reshape(2, half)
        return Linear(pack(linear.weight, gate=gate.weight), biases), None

    def norm(self, name: str, kind: str, size: int, eps: float, bias: bool | None) -> LayerNorm | RMSNorm:
        """`name`.weight and, for a LayerNorm, `name`.bias."""
        return NORMS[kind](self.under(f"{name}."), size, eps, bias)

    def unfit(self, name: str, needed: str) -> NoReturn:
        """Raise for the shape of an entry."""
        raise ValueError(f"{self.key(name)} must have {needed}, got shape {tuple(self._mapping[self.key(name)].shape)}")

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


def checked_norm(norm: object, norm_eps: object) -> tuple[str, float]:
    """The kind of norms and their eps, given by the caller."""
    return chosen("norm", norm, NORMS), _arguments.non_negative("norm_eps", norm_eps)


def chosen(name: str, x: object, table: Iterable[str]) -> str:
    """A name in a table."""
    if not isinstance(x, str):
        raise TypeError(f"{name} must be a str, got {type(x).__name__}")
    if x not in table:
        raise ValueError(f"{name} must be one of {', '.join(table)}, got {x!r}")
    return x


def stacked(weights: list[NDArray | QuantizedWeight]) -> NDArray | QuantizedWeight:
    """Matrices stacked by rows; a single one is not copied."""
    first = weights[0]
    if len(weights) == 1:
        return first
    if isinstance(first, QuantizedWeight):
        return QuantizedWeight(*map(np.concatenate, zip(*weights, strict=True)))
    return np.concatenate(weights)
