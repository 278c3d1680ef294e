"""Errors for overflow in float16: sums beyond its largest number, 65504."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastattn._dtypes import BY_NAME
from fastattn.weights import PackedWeight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn.models.embeddings import Embeddings
    from fastattn.nn import TransformerEncoder

LARGEST = BY_NAME["float16"].largest
_ADVICE = "use dtype 'bfloat16' or 'float32' for this model"


def check_finite(dtype: str, *arrays: NDArray[np.float32]) -> None:
    """Raise for hidden states that overflowed in float16; the other types have the range of float32."""
    if dtype != "float16":
        return
    for x in arrays:
        with np.errstate(invalid="ignore"):
            total = x.sum()  # not finite if any element is not; takes a quarter of the time of isfinite(x).all()
        if not np.isfinite(total):
            raise ValueError(
                f"hidden states must be finite, got NaN or infinity in float16, whose maximum is {LARGEST}: {_ADVICE}"
            )


def check_scores(encoder: TransformerEncoder, embeddings: Embeddings) -> None:
    """Raise for queries and keys that may overflow, as an infinite score can give a finite but wrong result.

    The input of a layer is normalised, so the norm of a row is at most sqrt(H) before weight and bias: this bounds each
    sum.
    """
    if encoder.dtype != np.float16:
        return
    norms = [embeddings, *(layer.norm2 for layer in encoder.layers[:-1])]
    for number, (norm, layer) in enumerate(zip(norms, encoder.layers, strict=True)):
        projection = layer.self_attn.in_proj
        weight = projection.weight.unpack() if isinstance(projection.weight, PackedWeight) else projection.weight
        rows = weight[: 2 * norm.weight.size].astype(np.float32)
        fixed = rows @ norm.bias.astype(np.float32) + projection.bias[: len(rows)]
        rows *= norm.weight
        bounds = np.sqrt(np.einsum("ij,ij->i", rows, rows) * np.float32(norm.weight.size)) + np.abs(fixed)
        if bounds.max() >= LARGEST:
            raise ValueError(
                f"queries and keys of layer {number} must be below {LARGEST} in float16, got weights that let them "
                f"reach {bounds.max():.3g}: {_ADVICE}"
            )
