"""How the layers of a model attend, as config.json says it: rotary embedding, windows, ALiBi, causal or not.

Each architecture names one of the readers below. They only read: nothing is allocated by the sizes they find.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.models.fields import counted, flag, mapping, one_of, positive
from fastattn.models.position_bias import Buckets
from fastattn.models.rotary import Rotary, scaled

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class LayerKind(NamedTuple):
    """What distinguishes the attention of a layer."""

    window: int | None = None  # largest distance of a key; None: unbounded
    rotary: Rotary | None = None


class Attention(NamedTuple):
    """How the layers attend."""

    kinds: tuple[LayerKind, ...] = (LayerKind(),)  # of the first layers; they repeat from there
    is_causal: bool = False
    scale: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    alibi: bool = False
    buckets: Buckets | None = None  # of relative position biases

    @property
    def by_distance(self) -> bool:
        """Whether it matters how many positions lie between two tokens."""
        return self.alibi or self.buckets is not None or any(kind != LayerKind() for kind in self.kinds)


# (path of config.json, its fields, our fields read so far) -> Attention
Reader = "Callable[[Path, dict[str, Any], dict[str, Any]], Attention]"

FULL, SLIDING = "full_attention", "sliding_attention"


def learned(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
    """The positions are in the embeddings, not in the attention."""
    del path, raw, values
    return Attention()


def alibi(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
    """ALiBi in both directions (Jina v2)."""
    del path, raw, values
    return Attention(alibi=True)


def mpnet(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
    """Biases of 32 buckets, beside the positions in the embeddings; transformers' model takes no other number."""
    del path, raw, values
    return Attention(buckets=Buckets(32, 128))


# The largest distance that has a bucket of its own: bounds the memory of the table, which has a bias for each.
MOST_DISTANCE = 1 << 16


def t5(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
    """Biases of buckets instead of positions; scores are not scaled."""
    del values
    where = f"{path}: relative_attention_max_distance"
    count = counted(f"{path}: relative_attention_num_buckets", raw.get("relative_attention_num_buckets", 32), 4)
    farthest = counted(where, raw.get("relative_attention_max_distance", 128), count // 4 + 1)
    if farthest > MOST_DISTANCE:
        raise ValueError(f"{where} must be at most {MOST_DISTANCE}, got {farthest}")
    return Attention(scale=1.0, buckets=Buckets(count, farthest))


def rotary(theta: float, *, is_causal: bool = False) -> Reader:
    """A reader for one rotary embedding in all layers; `theta` is the default of rope_theta."""

    def read(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
        names = raw.get("layer_types")
        if names is not None and (not isinstance(names, list) or any(name != FULL for name in names)):
            raise ValueError(f"{path}: layer_types must be {FULL} for every layer, got {names!r:.80}")
        kind = LayerKind(None, _rotary(path, raw, values, "rope_theta", theta))
        return Attention((kind,), is_causal)

    return read


def of_own_code(theta: float) -> Reader:
    """The same by the field of NomicBERT's and Jina v3's own code, rotary_emb_base; or by transformers' fields."""

    def read(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
        return Attention((LayerKind(None, _rotary(path, raw, values, "rotary_emb_base", theta)),))

    return read


def modernbert(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
    """Layers without a window and with one, each with an own base."""
    half = counted(f"{path}: local_attention", raw.get("local_attention", 128)) // 2
    kinds = {
        FULL: LayerKind(None, _rotary(path, raw, values, "global_rope_theta", 160_000.0, FULL)),
        SLIDING: LayerKind(half, _rotary(path, raw, values, "local_rope_theta", 10_000.0, SLIDING)),
    }
    period = counted(f"{path}: global_attn_every_n_layers", raw.get("global_attn_every_n_layers", 3))
    return Attention(_kinds(path, raw, values, kinds, period, full=0))


def gemma3(path: Path, raw: dict[str, Any], values: dict[str, Any]) -> Attention:
    """As in ModernBERT, but the last layer of a period has no window, and attention may be causal."""
    bidirectional = flag(f"{path}: use_bidirectional_attention", raw.get("use_bidirectional_attention"))
    window = counted(f"{path}: sliding_window", raw.get("sliding_window", 4096))
    # In transformers a causal window counts the token itself; one of both sides is halved first.
    reach = window // 2 if bidirectional else window - 1
    kinds = {
        FULL: LayerKind(None, _rotary(path, raw, values, "rope_theta", 1_000_000.0, FULL)),
        SLIDING: LayerKind(reach, _rotary(path, raw, values, "rope_local_base_freq", 10_000.0, SLIDING)),
    }
    period = counted(f"{path}: sliding_window_pattern", raw.get("sliding_window_pattern") or 6)
    scalar = positive(f"{path}: query_pre_attn_scalar", raw.get("query_pre_attn_scalar", 256))
    layers = _kinds(path, raw, values, kinds, period, full=period - 1)
    return Attention(layers, is_causal=not bidirectional, scale=1 / math.sqrt(scalar))


def _kinds(
    path: Path, raw: dict[str, Any], values: dict[str, Any], kinds: dict[str, LayerKind], period: int, full: int
) -> tuple[LayerKind, ...]:
    """The kind of each layer by layer_types or, without it, of one period in which layer `full` has no window."""
    names = raw.get("layer_types")
    if names is None:
        # No more than the layers that there are: either field may be any number.
        count = min(period, values["layers"], MOST_LAYERS)
        return tuple(kinds[FULL if i == full else SLIDING] for i in range(count))
    if not isinstance(names, list) or len(names) != values["layers"]:
        raise ValueError(f"{path}: layer_types must be a list of one name for each layer, got {names!r:.80}")
    return tuple(kinds[one_of(f"{path}: layer_types", name, kinds)] for name in names)


# The number of layers up to which the kind of each is listed before the tensors show how many there are.
MOST_LAYERS = 1000


def _rotary(
    path: Path, raw: dict[str, Any], values: dict[str, Any], theta_field: str, default: float, part: str | None = None
) -> Rotary:
    """A rotary embedding from rope_parameters (of the layers `part`) or, in former files, rope_scaling and the base."""
    where, size = f"{path}: rope_parameters", values["head_dim"]
    given = mapping(where, raw.get("rope_parameters"))
    if part is not None and given:
        where = f"{where}.{part}"
        given = mapping(where, given.get(part))
    if "rope_parameters" not in raw or raw["rope_parameters"] is None:
        where = f"{path}: rope_scaling"
        # Gemma's scaling is that of the layers without a window.
        given = {} if part == SLIDING else mapping(where, raw.get("rope_scaling"))
    theta = given.get("rope_theta", raw.get(theta_field))
    theta = positive(f"{path}: {theta_field}", default if theta is None else theta)
    if size % 2:
        raise ValueError(f"{path}: the size of a head must be even with a rotary embedding, got {size}")
    return scaled(where, given, size, theta, values["table_rows"])


def alibi_slopes(heads: int) -> NDArray[np.float32]:
    """The slopes of ALiBi: powers of 2^(-8 / n), for the largest power of two n, then every other one of 2n's."""
    power = 1 << (heads.bit_length() - 1)
    slopes = 2.0 ** (-8 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4 / power * np.arange(1, 2 * (heads - power), 2))
    return np.concatenate([slopes, between]).astype(np.float32)
