"""The forms of a weight that `fastattn.linear` takes besides an array: quantised to int8, and packed for its kernels.

Compiled half: _core/packed.pyx; the form of a packed weight: _core/kernels/abi/panels.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from fastattn import _arguments, _array_file, _dtypes
from fastattn._core.packed import Packed

if TYPE_CHECKING:
    import os
    from typing import Any

    from numpy.typing import DTypeLike, NDArray

    from fastattn._typing import Array

_REALS = [row.name for row in _dtypes.REALS]

FORMAT = "fastattn packed weight 1"


class QuantizedWeight(NamedTuple):
    """The matrix ``values * scales[:, None]``, a weight that `fastattn.linear` takes."""

    values: NDArray[np.int8]  # (out_features, in_features), from -127 to 127
    scales: NDArray[np.float32]  # (out_features,)


def quantize(weight: Array) -> QuantizedWeight:
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
    return converted("weight", check("weight", weight, (None, None)), np.dtype(np.int8))


def pack(
    weight: Array | tuple[Array, Array],
    *,
    gate: Array | tuple[Array, Array] | None = None,
    dtype: DTypeLike | None = None,
) -> PackedWeight:
    """Copy a weight into the form that the kernels of `fastattn.linear` read, once for many calls.

    Pack weights that are used more than a few times. With one row of x, a call then takes the time of reading the
    weight from memory and is 1.3 to 6 times as fast as with an array; with many rows it is up to 1.25 times as fast.
    Results are bitwise the same.

    Parameters
    ----------
    weight : ndarray, shape (out_features, in_features), or (values, scales)
        As `fastattn.linear` takes it. It is copied.
    gate : like `weight`, optional
        For a gated feed-forward network (SwiGLU, GeGLU): `fastattn.linear` then computes
        ``activation(x @ gate.T + bias[0]) * (x @ weight.T + bias[1])`` in one pass.
    dtype : dtype, optional
        Convert the weight to float32, float64, float16, bfloat16 or int8 (quantised by `fastattn.nn.quantize`).
        A weight of float64 takes float64 rows of x only; rows of float64 are slow with any other.

    Returns
    -------
    PackedWeight
        For the target in use, which `fastattn.show_config` names.

    Raises
    ------
    TypeError
        An argument has the wrong type or dtype, or `gate` and `weight` have different dtypes.
    ValueError
        A shape does not match, a scale is not finite, or a number does not fit float16 or int8.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> weight = fastattn.pack(np.array([[1.0, 1.0], [1.0, -1.0]], np.float32))
    >>> weight.shape, weight.dtype
    ((2, 2), dtype('float32'))
    >>> fastattn.linear(np.array([[1.0, 2.0]], np.float32), weight)
    array([[ 3., -1.]], dtype=float32)
    """
    wanted = None if dtype is None else _arguments.storage_dtype("dtype", dtype)
    values, scales = _values_and_scales("weight", weight, wanted)
    gate_values = gate_scales = None
    if gate is not None:
        gate_values, gate_scales = _values_and_scales("gate", gate, wanted)
        if gate_values.dtype != values.dtype:
            raise TypeError(f"gate must have dtype {values.dtype}, like weight, got dtype {gate_values.dtype}")
        if gate_values.shape != values.shape:
            raise ValueError(f"gate must have weight's shape {values.shape}, got shape {gate_values.shape}")
    packed = PackedWeight(*values.shape, values.dtype, gate is not None)
    packed._keep_scales(scales, gate_scales)
    packed.move(values, gate_values, False)
    return packed._frozen()


class PackedWeight(Packed):
    """A weight in the form that `fastattn.linear` reads fastest, made by `fastattn.pack` or `load`. It is immutable.

    Attributes
    ----------
    shape : tuple of int
        (out_features, in_features)
    dtype : dtype
        Dtype of its elements.
    nbytes : int
        Size in bytes.
    target : str
        The only target that can use it, one of `fastattn.targets`.
    gated : bool
        Whether it holds a gate as well.

    Notes
    -----
    A pickle holds the unpacked weight, which is packed for the target in use when it is loaded.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> up, gate = np.ones((2, 32, 8), np.float32)
    >>> weight = fastattn.pack(up, gate=gate, dtype="int8")
    >>> weight.shape, weight.dtype, weight.gated
    ((32, 8), dtype('int8'), True)
    >>> fastattn.linear(np.ones((1, 8), np.float32), weight, activation="relu")[0, :3]
    array([64., 64., 64.], dtype=float32)
    """

    __slots__ = ()

    def _keep_scales(self, scales: NDArray | None, gate: NDArray | None) -> None:
        """Store the scales in the order in which panels hold the rows: some of the gate, then those of the weight."""
        if gate is not None:
            rows = self.rows_of_a_panel
            both = np.zeros((2, -(-len(scales) // rows) * rows), np.float32)
            both[0, : len(gate)], both[1, : len(scales)] = gate, scales
            scales = both.reshape(2, -1, rows).swapaxes(0, 1).reshape(-1)
        self.set_scales(None if scales is None else np.ascontiguousarray(scales, np.float32).copy())

    def _frozen(self) -> PackedWeight:
        self.freeze()
        return self

    @property
    def nbytes(self) -> int:  # noqa: D102 (described above)
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def unpack(self) -> Any:
        """Return the weight as `pack` took it, an array or (values, scales); (weight, gate) if it is gated."""
        weight = np.empty(self.shape, self.dtype)
        gate = np.empty(self.shape, self.dtype) if self.gated else None
        self.move(weight, gate, True)
        if self.scales is not None:
            scales, gate_scales = self._scales_by_row()
            weight = QuantizedWeight(weight, scales)
            gate = None if gate is None else QuantizedWeight(gate, gate_scales)
        return weight if gate is None else (weight, gate)

    def _scales_by_row(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The scales of the weight and of its gate or None, as `_keep_scales` got them."""
        if not self.gated:
            return self.scales.copy(), None
        both = self.scales.reshape(-1, 2, self.rows_of_a_panel).swapaxes(0, 1).reshape(2, -1)[:, : self.shape[0]]
        return both[1].copy(), both[0].copy()

    def rows(self, first: int, last: int) -> PackedWeight:
        """Return the part that computes outputs `first` to `last` - 1.

        It is a view if it begins and ends between panels (of float32, 32 rows with AVX-512, 16 with AVX2), else a copy.
        """
        if not 0 <= first <= last <= self.shape[0]:
            raise ValueError(f"first and last must be rows from 0 to {self.shape[0]}, got {first} to {last}")
        part = self.cut(first, last)
        if part is None:
            weight, gate = self.unpack() if self.gated else (self.unpack(), None)
            return pack(rows_of(weight, first, last), gate=None if gate is None else rows_of(gate, first, last))
        data, scales = part
        weight = PackedWeight(last - first, self.shape[1], self.dtype, False, allocate=False)
        weight.set_data(data)
        weight.set_scales(scales)
        return weight._frozen()

    def for_float64(self) -> NDArray | QuantizedWeight | PackedWeight:
        """Return the weight as `linear` takes it with rows of float64, whose kernels read panels of float64 alone."""
        if not self.gated:
            return self.unpack()
        weight, gate = (
            x.values * x.scales.astype(np.float64)[:, np.newaxis]
            if isinstance(x, QuantizedWeight)
            else x.astype(np.float64)
            for x in self.unpack()
        )
        return pack(weight, gate=gate)

    def save(self, path: str | os.PathLike) -> None:
        """Write it to a file for this target, which `load` can map into memory."""
        arrays = [self.data] if self.scales is None else [self.data, self.scales]
        _array_file.write(path, self._content(), [(x, None) for x in arrays])

    @classmethod
    def load(cls, path: str | os.PathLike, *, mmap_mode: str | None = None) -> PackedWeight:
        """Read a file that `save` wrote.

        Parameters
        ----------
        path : str or path
        mmap_mode : None, "r" or "c"
            Both "r" and "c" map the file instead of reading it, so that processes share its memory. The file must not
            change while the weight is in use; `save` to the same path replaces it and leaves the mapping intact.

        Raises
        ------
        ValueError
            The file is incomplete or of another kind or version, or its weight was packed for another target.
        """

        def take(file: BinaryIO, size: int, text: bytes) -> PackedWeight:
            return cls._read(file, size, text, mmap_mode)

        return _array_file.read(path, "PackedWeight", mmap_mode, take)

    def _content(self) -> dict:
        return {
            "format": FORMAT, "kind": "PackedWeight", "target": self.target, "layout": list(self.layout),
            "dtype": self.dtype.name, "shape": list(self.shape), "gated": self.gated,
        }  # fmt: skip

    @classmethod
    def _read(cls, file: BinaryIO, size: int, text: bytes, mmap_mode: str | None) -> PackedWeight:
        content = _array_file.content_of(text, "PackedWeight", FORMAT)
        (rows, inputs), gated = content["shape"], content["gated"]
        if not all(type(count) is int and count >= 0 for count in (rows, inputs)) or _overflows(rows, inputs):
            raise ValueError(f"its shape is {content['shape']}")
        dtype = _arguments.storage_dtype("its dtype", content["dtype"])
        weight = cls(rows, inputs, dtype, gated, allocate=False)
        if content["target"] != weight.target:
            raise ValueError(f"it is for the target {content['target']!r}, and {weight.target!r} is in use")
        if text != _array_file.text(weight._content()):
            raise ValueError("its text is not written as save writes it")
        data = _array_file.read_array(file, size, (weight.nbytes_of_panels,), np.dtype(np.uint8), mmap_mode)
        weight.set_data(data)
        if dtype == np.int8:
            panel = weight.rows_of_a_panel
            count = -(-rows // panel) * panel * 2 if gated else rows
            scales = _array_file.read_array(file, size, (count,), np.dtype(np.float32), mmap_mode)
            if not np.isfinite(scales).all():
                raise ValueError("it has scales that are not finite")
            weight.set_scales(scales)
        _array_file.check_end(file, size)
        return weight._frozen()

    def __reduce__(self) -> tuple:
        weight = self.unpack()
        return _repack, weight if self.gated else (weight, None)

    def __repr__(self) -> str:
        gate = ", gated" if self.gated else ""
        return f"PackedWeight(shape={self.shape}, dtype={self.dtype}{gate}, target={self.target!r})"


def _overflows(rows: int, inputs: int) -> bool:
    """Whether sizes in bytes may exceed 64 bits; panels pad each size by at most 127."""
    return inputs > 1 << 40 or (rows + 128) * (inputs + 128) > 1 << 58


def _repack(weight: NDArray | QuantizedWeight, gate: NDArray | QuantizedWeight | None) -> PackedWeight:
    return pack(weight, gate=gate)


def rows_of(weight: NDArray | QuantizedWeight, first: int, last: int) -> NDArray | QuantizedWeight:
    """Rows of a weight, as views."""
    if isinstance(weight, QuantizedWeight):
        return QuantizedWeight(*(x[first:last] for x in weight))
    return weight[first:last]


def _values_and_scales(name: str, weight: object, dtype: np.dtype | None) -> tuple[NDArray, NDArray | None]:
    """A weight as values and scales or None, converted."""
    if isinstance(weight, tuple):
        if dtype not in (None, np.int8):
            raise TypeError(f"{name} is int8 already and cannot become {dtype}")
        return _checked_pair(name, weight)
    weight = _arguments.real_array(name, weight)
    if weight.ndim != 2:
        raise ValueError(f"{name} must have shape (out_features, in_features), got shape {weight.shape}")
    if dtype == np.int8:
        return converted(name, weight, dtype)
    return (weight if dtype is None else converted(name, weight, dtype)), None


def _checked_pair(name: str, weight: tuple) -> tuple[NDArray, NDArray]:
    values, scales = _arguments.quantized_weight(name, weight)
    if values.ndim != 2:
        raise ValueError(f"{name}[0] must have shape (out_features, in_features), got shape {values.shape}")
    if scales.shape != values.shape[:1]:
        raise ValueError(f"{name}[1] must have shape ({len(values)},), got shape {scales.shape}")
    if not np.isfinite(scales).all():
        raise ValueError(f"{name}[1] must be finite, got NaN or infinity")
    return values, scales


def converted(name: str, weight: NDArray, dtype: np.dtype) -> NDArray | QuantizedWeight:
    """A weight in `dtype`; ValueError if a finite number would become infinite in float16, or cannot be quantised."""
    if dtype == np.int8:
        return _quantized(name, weight)
    if dtype != np.float16:
        return weight.astype(dtype, copy=False)
    if weight.dtype.name == "bfloat16":
        weight = weight.astype(np.float32)  # whose conversion to float16 reports an overflow
    try:
        with np.errstate(over="raise"):
            return weight.astype(np.float16, copy=False)
    except FloatingPointError:
        largest = np.abs(weight[np.isfinite(weight)]).max()
        raise ValueError(
            f"{name} must be below 65520 in magnitude to become float16, got {largest:.6g}: use dtype 'bfloat16' or "
            f"'float32'"
        ) from None


def _quantized(name: str, weight: NDArray) -> QuantizedWeight:
    with np.errstate(over="ignore"):  # float64 may overflow: checked below
        weight = weight.astype(np.float32)
    largest = np.abs(weight).max(axis=1, initial=0)
    if not np.isfinite(largest).all():
        raise ValueError(f"{name} must be finite to be quantised, got NaN or infinity")
    scales = largest / np.float32(127)
    weight /= np.where(scales == 0, np.float32(1), scales)[:, np.newaxis]
    np.rint(weight, out=weight)
    # In a row of subnormal numbers the scale is rounded so coarsely that a quotient may exceed 127.
    np.clip(weight, -127, 127, out=weight)
    return QuantizedWeight(weight.astype(np.int8), scales)


def check(name: str, x: object, needed: tuple[int | None, ...]) -> NDArray:
    """An array of real numbers of this shape; None stands for any size but 0."""
    x = _arguments.adopted(name, x)
    if not isinstance(x, np.ndarray) or hasattr(x, "mask"):
        raise TypeError(f"{name} must be a plain numpy.ndarray, got {type(x).__name__}")
    if x.dtype.name not in _REALS or not x.dtype.isnative:
        raise TypeError(f"{name} must have dtype {', '.join(_REALS)} in native byte order, got dtype {x.dtype.str}")
    if x.ndim != len(needed) or any(
        size == 0 if need is None else size != need for size, need in zip(x.shape, needed, strict=True)
    ):
        raise ValueError(f"{name} must have shape {in_words(needed)}, got shape {x.shape}")
    return x


def in_words(needed: tuple[int | None, ...]) -> str:
    """A shape in words: an axis of any size is named by what it counts."""
    names = ("rows", "columns") if len(needed) == 2 else ("elements",) * len(needed)
    sizes = (name if need is None else str(need) for name, need in zip(names, needed, strict=True))
    shape = f"({', '.join(sizes)}{',' * (len(needed) == 1)})"
    return f"{shape}, none of them 0" if None in needed else shape
