"""Weights with an adapter for each of several tasks (Jina v3): one of them is merged when the weights are read.

An adapter adds alpha / rank times the product of two narrow matrices to the matrix of each linear layer and embedding:
Hu et al., "LoRA" (2021). The tensors' names are those of torch's parametrizations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.checkpoint import REALS, Checkpoint
from fastattn.models.fields import counted, one_of, positive
from fastattn.models.folders import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

# What follows the name of a layer.
_ORIGINAL, _A, _B = (f".parametrizations.weight.{part}" for part in ("original", "0.lora_A", "0.lora_B"))

# Rows of a matrix that are adapted at a time: sums are in float64, and a vocabulary has many.
_ROWS = 4096


class _Adapter(NamedTuple):
    """The adapter of a task: its number among so many, and its scale."""

    number: int
    count: int
    rank: int
    scale: float


def read_checkpoint(folder: Path, task: str | None) -> Checkpoint:
    """The tensors of a folder, with the adapter of a task; ValueError names the field if there is no such task."""
    path = folder / "config.json"
    raw = read_json(path, dict)
    tasks = raw.get("lora_adaptations")
    if tasks is None and task is None:
        return Checkpoint(folder)
    if not isinstance(tasks, list) or not tasks or not all(isinstance(name, str) for name in tasks):
        raise ValueError(f"{path}: lora_adaptations must be a list of the names of tasks, got {tasks!r:.80}")
    return _TaskCheckpoint(folder, None if task is None else _adapter(path, raw, tasks, task))


def _adapter(path: Path, raw: dict[str, Any], tasks: list[str], task: str) -> _Adapter:
    one_of("task", task, dict.fromkeys(tasks))
    rank = counted(f"{path}: lora_rank", raw.get("lora_rank"))
    return _Adapter(tasks.index(task), len(tasks), rank, positive(f"{path}: lora_alpha", raw.get("lora_alpha")) / rank)


class _TaskCheckpoint(Checkpoint):
    """A checkpoint whose weights have an adapter for each task, of which one is merged, or none."""

    def __init__(self, folder: Path, adapter: _Adapter | None) -> None:
        super().__init__(folder)
        self._adapter = adapter
        self._entries = {
            f"{name.removesuffix(_ORIGINAL)}.weight" if name.endswith(_ORIGINAL) else name: entry
            for name, entry in self._entries.items()
        }
        # Those that are not merged are not missed.
        self._taken |= {name for name in self._entries if name.endswith((_A, _B))}

    def take(self, name: str, shape: tuple[int, ...], stored: Mapping[str, str] = REALS) -> NDArray:
        """The tensor of that name, a copy if an adapter is merged into it."""
        x = super().take(name, shape, stored)
        layer = name.removesuffix(".weight")
        if self._adapter is None or layer + _A not in self:
            return x
        # A linear layer computes (W + B A) x, an embedding looks up a row of W + A B.
        names = (layer + _A, layer + _B) if layer.endswith("embeddings") else (layer + _B, layer + _A)
        number, count, rank, scale = self._adapter
        shapes = (count, shape[0], rank), (count, rank, shape[1])
        left, right = (
            Checkpoint.take(self, *both)[number].astype(np.float64) for both in zip(names, shapes, strict=True)
        )
        merged = np.empty(shape, np.float32)
        for begin in range(0, len(x), _ROWS):
            rows = slice(begin, begin + _ROWS)
            merged[rows] = x[rows].astype(np.float64) + scale * (left[rows] @ right)
        return merged
