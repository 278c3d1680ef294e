"""Transformer layers: self-attention and feed-forward, each with its residual and normalisation; and stacks of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastattn.nn.attention import MultiHeadAttention, Workspace, judge_tokens
from fastattn.nn.weights import Entries, LayerNorm, RMSNorm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    from fastattn.cache import KVCache

NORMS = {"layer": LayerNorm, "rms": RMSNorm}
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")


class TransformerEncoderLayer:
    """x."""

    __slots__ = ("activation", "gate", "linear1", "linear2", "norm1", "norm2", "norm_first", "self_attn")

    def __init__(
        self, entries: Entries, num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, bias
    ) -> None:
        for name, x, table in (("activation", activation, ACTIVATIONS), ("norm", norm, NORMS)):
            if x not in table:
                raise ValueError(f"{name} must be one of {', '.join(table)}, got {x!r}")
        self.self_attn = MultiHeadAttention(entries.under("self_attn."), num_heads, num_kv_heads, bias)
        embed = self.self_attn.embed_dim
        hidden = entries.shape("linear2.weight", (embed, None))[1]
        gated = entries.shape("linear1.weight", (None, embed))[0] == 2 * hidden
        linear1 = entries.linear("linear1", (hidden * (1 + gated), embed), bias)
        self.gate, self.linear1 = (linear1.rows(0, hidden), linear1.rows(hidden, 2 * hidden)) if gated else (None, linear1)
        self.linear2 = entries.linear("linear2", (embed, hidden), bias)
        self.norm1 = NORMS[norm](entries.under("norm1."), embed, norm_eps, bias)
        self.norm2 = NORMS[norm](entries.under("norm2."), embed, norm_eps, bias)
        self.norm_first, self.activation = bool(norm_first), activation

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, NDArray],
        prefix: str = "",
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        activation: str = "relu",
        norm: str = "layer",
        norm_eps: float = 1e-5,
        norm_first: bool = False,
        bias: bool | None = True,
        dtype: DTypeLike | None = None,
    ) -> TransformerEncoderLayer:
        """Take the weights."""
        entries = Entries(mapping, prefix, dtype)
        layer = cls(entries, num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, bias)
        entries.judge_unread()
        return layer

    @property
    def dtype(self) -> np.dtype:
        """x."""
        return self.self_attn.dtype

    def __call__(
        self,
        x: NDArray,
        attn_mask: NDArray | None = None,
        *,
        cu_seqlens: NDArray | None = None,
        cache: KVCache | None = None,
        cos: NDArray | None = None,
        sin: NDArray | None = None,
        interleaved: bool = False,
        out: NDArray | None = None,
        num_threads: int | None = None,
        **options,
    ) -> NDArray:
        """x."""
        work = self.workspace(
            x, attn_mask=attn_mask, cu_seqlens=cu_seqlens, cos=cos, sin=sin, interleaved=interleaved,
            num_threads=num_threads, options=options,
        )  # fmt: skip
        return self.run(x, work, cache, out)

    def workspace(self, x: NDArray, *, cu_seqlens: NDArray | None, options: dict, **call) -> Workspace:
        """Room for x on its way through layers of this one's sizes."""
        judge_tokens("x", x, self.self_attn.embed_dim, cu_seqlens)
        if "return_lse" in options:
            raise TypeError("return_lse is an option of MultiHeadAttention only")
        widths = (self.hidden_dim,) * (1 if self.gate is None else 2)
        return Workspace(
            self.self_attn, x, widths, self.norm_first, cu_seqlens=cu_seqlens, options=options, **call
        )

    @property
    def hidden_dim(self) -> int:
        """Size of what lies between the two maps of the feed-forward."""
        return self.linear2.in_features

    def run(self, x: NDArray, work: Workspace, cache: KVCache | None, out: NDArray | None) -> NDArray:
        """The layer, in room that is there already; `out` may be x."""
        threads = work.num_threads
        if self.norm_first:
            out = self.self_attn.run(self.norm1(x, work.normed, threads), work, cache, x, out)
            return self._feed_forward(self.norm2(out, work.normed, threads), work, out)
        out = self.self_attn.run(x, work, cache, x, out)
        self.norm1(out, out, threads)
        self._feed_forward(out, work, out)
        return self.norm2(out, out, threads)

    def _feed_forward(self, x: NDArray, work: Workspace, out: NDArray) -> NDArray:
        """Added to what `out` has."""
        hidden, threads = work.hidden, work.num_threads
        if self.gate is None:
            self.linear1(x, self.activation, None, hidden, threads)
        else:
            self.linear1(x, None, None, hidden, threads)
            np.multiply(hidden, self.gate(x, self.activation, None, work.gate, threads), out=hidden)
        return self.linear2(hidden, None, out, out, threads)


class TransformerEncoder:
    """x."""

    __slots__ = ("layers", "norm")

    def __init__(self, entries: Entries, num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, bias) -> None:
        settings = (num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, bias)
        last = max(entries.numbers("layers."), default=0)
        self.layers = [TransformerEncoderLayer(entries.under(f"layers.{i}."), *settings) for i in range(last + 1)]
        final = entries.under("norm.")
        self.norm = NORMS[norm](final, self.layers[0].self_attn.embed_dim, norm_eps, bias) if "weight" in final else None

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, NDArray],
        prefix: str = "",
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        activation: str = "relu",
        norm: str = "layer",
        norm_eps: float = 1e-5,
        norm_first: bool = False,
        bias: bool | None = True,
        dtype: DTypeLike | None = None,
    ) -> TransformerEncoder:
        """Take the weights."""
        entries = Entries(mapping, prefix, dtype)
        encoder = cls(entries, num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, bias)
        entries.judge_unread()
        return encoder

    @property
    def dtype(self) -> np.dtype:
        """x."""
        return self.layers[0].dtype

    def __call__(
        self,
        x: NDArray,
        attn_mask: NDArray | None = None,
        *,
        cu_seqlens: NDArray | None = None,
        caches: Sequence[KVCache] | None = None,
        cos: NDArray | None = None,
        sin: NDArray | None = None,
        interleaved: bool = False,
        out: NDArray | None = None,
        num_threads: int | None = None,
        **options,
    ) -> NDArray:
        """x."""
        if caches is None:
            caches = [None] * len(self.layers)
        elif len(caches) != len(self.layers):
            raise ValueError(f"caches must be one for each layer, {len(self.layers)}, got {len(caches)}")
        work = self.layers[0].workspace(
            x, attn_mask=attn_mask, cu_seqlens=cu_seqlens, cos=cos, sin=sin, interleaved=interleaved,
            num_threads=num_threads, options=options,
        )  # fmt: skip
        x = self.layers[0].run(x, work, caches[0], out)
        for layer, cache in zip(self.layers[1:], caches[1:], strict=True):
            layer.run(x, work, cache, x)
        return x if self.norm is None else self.norm(x, x, num_threads)
