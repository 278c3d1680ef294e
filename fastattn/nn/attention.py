"""Multi-head attention: projections, rotary embedding, cache and scaled dot-product attention."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from functools import partial
from typing import TYPE_CHECKING, overload

import numpy as np

from fastattn import _arguments
from fastattn.attention import attention_weights, scaled_dot_product_attention, varlen_attention
from fastattn.cache import KVCache
from fastattn.nn.weights import Entries, LayerNorm, Linear, RMSNorm, checked_norm, stacked
from fastattn.rotary import rotary_embedding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Literal, Unpack

    from numpy.typing import DTypeLike, NDArray

    from fastattn._typing import Array, Integers, LayerOptions, ModuleCall, Out


class MultiHeadAttention:
    """Multi-head attention with projections of queries, keys, values and output.

    Made by `from_state_dict`. Shapes use these letters: B sequences, S tokens, E `embed_dim`, H `num_heads`, Hkv
    `num_kv_heads`, D `head_dim`, T tokens of all packed sequences.

    Attributes
    ----------
    embed_dim, kdim, vdim : int
        Sizes of a token of `query` (and of the result), `key` and `value`.
    num_heads, num_kv_heads, head_dim : int
    add_zero_attn : bool
        Whether a key and value of zeros are added: a sink whose logit is 0.
    in_proj : Linear or None
        The projections of queries, keys and values stacked, if all three have E inputs.
    q_proj, k_proj, v_proj, out_proj : Linear
        Each with `weight` and `bias`; the first three are parts of `in_proj` if there is one: views, or copies of rows
        that are packed in a panel with others.
    q_norm, k_norm : LayerNorm, RMSNorm or None
        Normalisation of queries and keys before the rotary embedding: of each head or, with a weight of all heads'
        size, of all together.
    dtype : dtype
        Dtype that inputs should have: that of the weights, float32 for quantised ones.

    Notes
    -----
    torch.nn.MultiheadAttention, with these differences: tokens are always (B, S, E), ``batch_first=True``; a bool
    `attn_mask` is True where a query may attend (PyTorch's is True where it may not), and it may have any shape that
    broadcasts to (B, H, Sq, Sk). PyTorch's arguments become:

    ==================================  ==================================================================
    ``attn_mask=m``, bool (Sq, Sk)      ``attn_mask=~m``
    ``attn_mask=m``, (B * H, Sq, Sk)    ``attn_mask=~m.reshape(B, H, Sq, Sk)``
    ``attn_mask=m``, float              ``attn_mask=m``
    ``key_padding_mask=m``, bool        ``attn_mask=~m[:, None, None, :]``, or ``kv_lengths=(~m).sum(-1)``
                                        if all padding is at the end
    ``need_weights=True``               `attention_weights`, per head
    ``add_zero_attn=True``              the same, in `from_state_dict`: the weights do not show it
    ==================================  ==================================================================

    Examples
    --------
    >>> import numpy as np
    >>> from fastattn.nn import MultiHeadAttention
    >>> rng = np.random.default_rng(0)
    >>> weights = {
    ...     "in_proj_weight": rng.standard_normal((3 * 64, 64), dtype=np.float32),
    ...     "in_proj_bias": np.zeros(3 * 64, np.float32),
    ...     "out_proj.weight": rng.standard_normal((64, 64), dtype=np.float32),
    ...     "out_proj.bias": np.zeros(64, np.float32),
    ... }
    >>> attention = MultiHeadAttention.from_state_dict(weights, num_heads=4)
    >>> x = rng.standard_normal((2, 10, 64), dtype=np.float32)
    >>> attention(x, is_causal=True).shape
    (2, 10, 64)
    >>> attention(x[:, :3], key=x).shape
    (2, 3, 64)
    """

    __slots__ = (
        "_parts", "add_zero_attn", "embed_dim", "head_dim", "in_proj", "k_norm", "kdim", "num_heads", "num_kv_heads",
        "out_proj", "q_norm", "vdim",
    )  # fmt: skip

    def __init__(
        self,
        entries: Entries,
        num_heads: int,
        num_kv_heads: int | None,
        bias: bool | None,
        sizes: tuple[int | None, int | None] = (None, None),
        norm: tuple[str, float] = ("rms", 1e-6),
    ) -> None:
        heads = _arguments.at_least_one("num_heads", num_heads)
        kv_heads = heads if num_kv_heads is None else _arguments.at_least_one("num_kv_heads", num_kv_heads)
        if heads % kv_heads:
            raise ValueError(f"num_kv_heads must divide num_heads, {heads}, got {kv_heads}")
        for name in ("bias_k", "bias_v"):
            if name in entries:
                key = entries.key(name)
                raise ValueError(f"{key} must not be there, got one: added keys and values are not supported")
        self.embed_dim, joined = entries.array("out_proj.weight", sizes).shape
        if joined % heads:
            entries.unfit("out_proj.weight", f"a multiple of num_heads, {heads}, as its last axis")
        self.num_heads, self.num_kv_heads, self.head_dim = heads, kv_heads, joined // heads
        self.add_zero_attn = False
        self._read_projections(entries, joined, kv_heads * self.head_dim, bias)
        self.out_proj = entries.linear("out_proj", (self.embed_dim, joined), bias)
        self.q_norm = self._read_norm(entries, "q_norm", heads, *norm)
        self.k_norm = self._read_norm(entries, "k_norm", kv_heads, *norm)

    def _read_norm(self, entries: Entries, name: str, heads: int, kind: str, eps: float) -> LayerNorm | RMSNorm | None:
        """The norm of each head or of all heads, if there is one."""
        weight = f"{name}.weight"
        if weight not in entries:
            return None
        [size] = entries.array(weight, (None,)).shape
        if size not in (self.head_dim, heads * self.head_dim):
            entries.unfit(weight, f"{self.head_dim} or {heads * self.head_dim} elements")
        return entries.norm(name, kind, size, eps, None)

    def _read_projections(self, entries: Entries, q_size: int, kv_size: int, bias: bool | None) -> None:
        """Set the projections of queries, keys and values: parts of a stacked one if they have the same inputs."""
        embed, total = self.embed_dim, q_size + 2 * kv_size
        parts = (0, q_size), (q_size, q_size + kv_size), (q_size + kv_size, total)
        in_bias = entries.bias("in_proj_bias", total, bias)
        self.kdim = self.vdim = embed
        if any(f"{name}_proj_weight" in entries for name in "qkv"):
            self.kdim = entries.array("k_proj_weight", (kv_size, None)).shape[1]
            self.vdim = entries.array("v_proj_weight", (kv_size, None)).shape[1]
            needed = {"q": (q_size, embed), "k": (kv_size, self.kdim), "v": (kv_size, self.vdim)}
            weights = entries.matrices({f"{name}_proj_weight": shape for name, shape in needed.items()})
        else:
            weights = [entries.matrix("in_proj_weight", (total, embed))]
        if self.kdim == self.vdim == embed:
            self.in_proj = Linear(entries.packed(stacked(weights)), in_bias)
            self._parts = {}
        else:
            biases = [None if in_bias is None else in_bias[slice(*part)] for part in parts]
            self._parts = dict(zip("qkv", map(Linear, map(entries.packed, weights), biases), strict=True))
            self.in_proj = self._parts["kv"] = None

    def _part(self, name: str) -> Linear | None:
        """A projection. Rows of a packed `in_proj` may be a copy, and so are made when they are first used."""
        if name not in self._parts:
            q_size, kv_size = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
            first = {"q": 0, "k": q_size, "v": q_size + kv_size, "kv": q_size}[name]
            size = {"q": q_size, "kv": 2 * kv_size}.get(name, kv_size)
            self._parts[name] = self.in_proj.rows(first, first + size)
        return self._parts[name]

    @property
    def q_proj(self) -> Linear:
        """The projection of queries."""
        return self._part("q")

    @property
    def k_proj(self) -> Linear:
        """The projection of keys."""
        return self._part("k")

    @property
    def v_proj(self) -> Linear:
        """The projection of values."""
        return self._part("v")

    @property
    def kv_proj(self) -> Linear | None:
        """The projections of keys and values stacked, if they are parts of `in_proj`."""
        return self._part("kv")

    @classmethod
    def from_state_dict(
        cls,
        mapping: Mapping[str, Any],
        prefix: str = "",
        *,
        num_heads: int,
        num_kv_heads: int | None = None,
        bias: bool | None = True,
        add_zero_attn: bool = False,
        norm: str = "rms",
        norm_eps: float = 1e-6,
        dtype: DTypeLike | None = None,
        pack: bool = True,
    ) -> MultiHeadAttention:
        """Make the layer from a state dict with PyTorch's names.

        Parameters
        ----------
        mapping : mapping of str to ndarray
            ``in_proj_weight`` ((H + 2 Hkv) * D, E), or ``q_proj_weight`` (H * D, E), ``k_proj_weight``
            (Hkv * D, kdim) and ``v_proj_weight`` (Hkv * D, vdim); ``in_proj_bias`` ((H + 2 Hkv) * D,);
            ``out_proj.weight`` (E, H * D) and ``out_proj.bias`` (E,). If there is a ``q_norm.weight`` (D,) or
            (H * D,), or a ``k_norm.weight`` (D,) or (Hkv * D,), and for ``norm="layer"`` perhaps a ``bias`` of the same
            size, queries or keys are normalised.
        prefix : str
            Prefix of the names in the mapping. Every entry that has it must belong to this layer.
        num_heads : int
        num_kv_heads : int, optional
            Number of heads of keys and values, a divisor of `num_heads`; `num_heads` by default.
        bias : bool or None
            True: there are biases; False: there are none; None: those that the mapping has.
        add_zero_attn : bool
            PyTorch's argument of the same name: add a key and a value of zeros.
        norm : {"layer", "rms"}
        norm_eps : float
            Of ``q_norm`` and ``k_norm``.
        dtype : dtype or str, optional
            Convert the weights to float32, float64, float16, bfloat16, or int8 (quantised by `fastattn.nn.quantize`);
            biases then become float32 (float64 for float64). By default nothing is converted, and either all entries or
            none are float64.
        pack : bool
            Copy each weight of a linear layer by `fastattn.pack` into the form that is read fastest, for the target in
            use. With False, weights that are not converted stay views of the mapping's arrays, except that
            ``q_proj_weight``, ``k_proj_weight`` and ``v_proj_weight`` are stacked if they have the same number of
            inputs.

        Raises
        ------
        TypeError, ValueError
            A parameter is invalid; an entry is missing, unknown, or of the wrong type or shape: the message gives its
            full name.
        """
        entries = Entries(mapping, prefix, dtype, pack)
        attention = cls(entries, num_heads, num_kv_heads, bias, norm=checked_norm(norm, norm_eps))
        attention.add_zero_attn = _arguments.flag("add_zero_attn", add_zero_attn)
        entries.check_rest()
        return attention

    @property
    def dtype(self) -> np.dtype:  # noqa: D102 (described in the class's docstring)
        return self.out_proj.dtype

    @overload
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: Literal[False] = False,
        **options: Unpack[ModuleCall],
    ) -> Out: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: Literal[True],
        **options: Unpack[ModuleCall],
    ) -> tuple[Out, NDArray[Any]]: ...
    @overload
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: bool,
        **options: Unpack[ModuleCall],
    ) -> Out | tuple[Out, NDArray[Any]]: ...
    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        attn_mask: Array | None = None,
        *,
        cu_seqlens: Integers | None = None,
        cu_seqlens_q: Integers | None = None,
        cu_seqlens_k: Integers | None = None,
        cache: KVCache | None = None,
        cos: Array | None = None,
        sin: Array | None = None,
        interleaved: bool = False,
        residual: Array | None = None,
        out: Out | None = None,
        num_threads: int | None = None,
        **options: Any,
    ) -> Any:
        """Compute self-attention or, with `key`, cross-attention.

        Parameters
        ----------
        query : ndarray, shape (..., S, E), or (T, E) for packed sequences
            float32, float64, float16 or bfloat16; float64 if the weights are. The result has its dtype.
        key : ndarray, shape (..., Sk, kdim), or (Tk, kdim)
            By default query itself: self-attention.
        value : ndarray, shape (..., Sk, vdim), or (Tk, vdim)
            By default key.
        is_causal : bool
            A query sees the keys up to its own position; by default the last query is aligned with the last key (bottom
            right). In self-attention each query is aligned with its own token, with `kv_lengths` too: `q_offset` is 0.
        attn_mask, **options
            As in `fastattn.scaled_dot_product_attention`: `q_offset`, `window`, `scale`, `softcap`, `sinks`,
            `alibi_slopes`, `position_bias`, `kv_lengths`, `return_lse`.
        cu_seqlens : integer ndarray or list, shape (N + 1,), optional
            Cumulative lengths of packed sequences, as in `fastattn.varlen_attention`; without `attn_mask`.
        cu_seqlens_q, cu_seqlens_k : integer ndarray or list, shape (N + 1,), optional
            Instead of `cu_seqlens` if the sequences of query and key differ.
        cache : KVCache, optional
            Self-attention appends keys and values to it, and attends to all tokens in it. query has shape (B, S, E)
            with the cache's batch B. `kv_lengths` is then the number of valid new tokens of each sequence, counted from
            the first, and `q_offset` is by default the length before the append.
        cos, sin : ndarray, shape (positions, R/2), optional
            Self-attention rotates queries and keys as `fastattn.rotary_embedding` does, each by the row of its position
            in the sequence, tokens in the cache included. A row holds one number per pair.
        interleaved : bool
            A pair is ``(x[2i], x[2i + 1])``; otherwise it is ``(x[i], x[i + R/2])``.
        residual : ndarray, shape of the result, optional
            Added to the result.
        out : ndarray, shape of the result, optional
            Output array; it may be `residual` or query itself.
        num_threads : int, optional
            Maximum number of threads; see `fastattn.set_num_threads`.

        Returns
        -------
        out : ndarray, shape (..., S, E), or (T, E)
        lse : ndarray, shape (..., H, S), or (T, H)
            Only with `return_lse`.

        Raises
        ------
        TypeError, ValueError
            As the functions it calls. `out` and the cache are then left unchanged.
        """
        query, key, value = _arguments.tokens(query, key, value)
        options = self._with_zero_key(options)
        if key is query and value is query and self.in_proj is not None:
            must_be_none("where key is query", cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
            work = Workspace(
                self, "query", query, attn_mask=attn_mask, cu_seqlens=cu_seqlens, cos=cos, sin=sin,
                interleaved=interleaved, num_threads=num_threads, options=options,
            )  # fmt: skip
            with work.appending({} if cache is None else {"cache": cache}):
                out = self.run(query, work, cache=cache, residual=residual, out=out)
            return out if work.lse is None else (out, work.lse)
        bounds = boundaries(cu_seqlens, cu_seqlens_q, cu_seqlens_k)
        self._check(bool(bounds), query=query, key=key, value=value)
        must_be_none("where key is not query", cache=cache, cos=cos, sin=sin)
        options["num_threads"] = num_threads
        joined, lse = self._attended(query, key, value, attn_mask, bounds, options)
        out = self.out_proj(joined, residual=residual, out=out, num_threads=num_threads)
        return out if lse is None else (out, lse)

    def attention_weights(
        self,
        query: Array,
        key: Array | None = None,
        attn_mask: Array | None = None,
        *,
        cos: Array | None = None,
        sin: Array | None = None,
        interleaved: bool = False,
        num_threads: int | None = None,
        **options: Unpack[LayerOptions],
    ) -> NDArray[Any]:
        """Return the full matrix of attention weights of each head, for inspection.

        Parameters
        ----------
        query : ndarray, shape (..., S, E)
        key : ndarray, shape (..., Sk, kdim)
            By default query itself.
        attn_mask, cos, sin, interleaved, num_threads, **options
            As when called.

        Returns
        -------
        ndarray, shape (..., H, S, Sk)

        Raises
        ------
        TypeError, ValueError
            As `fastattn.attention_weights`.
        """
        query, key, _ = _arguments.tokens(query, key, None)
        self._check(False, query=query, key=key)
        options = self._with_zero_key(options)
        if key is query:
            options = at_own_place(options)
        else:
            must_be_none("where key is not query", cos=cos, sin=sin)
        query = self._by_head("q", self.num_heads, query, False, num_threads)
        key = self._by_head("k", self.num_kv_heads, key, False, num_threads)
        if cos is not None or sin is not None:
            rows = rotary_rows(cos, sin, key.shape[-2])
            turn = {"interleaved": interleaved, "rotary_dim": 2 * rows[0].shape[1], "num_threads": num_threads}
            for x in (query, key):
                rotary_embedding(x, *rows, out=x, **turn)
        return attention_weights(query, key, attn_mask, num_threads=num_threads, **options)

    def run(
        self, x: NDArray, work: Workspace, *, cache: KVCache | None, residual: NDArray | None, out: NDArray | None
    ) -> NDArray:
        """Compute the self-attention of x in a workspace."""
        self.in_proj(x, out=work.projected, num_threads=work.num_threads)
        if self.q_norm is not None or self.k_norm is not None:
            queries, keys = self.num_heads * self.head_dim, (self.num_heads + self.num_kv_heads) * self.head_dim
            normalize(self.q_norm, work.projected[..., :queries], work.num_threads)
            normalize(self.k_norm, work.projected[..., queries:keys], work.num_threads)
        work.attend(cache)
        return self.out_proj(work.joined, residual=residual, out=out, num_threads=work.num_threads)

    def _with_zero_key(self, options: dict) -> dict:
        """Options with a sink of logit 0 for `add_zero_attn`: a zero key scores 0, a zero value adds nothing."""
        if not self.add_zero_attn:
            return options
        must_be_none("with add_zero_attn", sinks=options.get("sinks"))
        return options | {"sinks": np.zeros(self.num_heads, np.float32)}

    def _check(self, packed: bool, **tokens: NDArray) -> None:
        """Raise unless query, key and value fit these weights."""
        sizes = {"query": self.embed_dim, "key": self.kdim, "value": self.vdim}
        for name, x in tokens.items():
            check_tokens(name, x, sizes[name], packed, self.out_proj)

    def _attended(self, query, key, value, attn_mask, bounds, options):
        """The heads' results, concatenated: (..., S, H * D), and the lse or None."""
        if key is query:
            options = at_own_place(options)
        packed = bool(bounds)
        if packed:
            (q_name, of_query), (k_name, of_key) = bounds
            must_be_none(f"with {q_name}", attn_mask=attn_mask)
            of_query = _arguments.boundaries(q_name, of_query, query, "query")
            of_key = _arguments.boundaries(k_name, of_key, key, "key")
            attend = partial(varlen_attention, cu_seqlens_q=of_query, cu_seqlens_k=of_key)
        else:
            attend = partial(scaled_dot_product_attention, attn_mask=attn_mask)
        found = attend(*self._projected(query, key, value, packed, options.get("num_threads")), **options)
        heads, lse = found if isinstance(found, tuple) else (found, None)
        if not packed:
            heads = heads.swapaxes(-2, -3)
        return heads.reshape(*heads.shape[:-2], self.num_heads * self.head_dim), lse

    def _projected(self, query, key, value, packed, num_threads):
        """Query, key and value by head."""
        kv_heads = self.num_kv_heads
        heads = self._by_head("q", self.num_heads, query, packed, num_threads)
        if key is value and self.kv_proj is not None and self.k_norm is None:
            both = self._by_head("kv", 2 * kv_heads, key, packed, num_threads)
            return heads, *np.split(both, 2, axis=-2 if packed else -3)
        keys = self._by_head("k", kv_heads, key, packed, num_threads)
        return heads, keys, self._by_head("v", kv_heads, value, packed, num_threads)

    def _by_head(self, name, heads, x, packed, num_threads):
        """Project tokens to (..., heads, S, D), or to (T, heads, D) if they are packed."""
        rows = self._part(name)(x, num_threads=num_threads)
        normalize({"q": self.q_norm, "k": self.k_norm}.get(name), rows, num_threads)
        rows = rows.reshape(*rows.shape[:-1], heads, self.head_dim)
        return rows if packed else rows.swapaxes(-2, -3)

    def __repr__(self) -> str:
        return (
            f"MultiHeadAttention({self.embed_dim}, num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}, "
            f"head_dim={self.head_dim}, weights={self.out_proj.stored.dtype})"
        )


class Workspace:
    """Buffers shared by all layers of one call: new memory for each layer would cost more in page faults.

    It also holds the views by head and the prepared calls, which are the same for all layers.

    Attributes
    ----------
    projected : ndarray, shape (..., (H + 2 Hkv) * D)
        Queries, keys and values of all heads.
    joined : ndarray, shape (..., H * D)
        Results of the heads, concatenated.
    hidden : list of ndarray
        Buffers of the given widths for a feed-forward; they share the memory of the two above.
    normed : ndarray, shape (..., E), or None
    lse : ndarray, shape (..., H, S), or (T, H), or None
        Log-sum-exp of the last attention, if the options ask for it.
    num_threads : int or None
    """

    __slots__ = (
        "_attend", "_check_cache", "_cu_seqlens", "_function", "_options", "_rotary", "_turn", "_turned", "_views",
        "hidden", "joined", "lse", "normed", "num_threads", "projected",
    )  # fmt: skip

    def __init__(
        self,
        attention: MultiHeadAttention,
        name: str,
        x: NDArray,
        hidden: tuple[int, ...] = (),
        normed: bool = False,
        *,
        attn_mask: NDArray | None,
        cu_seqlens: Integers | None,
        cos: NDArray | None,
        sin: NDArray | None,
        interleaved: bool,
        num_threads: int | None,
        options: dict,
    ) -> None:
        packed = cu_seqlens is not None
        check_tokens(name, x, attention.embed_dim, packed, attention.out_proj)
        options = {option: _arguments.adopted(option, given) for option, given in options.items()}
        attn_mask = _arguments.adopted("attn_mask", attn_mask)
        if packed:
            must_be_none("with cu_seqlens", attn_mask=attn_mask)
            cu_seqlens = _arguments.boundaries("cu_seqlens", cu_seqlens, x, name)
        heads, kv_heads, size = attention.num_heads, attention.num_kv_heads, attention.head_dim
        tokens, both = x.shape[:-1], heads + kv_heads
        widths = (both + kv_heads) * size, heads * size
        memory = np.empty(math.prod(tokens) * max(sum(widths), sum(hidden)), x.dtype)
        self.projected, self.joined = _cut(memory, tokens, widths)
        self.hidden = _cut(memory, tokens, hidden)
        self.normed = np.empty(x.shape, x.dtype) if normed else None
        self.num_threads, self.lse = num_threads, None

        by_head = self.projected.reshape(*tokens, both + kv_heads, size)
        query, key, value = by_head[..., :heads, :], by_head[..., heads:both, :], by_head[..., both:, :]
        turned, out = by_head[..., :both, :], self.joined.reshape(*tokens, heads, size)
        if packed:
            turned = turned.swapaxes(0, 1)
            self._function = varlen_attention, query, key, value, cu_seqlens, cu_seqlens
        else:
            query, key, value, turned, out = (view.swapaxes(-2, -3) for view in (query, key, value, turned, out))
            self._function = scaled_dot_product_attention, query, key, value, attn_mask
        self._views, self._turned, self._cu_seqlens = (query, key, value, attn_mask), turned, cu_seqlens
        self._check_cache = partial(check_cache, attention, name, x, packed, options.get("kv_lengths"))
        self._options = {"out": out, "num_threads": num_threads, **options}
        cos, sin = _arguments.adopted("cos", cos), _arguments.adopted("sin", sin)
        self._rotary = {"cos": cos, "sin": sin, "interleaved": interleaved}
        self._prepare()

    def _prepare(self) -> None:
        """Prepare the calls of all layers with these options."""
        self._attend = partial(*self._function, **at_own_place(self._options))
        self._turn = None
        cos, sin, interleaved = self._rotary.values()
        if cos is not None or sin is not None:
            rows = rotary_rows(cos, sin, self._turned.shape[-2], self._cu_seqlens)
            turn = {"interleaved": interleaved, "rotary_dim": 2 * rows[0].shape[1], "out": self._turned}
            turn["num_threads"] = self.num_threads
            self._turn = partial(rotary_embedding, self._turned, *rows, **turn)

    def varied(self, changes: Mapping[str, Any]) -> Workspace:
        """A workspace in the same memory with some other options, `cos`, `sin` and `interleaved` among them."""
        other = copy.copy(self)
        changes = {option: _arguments.adopted(option, given) for option, given in changes.items()}
        other._rotary = {name: changes.pop(name, x) for name, x in self._rotary.items()}
        other._options = self._options | changes
        other._prepare()
        return other

    def reads(self, out: object) -> bool:
        """Whether `out` may share memory with an array that the attention of every layer reads."""
        given = self._views[-1], *self._rotary.values(), *self._options.values()
        return isinstance(out, np.ndarray) and any(
            isinstance(x, np.ndarray) and np.may_share_memory(out, x) for x in given
        )

    @contextlib.contextmanager
    def appending(self, caches: Mapping[str, KVCache]) -> Iterator[None]:
        """Check caches (by argument name), and restore them if the body raises."""
        for name, cache in caches.items():
            self._check_cache(name, cache)
        before = [(cache._store, cache._store.mark()) for cache in caches.values()]
        try:
            yield
        except BaseException:
            for store, mark in before:
                store.return_to(mark)
            raise

    def attend(self, cache: KVCache | None) -> None:
        """Compute `joined` from `projected`."""
        if cache is not None:
            found = self._attend_to(cache)
        else:
            if self._turn is not None:
                self._turn()
            found = self._attend()
        self.lse = found[1] if isinstance(found, tuple) else None

    def _attend_to(self, cache: KVCache) -> NDArray | tuple[NDArray, NDArray]:
        """Append the new tokens to the cache, and attend from their positions."""
        query, key, value, attn_mask = self._views
        options, before = dict(self._options), cache.lengths
        kv_lengths = options.pop("kv_lengths", None)
        cache.append(key, value, kv_lengths=kv_lengths, **self._rotary, num_threads=self.num_threads)
        if self._turn is not None:
            positions = before[:, np.newaxis] + np.arange(query.shape[-2])
            # `append` has checked that there is a row for each token; padding may lie beyond the last row.
            np.minimum(positions, len(self._rotary["cos"]) - 1, out=positions)
            rotary_embedding(query, positions=positions, out=query, num_threads=self.num_threads, **self._rotary)
        if options.get("q_offset") is None:
            options["q_offset"] = before
        return cache.attend(query, attn_mask, **options)


def _cut(memory: NDArray, tokens: tuple[int, ...], widths: tuple[int, ...]) -> list[NDArray]:
    """Arrays of shape (*tokens, width), one after the other, from the beginning of `memory`."""
    rows = math.prod(tokens)
    ends = itertools.accumulate(widths, initial=0)
    return [
        memory[rows * first : rows * last].reshape(*tokens, last - first) for first, last in itertools.pairwise(ends)
    ]


def normalize(norm: LayerNorm | RMSNorm | None, rows: NDArray, num_threads: int | None) -> None:
    """Normalise queries or keys (..., heads * D) in place, if there is a norm."""
    if norm is not None:
        rows = rows.reshape(*rows.shape[:-1], -1, norm.weight.size)
        norm(rows, out=rows, num_threads=num_threads)


def check_tokens(name: str, x: NDArray, size: int, packed: bool, layer: Linear) -> None:
    """Raise unless x has the shape (..., S, size), or (T, size) if packed, and fits the layer's weight."""
    if x.ndim < 2 or (packed and x.ndim > 2) or x.shape[-1] != size:
        needed = f"(tokens, {size}) with cu_seqlens" if packed else f"(..., tokens, {size})"
        raise ValueError(f"{name} must have shape {needed}, got shape {x.shape}")
    layer.check_dtype(name, x)


def check_cache(
    attention: MultiHeadAttention, x_name: str, x: NDArray, packed: bool, kv_lengths: object, name: str, cache: object
) -> None:
    """Raise unless the keys and values that this attention computes from x can be appended to a cache."""
    if packed:
        raise ValueError(f"{name} must be None with cu_seqlens, got {type(cache).__name__}")
    if not isinstance(cache, KVCache):
        raise TypeError(f"{name} must be a fastattn.KVCache, got {type(cache).__name__}")
    store, size = cache._store, attention.head_dim
    if (store.kv_heads, store.head_dim, store.value_dim) != (attention.num_kv_heads, size, size):
        raise ValueError(f"{name} must hold {attention.num_kv_heads} heads of size {size}, got {cache!r}")
    if x.ndim != 3 or len(x) != store.batch:
        needed = f"({store.batch}, tokens, {attention.embed_dim})"
        raise ValueError(f"{x_name} must have shape {needed} with {name}, got shape {x.shape}")
    counts = [x.shape[1]] * store.batch
    if kv_lengths is not None:
        counts = _arguments.token_counts("kv_lengths", kv_lengths, store.batch, x.shape[1]).tolist()
    # A full ring takes as many tokens as leave in place what the window of the first one sees.
    least = cache.chunk if store.window else 0
    for n, (length, count) in enumerate(zip(cache.lengths.tolist(), counts, strict=True)):
        most = max(store.page_size - length, least)
        if count > most:
            raise ValueError(f"{x_name} must have at most {most} tokens of sequence {n} with {name}, got {count}")


def must_be_none(where: str, **arguments: object) -> None:
    """Raise for arguments that would be ignored; `where` says when."""
    for name, x in arguments.items():
        if x is not None:
            raise ValueError(f"{name} must be None {where}, got {type(x).__name__}")


def boundaries(cu_seqlens: object, cu_seqlens_q: object, cu_seqlens_k: object) -> tuple[tuple[str, object], ...]:
    """(name, cumulative lengths) for query and for key; empty if sequences are not packed."""
    if cu_seqlens is not None:
        must_be_none("with cu_seqlens", cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
        return (("cu_seqlens", cu_seqlens),) * 2
    if cu_seqlens_q is None or cu_seqlens_k is None:
        must_be_none("without the other one", cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
        return ()
    return ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)


def at_own_place(options: dict) -> dict:
    """Options of self-attention: query i is aligned with key i, even if `kv_lengths` excludes the last keys."""
    return options if options.get("q_offset") is not None else options | {"q_offset": 0}


def rotary_rows(cos: object, sin: object, tokens: int, cu_seqlens: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """The rows of cos and sin for these tokens, by position in the sequence."""
    cos, sin = _arguments.real_array("cos", cos), _arguments.real_array("sin", sin)
    longest, rows = tokens, slice(tokens)
    if cu_seqlens is not None:
        lengths = np.diff(cu_seqlens)
        longest, rows = lengths.max(initial=0), np.arange(tokens) - np.repeat(cu_seqlens[:-1], lengths)
    for name, x in (("cos", cos), ("sin", sin)):
        if x.ndim != 2 or len(x) < longest:
            raise ValueError(
                f"{name} must have shape (positions, pairs) with at least {longest} positions, got shape {x.shape}"
            )
    if cos.shape == sin.shape:  # the whole tables, as those rows alone may be too few to decide
        _arguments.each_pair_once("cos", cos, sin, None)
    return cos[rows], sin[rows]
