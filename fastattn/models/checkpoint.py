"""Tensors of *.safetensors files, mapped into memory: only what is read takes memory."""

from __future__ import annotations

import json
import math
import mmap
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from fastattn import _arguments
from fastattn._dtypes import BY_NAME, TYPES
from fastattn.models.folders import existing, inside, read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# Dtype in the file -> our dtype: of weights, and of integers.
REALS = {row.tensor: row.name for row in TYPES if row.tensor}

INTEGERS = {"I32": "int32", "I64": "int64"}

# Endings of names in old checkpoints, converted from TensorFlow -> their present ones.
_RENAMED = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class _Entry(NamedTuple):
    path: Path
    file: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Checkpoint:
    """The tensors of a folder by name, from one file or from the shards that an index lists.

    The arrays are read-only views of the mapped files (the library's own would be copies). The files must not change
    while any of them is in use.
    """

    def __init__(self, folder: Path, name: str = "model.safetensors") -> None:
        self.folder = folder
        self._entries: dict[str, _Entry] = {}
        self._taken: set[str] = set()
        index = folder / f"{name}.index.json"
        sharded = index.exists() and not (folder / name).exists()
        for path in _shards(index) if sharded else [folder / name]:
            self._entries |= _entries(existing(path))

    def prefix(self, name: str) -> str:
        """The prefix of tensor names with which `name` exists: "", or "bert." ."""
        found = [entry.removesuffix(name) for entry in self._entries if f".{entry}".endswith(f".{name}")]
        if len(found) != 1:
            raise ValueError(f"{self.folder} must hold the tensor {name} once, got {len(found)} of them")
        return found[0]

    def take(self, name: str, shape: tuple[int, ...], stored: Mapping[str, str] = REALS) -> NDArray:
        """The tensor of that name; ValueError unless it has that shape and one of these dtypes."""
        if name not in self._entries:
            raise ValueError(f"{self.folder} must hold the tensor {name} of shape {shape}, got none of that name")
        entry = self._entries[name]
        if entry.shape != shape:
            raise ValueError(f"{entry.path}: the tensor {name} must have shape {shape}, got {entry.shape}")
        if entry.dtype not in stored:
            raise ValueError(f"{entry.path}: the tensor {name} must be one of {', '.join(stored)}, got {entry.dtype}")
        self._taken.add(name)
        dtype = stored[entry.dtype]
        if dtype in BY_NAME:
            dtype = _arguments.storage_dtype(f"{entry.path}: the tensor {name}", dtype)
        x = np.frombuffer(entry.file, dtype, math.prod(shape), entry.offset).reshape(shape)
        return np.require(x, requirements="A")  # copies only if an odd header length misaligns the tensor

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor of that many axes, for `take`; ValueError if there is none of that name."""
        shape = self._entries[name].shape if name in self._entries else None
        if shape is None or len(shape) != axes:
            what, got = {1: "a vector", 2: "a matrix"}[axes], shape or "none of that name"
            raise ValueError(f"{self.folder} must hold the tensor {name}, {what}, got {got}")
        if 0 in shape:  # whose other sizes need no bytes, and may be any number
            raise ValueError(f"{self._entries[name].path}: the tensor {name} must not be empty, got shape {shape}")
        return shape

    def check_rest(self, prefix: str) -> None:
        """Raise for a tensor with that prefix that was not taken: it would be ignored silently."""
        for name, entry in self._entries.items():
            if name.startswith(prefix) and name not in self._taken:
                raise ValueError(f"{entry.path} must hold no tensor {name}, which config.json does not account for")

    def unread(self) -> list[str]:
        """Names of the tensors that were not taken."""
        return [name for name in self._entries if name not in self._taken]

    def forget_pages(self) -> None:
        """Release the memory of pages read so far: they are read again from the system's cache if needed."""
        for file in {id(entry.file): entry.file for entry in self._entries.values()}.values():
            if hasattr(mmap, "MADV_DONTNEED"):
                file.madvise(mmap.MADV_DONTNEED)


def _shards(index: Path) -> list[Path]:
    names = read_json(index, dict).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
        raise ValueError(f"{index}: weight_map must be an object of file names, got {names!r:.80}")
    return [inside(f"{index}: weight_map", index.parent, name) for name in sorted(set(names.values()))]


def _entries(path: Path) -> dict[str, _Entry]:
    """{name: entry}. The library checks the file; offsets, which it does not expose, are read from the header."""
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} must be a complete safetensors file: {error}") from error
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    start = 8 + int.from_bytes(mapped[:8], "little")
    header: dict[str, Any] = json.loads(mapped[8:start])
    header.pop("__metadata__", None)
    names = {_present_name(name): name for name in header}
    if len(names) < len(header):
        former = next(name for name in header if names[_present_name(name)] != name)
        raise ValueError(f"{path} must hold the tensor {_present_name(former)} once, got {former} as well")
    return {
        present: _Entry(path, mapped, x["dtype"], tuple(x["shape"]), start + x["data_offsets"][0])
        for present, x in zip(names, header.values(), strict=True)
    }


def _present_name(name: str) -> str:
    ending = ".".join(name.split(".")[-2:])
    return name.removesuffix(ending) + _RENAMED.get(ending, ending)
