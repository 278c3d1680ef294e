"""The sparse and many-vector heads of BGE-M3, in files of their own beside the encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastattn.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SPARSE, VECTORS = "sparse_linear", "colbert_linear"


class Head(NamedTuple):
    """A linear layer of hidden states."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]


def read_head(folder: Path, name: str, hidden: int) -> Head | None:
    """The head of that name; None if the folder has none, ValueError if it is a pickle."""
    file = f"{name}.safetensors"
    if not (folder / file).exists():
        if (folder / f"{name}.pt").exists():
            raise ValueError(
                f"{folder} must hold {file}, got {name}.pt, a pickle, which is not read: write it by "
                f"safetensors.torch.save_file(torch.load({f'{name}.pt'!r}, weights_only=True), {file!r})"
            )
        return None
    checkpoint = Checkpoint(folder, file)
    rows = 1 if name == SPARSE else checkpoint.shape("weight", 2)[0]
    weight, bias = checkpoint.take("weight", (rows, hidden)), checkpoint.take("bias", (rows,))
    checkpoint.check_rest("")
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def has_head(folder: Path, name: str) -> bool:
    """Whether there is a head of that name, in any form."""
    return any((folder / f"{name}.{ending}").exists() for ending in ("safetensors", "pt"))
