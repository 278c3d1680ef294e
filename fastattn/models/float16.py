"""Errors for overflow in float16: sums beyond its largest number, 65504."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastattn._dtypes import BY_NAME
from fastattn.weights import PackedWeight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fastattn.models.embeddings import Embeddings
    from fastattn.nn import TransformerEncoder
    from fastattn.nn.weights import LayerNorm, Linear, RMSNorm

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

    What a layer projects is normalised, or a projection of that, so the norm of a row is at most sqrt(H) before weight
    and bias: this bounds each sum. Rotation may move all of a pair into one of its two.
    """
    if encoder.dtype != np.float16:
        return
    first = _Normed(embeddings.weight, embeddings.bias, embeddings.projection)
    before = [first, *(_Normed(layer.norm2.weight, _bias(layer.norm2)) for layer in encoder.layers[:-1])]
    for number, (normed, layer) in enumerate(zip(before, encoder.layers, strict=True)):
        if layer.norm_first and layer.norm1 is not None:
            normed = _Normed(layer.norm1.weight, _bias(layer.norm1))
        attention = layer.self_attn
        if attention.q_norm is not None and attention.k_norm is not None:
            continue  # these bound them, whatever the sums are, which are taken in float32
        _check_layer(
            number, normed, attention.in_proj, (attention.num_heads + attention.num_kv_heads) * attention.head_dim
        )


class _Normed(NamedTuple):
    """Where the input of a layer's projections comes from: weight and bias of a norm, and a projection after it."""

    weight: NDArray
    bias: NDArray | None
    projection: tuple[NDArray, NDArray | None] | None = None


def _bias(norm: LayerNorm | RMSNorm) -> NDArray | None:
    return getattr(norm, "bias", None)


def _check_layer(number: int, normed: _Normed, projection: Linear, count: int) -> None:
    weight = projection.weight.unpack() if isinstance(projection.weight, PackedWeight) else projection.weight
    rows = weight[:count].astype(np.float32)
    fixed = np.zeros(count, np.float32) if projection.bias is None else projection.bias[:count].astype(np.float32)
    if normed.projection is not None:
        matrix, bias = normed.projection
        fixed = fixed if bias is None else rows @ bias + fixed
        rows = rows @ matrix
    if normed.bias is not None:
        fixed = rows @ normed.bias.astype(np.float32) + fixed
    rows = rows * normed.weight
    bounds = np.sqrt(np.einsum("ij,ij->i", rows, rows) * np.float32(normed.weight.size)) + np.abs(fixed)
    if not bounds.max() < LARGEST:  # NaN is no bound
        raise ValueError(
            f"queries and keys of layer {number} must be below {LARGEST} in float16, got weights that let them "
            f"reach {bounds.max():.3g}: {_ADVICE}"
        )
