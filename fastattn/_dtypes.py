"""The types that arrays may be stored in: a row for each, which every module reads that names a type.

A new type is a row here and one in the kernels' list of types. int8 is the one that is quantised: caches and weights
store it with scales, and no other array may have it.
"""

from __future__ import annotations

from typing import NamedTuple


class Stored(NamedTuple):
    """How an array may store its elements."""

    name: str  # NumPy's or, once its package is imported, ml_dtypes'
    kernels: str  # what _core/kernels/abi/types.h calls it
    itemsize: int  # bytes of an element
    computed_in: str  # the type that sums are made in
    tensor: str | None  # what safetensors calls it, where models may be stored in it
    activations: str | None  # what a model computes in whose weights have it, where models may be loaded in it
    package: str | None = None  # which brings the type to NumPy
    largest: float = 0.0  # finite number
    wider: str = ""  # what to take for larger ones


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

#: Those of every array that a function takes; the others are for caches and weights alone.
REALS = tuple(row for row in TYPES if row.name != "int8")


def listed(rows: tuple[Stored, ...], last: str = " or ") -> str:
    """Names for a sentence: "float32, float64 or float16"."""
    *names, end = (row.name for row in rows)
    return ", ".join(names) + last + end
