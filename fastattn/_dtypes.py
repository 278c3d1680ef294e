"""The types that arrays may be stored in: one row each, read by every module that names a type.

A new type is a row here and one in the kernels' list of types. int8 is quantised: only caches and weights may have it,
and store it with scales.
"""

from __future__ import annotations

from typing import NamedTuple


class Stored(NamedTuple):
    """A type in which arrays may be stored."""

    name: str  # of the NumPy dtype
    kernels: str  # its name in _core/kernels/abi/types.h
    itemsize: int  # bytes of an element
    computed_in: str  # the type of sums
    tensor: str | None  # name in safetensors, if models may be stored in it
    activations: str | None  # dtype of hidden states with such weights, if models may be loaded in it
    package: str | None = None  # that adds the type to NumPy
    largest: float = 0.0  # finite number
    wider: str = ""  # for error messages: types that hold larger numbers


TYPES = (
    Stored("float32", "F32", 4, "float32", "F32", "float32", largest=3.4e38, wider="'float64'"),
    Stored("float64", "F64", 8, "float64", "F64", None, largest=1.8e308),
    Stored(
        "float16", "F16", 2, "float32", "F16", "float16",
        largest=65504, wider="'bfloat16' or 'float32' (or 'float64' beyond 3.4e38)",
    ),
    Stored(
        "bfloat16", "BF16", 2, "float32", "BF16", "bfloat16", package="ml_dtypes",
        largest=3.39e38, wider="'float32' (or 'float64' beyond 3.4e38)",
    ),
    Stored("int8", "I8", 1, "float32", None, "bfloat16"),
)  # fmt: skip

BY_NAME = {row.name: row for row in TYPES}

#: The types of arguments in general; the others are for caches and weights alone.
REALS = tuple(row for row in TYPES if row.name != "int8")


def listed(rows: tuple[Stored, ...], last: str = " or ") -> str:
    """Names for a sentence: "float32, float64 or float16"."""
    *names, end = (row.name for row in rows)
    return ", ".join(names) + last + end
