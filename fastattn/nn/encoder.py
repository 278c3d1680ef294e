"""Transformer encoder layers (self-attention, feed-forward, residuals, normalisation) and stacks of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastattn import _arguments
from fastattn.nn.attention import MultiHeadAttention, Workspace
from fastattn.nn.weights import Entries, checked_norm, chosen

if TYPE_CHECKING:
    from typing import Any, Unpack

    from numpy.typing import DTypeLike, NDArray

    from fastattn._typing import Array, Integers, LayerOptions, Out
    from fastattn.cache import KVCache

# What layers may do differently, each by its own options.
PER_LAYER = frozenset(
    {"alibi_slopes", "cos", "interleaved", "position_bias", "scale", "sin", "sinks", "softcap", "window"}
)


class TransformerEncoderLayer:
    """Self-attention and a feed-forward network, each with a residual connection and normalisation.

    Made by `from_state_dict`. Letters as in `MultiHeadAttention`; F is the hidden size of the feed-forward network::

        post-norm:  x = norm1(x + self_attn(x))       pre-norm:  x = x + self_attn(norm1(x))
                    x = norm2(x + feed_forward(x))               x = x + feed_forward(norm2(x))

        with norms after both in pre-norm, too (Gemma):          x = x + post_norm1(self_attn(norm1(x)))
                                                                 x = x + post_norm2(feed_forward(norm2(x)))

        feed_forward(x) = linear2(activation(linear1(x)))
        gated (SwiGLU with silu, GeGLU with gelu): linear2(activation(gate(x)) * linear1(x))

    Attributes
    ----------
    self_attn : MultiHeadAttention
    linear1, linear2, gate : Linear
        Each with `weight` and `bias`. `gate` is None if the feed-forward network is not gated, or if its weight is
        packed into that of `linear1`.
    gated : bool
    norm1, norm2, post_norm1, post_norm2 : LayerNorm or RMSNorm
        With `weight`, `eps` and, for LayerNorm, `bias`. `norm1` may be None in pre-norm layers; `post_norm1` and
        `post_norm2` are None in most.
    activation : str
    norm_first : bool
        Pre-norm.
    dtype : dtype
        Dtype that inputs should have: that of the weights, float32 for quantised ones.

    Notes
    -----
    torch.nn.TransformerEncoderLayer. For its arguments ``src_mask`` and ``src_key_padding_mask`` see the table in
    `MultiHeadAttention`: here a bool mask is True where a token may attend.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.nn import TransformerEncoderLayer
    >>> rng = np.random.default_rng(0)
    >>> weights = {
    ...     "self_attn.in_proj_weight": rng.normal(size=(96, 32)),
    ...     "self_attn.out_proj.weight": rng.normal(size=(32, 32)),
    ...     "linear1.weight": rng.normal(size=(64, 32)),
    ...     "linear2.weight": rng.normal(size=(32, 64)),
    ...     "norm1.weight": np.ones(32),
    ...     "norm2.weight": np.ones(32),
    ... }
    >>> layer = TransformerEncoderLayer.from_state_dict(weights, num_heads=4, bias=False, dtype="float32")
    >>> layer(np.ones((2, 10, 32), np.float32)).shape
    (2, 10, 32)
    """

    __slots__ = (
        "activation", "gate", "gated", "linear1", "linear2", "norm1", "norm2", "norm_first", "post_norm1", "post_norm2",
        "self_attn",
    )  # fmt: skip

    def __init__(
        self,
        entries: Entries,
        num_heads,
        num_kv_heads,
        activation,
        norm,
        norm_eps,
        norm_first,
        attention_norm,
        bias,
        like=None,
    ) -> None:
        self.activation = chosen("activation", activation, _arguments.ACTIVATIONS)
        norm, norm_eps = checked_norm(norm, norm_eps)
        self.norm_first = _arguments.flag("norm_first", norm_first)
        if not _arguments.flag("attention_norm", attention_norm) and not self.norm_first:
            raise ValueError("attention_norm must be True unless norm_first is True, got False")
        # Layers that share a workspace have the same sizes.
        sizes = (None,) * 4 if like is None else like.sizes
        attention = MultiHeadAttention(
            entries.under("self_attn."), num_heads, num_kv_heads, bias, sizes[:2], (norm, norm_eps)
        )
        embed = attention.embed_dim
        hidden = entries.array("linear2.weight", (embed, sizes[2])).shape[1]
        gated = len(entries.array("linear1.weight", (sizes[3], embed))) == 2 * hidden
        self.self_attn = attention
        self.gated = gated
        if gated:
            self.linear1, self.gate = entries.gated("linear1", (2 * hidden, embed), bias)
        else:
            self.linear1, self.gate = entries.linear("linear1", (hidden, embed), bias), None
        self.linear2 = entries.linear("linear2", (embed, hidden), bias)
        wanted = {
            "norm1": attention_norm,
            "norm2": True,
            "post_norm1": self.norm_first and "post_norm1.weight" in entries,
            "post_norm2": self.norm_first and "post_norm2.weight" in entries,
        }
        self.norm1, self.norm2, self.post_norm1, self.post_norm2 = (
            entries.norm(name, norm, embed, norm_eps, bias) if wanted[name] else None for name in wanted
        )

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, Any],
        prefix: str = "",
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        activation: str = "relu",
        norm: str = "layer",
        norm_eps: float = 1e-5,
        norm_first: bool = False,
        attention_norm: bool = True,
        bias: bool | None = True,
        dtype: DTypeLike | None = None,
        pack: bool = True,
    ) -> TransformerEncoderLayer:
        """Make the layers from a state dict with PyTorch's names.

        Parameters
        ----------
        mapping : mapping of str to ndarray
            ``self_attn.`` and what `MultiHeadAttention.from_state_dict` reads; ``linear1.weight`` (F, E), or (2 F, E)
            if gated, where the activation is applied to the outputs of the first F rows; ``linear2.weight`` (E, F);
            ``norm1.weight`` and ``norm2.weight`` (E,); in pre-norm perhaps ``post_norm1.weight`` and
            ``post_norm2.weight`` (E,). Each of these has a ``bias``, except RMS norms.
        prefix : str
            Prefix of the names in the mapping. Every entry that has it must belong to the layers.
        num_heads, num_kv_heads : int
            As in `MultiHeadAttention.from_state_dict`.
        activation : {"relu", "gelu", "gelu_tanh", "silu"}
        norm : {"layer", "rms"}
        norm_eps : float
        norm_first : bool
            Pre-norm.
        attention_norm : bool
            With False, a pre-norm layer has no ``norm1``: its input is normalised already.
        bias, dtype, pack
            As in `MultiHeadAttention.from_state_dict`; weights of norms are converted like biases.

        Raises
        ------
        TypeError, ValueError
            A parameter is invalid; an entry is missing, unknown, or of the wrong type or shape: the message gives its
            full name.
        """
        entries = Entries(mapping, prefix, dtype, pack)
        layer = cls(entries, num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, attention_norm, bias)
        entries.check_rest()
        return layer

    @property
    def dtype(self) -> np.dtype:  # noqa: D102 (described above)
        return self.self_attn.dtype

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(E, H * D, F, F or 2 F if gated)."""
        hidden = self.linear2.stored.shape[1]
        return *self.self_attn.out_proj.stored.shape, hidden, hidden * (1 + self.gated)

    def __call__(
        self,
        x: Array,
        attn_mask: Array | None = None,
        *,
        cu_seqlens: Integers | None = None,
        cache: KVCache | None = None,
        cos: Array | None = None,
        sin: Array | None = None,
        interleaved: bool = False,
        out: Out | None = None,
        num_threads: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> Out:
        """Compute the layer.

        Parameters
        ----------
        x : ndarray, shape (..., S, E), or (T, E) with `cu_seqlens`
            float32, float64, float16 or bfloat16; float64 if the weights are. The result has its dtype.
        attn_mask, cu_seqlens, cache, cos, sin, interleaved, **options
            As when calling `MultiHeadAttention` for self-attention, but without `return_lse`.
        out : ndarray, shape of x, optional
            Output array; it may be x itself.
        num_threads : int, optional
            Maximum number of threads; see `fastattn.set_num_threads`.

        Returns
        -------
        ndarray, shape (..., S, E), or (T, E)

        Raises
        ------
        TypeError, ValueError
            As the functions it calls. `out` and the cache are then left unchanged.
        """
        x, target = _arguments.real_array("x", x), _arguments.array_to_write("out", out)
        work = self.workspace(
            x, attn_mask=attn_mask, cu_seqlens=cu_seqlens, cos=cos, sin=sin, interleaved=interleaved,
            num_threads=num_threads, options=options,
        )  # fmt: skip
        with work.appending({} if cache is None else {"cache": cache}):
            y = self.run(x, work, cache=cache, out=target)
        return y if out is None else out

    def workspace(self, x: NDArray, **call) -> Workspace:
        """A workspace to take x through layers of these sizes."""
        if "return_lse" in call["options"]:
            raise TypeError(f"return_lse must not be given to layers, got {call['options']['return_lse']!r}")
        size = self.sizes[2]
        return Workspace(self.self_attn, "x", x, (size,) * (1 if self.gate is None else 2), self.norm_first, **call)

    def run(self, x: NDArray, work: Workspace, *, cache: KVCache | None, out: NDArray | None) -> NDArray:
        """Compute the layer in a workspace; `out` may be x."""
        threads = work.num_threads
        if self.norm_first:
            return self._run_pre_norm(x, work, cache, out)
        out = self.self_attn.run(x, work, cache=cache, residual=x, out=out)
        self.norm1(out, out=out, num_threads=threads)
        return self.norm2(self._feed_forward(out, work, out, out), out=out, num_threads=threads)

    def _run_pre_norm(self, x: NDArray, work: Workspace, cache: KVCache | None, out: NDArray | None) -> NDArray:
        threads, normed = work.num_threads, work.normed
        attended = x if self.norm1 is None else self.norm1(x, out=normed, num_threads=threads)
        if self.post_norm1 is None:
            out = self.self_attn.run(attended, work, cache=cache, residual=x, out=out)
        else:
            self.self_attn.run(attended, work, cache=cache, residual=None, out=normed)
            out = np.add(x, self.post_norm1(normed, out=normed, num_threads=threads), out=out)
        self.norm2(out, out=normed, num_threads=threads)
        if self.post_norm2 is None:
            return self._feed_forward(normed, work, out, out)
        self._feed_forward(normed, work, None, normed)
        return np.add(out, self.post_norm2(normed, out=normed, num_threads=threads), out=out)

    def _feed_forward(self, x: NDArray, work: Workspace, residual: NDArray | None, out: NDArray) -> NDArray:
        """Write the feed-forward network's result for x, plus `residual`, to `out`, which may be either."""
        hidden, threads = work.hidden[0], work.num_threads
        if self.gate is None:
            self.linear1(x, activation=self.activation, out=hidden, num_threads=threads)  # packed: gated, too
        else:
            self.linear1(x, out=hidden, num_threads=threads)
            gate = self.gate(x, activation=self.activation, out=work.hidden[1], num_threads=threads)
            np.multiply(hidden, gate, out=hidden)
        return self.linear2(hidden, residual=residual, out=out, num_threads=threads)

    def __repr__(self) -> str:
        return (
            f"TransformerEncoderLayer({self.self_attn.embed_dim}, num_heads={self.self_attn.num_heads}, "
            f"dim_feedforward={self.linear2.stored.shape[1]}, gated={self.gated}, "
            f"activation={self.activation!r}, norm_first={self.norm_first}, weights={self.linear2.stored.dtype})"
        )


class TransformerEncoder:
    """A stack of layers with an optional final normalisation.

    Made by `from_state_dict`. It can also be a decoder without cross-attention (GPT, Llama): use ``is_causal=True`` and
    a cache for each layer.

    Attributes
    ----------
    layers : list of TransformerEncoderLayer
        A layer may stand in it several times (ALBERT).
    norm : LayerNorm, RMSNorm or None
    dtype : dtype
        Dtype that inputs should have: that of the weights, float32 for quantised ones.

    Notes
    -----
    torch.nn.TransformerEncoder. All layers share one workspace: besides its result, a call takes memory for
    2 (H + Hkv) D numbers per token or, if that is more, F (2 F if gated and not packed), and in pre-norm layers for
    E more.

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.nn import TransformerEncoder
    >>> rng = np.random.default_rng(0)
    >>> def layer():
    ...     yield "self_attn.in_proj_weight", rng.normal(size=(96, 32))
    ...     yield "self_attn.out_proj.weight", rng.normal(size=(32, 32))
    ...     yield "linear1.weight", rng.normal(size=(64, 32))
    ...     yield "linear2.weight", rng.normal(size=(32, 64))
    ...     yield "norm1.weight", np.ones(32)
    ...     yield "norm2.weight", np.ones(32)
    >>> weights = {f"layers.{i}.{name}": weight for i in range(2) for name, weight in layer()}
    >>> encoder = TransformerEncoder.from_state_dict(weights, num_heads=4, activation="gelu", bias=False)

    Two packed sentences of 4 and 6 tokens; the result of one does not depend on the other:

    >>> x = rng.normal(size=(10, 32))
    >>> out = encoder(x, cu_seqlens=np.array([0, 4, 10]))
    >>> np.array_equal(out[:4], encoder(x[:4]))
    True
    """

    __slots__ = ("layers", "norm")

    def __init__(
        self,
        entries: Entries,
        num_heads,
        num_kv_heads,
        activation,
        norm,
        norm_eps,
        norm_first,
        first_attention_norm,
        bias,
    ) -> None:
        settings = num_heads, num_kv_heads, activation, norm, norm_eps, norm_first
        first = TransformerEncoderLayer(entries.under("layers.0."), *settings, first_attention_norm, bias)
        self.layers = [first]
        for number in range(1, entries.count("layers.")):
            under = entries.under(f"layers.{number}.")
            self.layers.append(TransformerEncoderLayer(under, *settings, True, bias, like=first))
        self.norm = None
        if "norm.weight" in entries or "norm.bias" in entries:
            self.norm = entries.norm("norm", norm, first.self_attn.embed_dim, norm_eps, bias)

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, Any],
        prefix: str = "",
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        activation: str = "relu",
        norm: str = "layer",
        norm_eps: float = 1e-5,
        norm_first: bool = False,
        first_attention_norm: bool = True,
        bias: bool | None = True,
        dtype: DTypeLike | None = None,
        pack: bool = True,
    ) -> TransformerEncoder:
        """Make the layers from a state dict with PyTorch's names.

        Parameters
        ----------
        mapping : mapping of str to ndarray
            ``layers.0.``, ``layers.1.`` and so on with what `TransformerEncoderLayer.from_state_dict` reads, all of one
            size; ``norm.weight`` and ``norm.bias`` (E,) if there is a final normalisation.
        prefix : str
            Prefix of the names in the mapping. Every entry that has it must belong to the layers.
        num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, bias, dtype, pack
            As in `TransformerEncoderLayer.from_state_dict`, the same for all layers.
        first_attention_norm : bool
            `attention_norm` of the first layer: False in ModernBERT.

        Raises
        ------
        TypeError, ValueError
            A parameter is invalid; an entry is missing, unknown, or of the wrong type or shape: the message gives its
            full name.
        """
        entries = Entries(mapping, prefix, dtype, pack)
        encoder = cls(
            entries, num_heads, num_kv_heads, activation, norm, norm_eps, norm_first, first_attention_norm, bias
        )
        entries.check_rest()
        return encoder

    @property
    def dtype(self) -> np.dtype:  # noqa: D102 (described above)
        return self.layers[0].dtype

    def __call__(
        self,
        x: Array,
        attn_mask: Array | None = None,
        *,
        cu_seqlens: Integers | None = None,
        caches: Sequence[KVCache] | None = None,
        cos: Array | None = None,
        sin: Array | None = None,
        interleaved: bool = False,
        layer_options: Sequence[Mapping[str, Any]] | None = None,
        out: Out | None = None,
        num_threads: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> Out:
        """Compute all layers, one after the other.

        Parameters
        ----------
        x : ndarray, shape (..., S, E), or (T, E) with `cu_seqlens`
            float32, float64, float16 or bfloat16; float64 if the weights are. The result has its dtype.
        caches : sequence of KVCache, optional
            One for each layer.
        attn_mask, cu_seqlens, cos, sin, interleaved, out, num_threads, **options
            As when calling `TransformerEncoderLayer`, the same for all layers.
        layer_options : sequence of dict, optional
            For each layer, the options that are its own, in place of those above: `window`, `cos`, `sin`,
            `interleaved`, `scale`, `softcap`, `sinks`, `alibi_slopes`, `position_bias`. Layers of one kind should share
            one dict object, as each is prepared for itself.

        Returns
        -------
        ndarray, shape (..., S, E), or (T, E)

        Raises
        ------
        TypeError, ValueError
            As the functions it calls. `out` and the caches are then left unchanged.
        """
        named = self._named(caches)
        x, target = _arguments.real_array("x", x), _arguments.array_to_write("out", out)
        work = self.layers[0].workspace(
            x, attn_mask=attn_mask, cu_seqlens=cu_seqlens, cos=cos, sin=sin, interleaved=interleaved,
            num_threads=num_threads, options=options,
        )  # fmt: skip
        each = list(named.values()) or [None] * len(self.layers)
        works = self._works(work, layer_options)
        # `out` is written by the last layer alone if a cache or a layer's own option may still raise, or if all layers
        # read from its memory.
        held = None if named or layer_options is not None or work.reads(target) else target
        with work.appending(named):
            for layer, its_work, cache in zip(self.layers[:-1], works, each, strict=False):
                x = held = layer.run(x, its_work, cache=cache, out=held)
            y = self.layers[-1].run(x, works[-1], cache=each[-1], out=held if target is None else target)
        if self.norm is not None:
            self.norm(y, out=y, num_threads=num_threads)
        return y if out is None else out

    def _works(self, work: Workspace, layer_options: Sequence[Mapping[str, Any]] | None) -> list[Workspace]:
        """The workspace of each layer: `work` itself, or in its memory with the layer's own options."""
        if layer_options is None:
            return [work] * len(self.layers)
        if not isinstance(layer_options, Sequence) or not all(isinstance(x, Mapping) for x in layer_options):
            raise TypeError(f"layer_options must be a list of dict, got {type(layer_options).__name__}")
        if len(layer_options) != len(self.layers):
            needed = f"one for each layer, {len(self.layers)}"
            raise ValueError(f"layer_options must hold {needed}, got {len(layer_options)}")
        works: dict[int, Workspace] = {}
        for options in layer_options:
            if unknown := options.keys() - PER_LAYER:
                raise TypeError(f"layer_options must hold only {', '.join(sorted(PER_LAYER))}, got {min(unknown)!r}")
            if id(options) not in works:
                works[id(options)] = work.varied(options)
        return [works[id(options)] for options in layer_options]

    def _named(self, caches: Sequence[KVCache] | None) -> dict[str, KVCache]:
        """The cache of each layer, by its name in error messages."""
        if caches is None:
            return {}
        if not isinstance(caches, Sequence):
            raise TypeError(f"caches must be a list of KVCache, got {type(caches).__name__}")
        if len(caches) != len(self.layers):
            raise ValueError(f"caches must hold one for each layer, {len(self.layers)}, got {len(caches)}")
        if len(set(map(id, caches))) < len(caches):
            raise ValueError("caches must hold a different one for each layer, got the same one twice")
        return {f"caches[{i}]": cache for i, cache in enumerate(caches)}

    def __repr__(self) -> str:
        end = "" if self.norm is None else f", {type(self.norm).__name__}"
        return f"TransformerEncoder({len(self.layers)} x {self.layers[0]!r}{end})"
