"""What float16 cannot hold, told where it would be lost: sums beyond its largest number, 65504."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastattn._dtypes import BY_NAME

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn.models.embeddings import Embeddings
    from fastattn.nn import TransformerEncoder

LARGEST = BY_NAME["float16"].largest
_ADVICE = "dtype must be 'bfloat16' or 'float32' for this model"


def check_finite(dtype: str, *arrays: NDArray[np.float32]) -> None:
    """Raise for what a sum beyond float16 has left, in what became float32 then; other types end where that does."""
    if dtype != "float16":
        return
    for x in arrays:
        with np.errstate(invalid="ignore"):
            total = x.sum()  # not finite, if anything in x is not: a quarter of the time of looking at each
        if not np.isfinite(total):
            raise ValueError(
                f"hidden states must be finite, got NaN or infinity in float16, which ends at {LARGEST}: {_ADVICE}"
            )


def check_scores(encoder: TransformerEncoder, embeddings: Embeddings) -> None:
    """Raise for queries and keys that may be infinite, as an infinite score can leave a finite and wrong result.

    What a layer takes was normalised before. A normalised row has at most the length sqrt(H), which bounds each sum.
    """
    if encoder.dtype != np.float16:
        return
    norms = [embeddings, *(layer.norm2 for layer in encoder.layers[:-1])]
    for number, (norm, layer) in enumerate(zip(norms, encoder.layers, strict=True)):
        projection = layer.self_attn.in_proj
        rows = projection.weight[: 2 * norm.weight.size].astype(np.float32)
        fixed = rows @ norm.bias.astype(np.float32) + projection.bias[: len(rows)]
        rows *= norm.weight
        bounds = np.sqrt(np.einsum("ij,ij->i", rows, rows) * np.float32(norm.weight.size)) + np.abs(fixed)
        if bounds.max() >= LARGEST:
            raise ValueError(
                f"queries and keys of layer {number} must be below {LARGEST} in float16, got weights that let them "
                f"reach {bounds.max():.3g}: {_ADVICE}"
            )
