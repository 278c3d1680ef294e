"""Caches of the keys and values of earlier tokens, for decoding token by token: KVCache and PagedKVCache.

Compiled half: _core/cache.pyx, and attention over pages in _core/attention.pyx; kernel: _core/kernels/rows/cache.h;
file format: _cache_file.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from fastattn import _cache_file
from fastattn._core import cache as _core
from fastattn._core.cache import OutOfPages
from fastattn._core.options import attention_options

if TYPE_CHECKING:
    import os
    from typing import Any, Literal, Unpack

    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray

    from fastattn._typing import Array, CacheCall, Integers, IntOrIntegers, Out, Window

__all__ = ["KVCache", "OutOfPages", "PagedKVCache"]


class KVCache:
    """Keys and values of a batch of sequences, each in a buffer of its own.

    Parameters
    ----------
    batch : int
        Number of sequences, B.
    num_kv_heads : int
        Number of heads of keys and values, Hkv; that of the queries is a multiple of it.
    max_length : int
        Maximum number of tokens held for a sequence.
    head_dim : int
        Head size of keys and queries, D.
    dtype : dtype or str
        How keys and values are stored: float32, float64, float16, bfloat16 (ml_dtypes' type or its name), or int8. For
        int8, each row of a head has a float32 scale, its largest magnitude / 127, and its elements are rounded to
        multiples of the scale.
    window : int, optional
        Window length W: a query sees at most W keys, the last ones up to its own position. `attend` applies it as
        ``window=(W - 1, None)``. The memory is then a ring buffer of W rows plus a quarter (at least 64), or of
        `max_length` rows if that is less, and a sequence may have any length.
    value_dim : int, optional
        Head size of values, Dv; `head_dim` by default.

    Raises
    ------
    TypeError, ValueError
        A parameter has the wrong type or value; ValueError for "bfloat16" if ml_dtypes is not installed.

    Notes
    -----
    The system provides memory only as it is first written to. A step allocates only the output of `attend`, and nothing
    with `out`. Several threads may call `attend` at once; no other method may run while another thread uses the cache.

    Examples
    --------
    A prompt of 5 tokens, then one token at a time:

    >>> import numpy as np, fastattn
    >>> rng = np.random.default_rng(0)
    >>> def project(tokens):
    ...     return (rng.standard_normal((1, heads, tokens, 16), dtype=np.float32) for heads in (4, 2, 2))
    >>> cache = fastattn.KVCache(1, 2, 1024, 16)
    >>> q, k, v = project(5)
    >>> cache.append(k, v)
    >>> cache.attend(q, is_causal=True).shape
    (1, 4, 5, 16)
    >>> for _ in range(3):
    ...     q, k, v = project(1)
    ...     cache.append(k, v)
    ...     out = cache.attend(q)
    >>> cache.lengths
    array([8])
    >>> bool(np.allclose(out, fastattn.scaled_dot_product_attention(q, cache.keys, cache.values), atol=1e-6))
    True
    """

    __slots__ = ("_store",)

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        *,
        dtype: DTypeLike = "float32",
        window: int | None = None,
        value_dim: int | None = None,
    ) -> None:
        self._store = _core.Fixed(
            batch=batch, num_kv_heads=num_kv_heads, max_length=max_length, head_dim=head_dim, dtype=dtype,
            window=window, value_dim=value_dim,
        )  # fmt: skip

    def append(
        self,
        key: Array,
        value: Array,
        *,
        kv_lengths: IntOrIntegers | None = None,
        cos: Array | None = None,
        sin: Array | None = None,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Store the keys and values of any number of new tokens.

        Parameters
        ----------
        key : ndarray, shape (B, Hkv, S, D)
            float32, float64, float16 or bfloat16, with any strides. Rounded to the cache's dtype; float64 is rounded to
            float32 first if that is 16-bit or int8.
        value : ndarray, shape (B, Hkv, S, Dv)
        kv_lengths : int, integer ndarray or list, shape (B,), optional
            Number of valid tokens of each sequence, counted from the first; the rest of the S are not read.
        cos, sin : ndarray, shape (positions, R/2), optional
            Rotate the keys as `rotary_embedding` does before storing them, each by the row of its position in the
            sequence. R is at most D.
        interleaved : bool
            A pair is ``(key[2i], key[2i + 1])``; otherwise it is ``(key[i], key[i + R/2])``.
        rotary_dim : int, optional
            R, needed where `cos` and `sin` seem to hold each number twice; see `rotary_embedding`.
        num_threads : int, optional
            Maximum number of threads; see `set_num_threads`.

        Raises
        ------
        TypeError
            An argument has the wrong type or dtype.
        ValueError
            A shape or value does not fit; a sequence would exceed `max_length`; key or value is not finite (int8) or
            too large for the cache's dtype (65504 in float16); or the cache is mapped read-only.
        MemoryError
            Scratch memory cannot be allocated. In all cases the cache is left unchanged.
        """
        self._store.append(
            key, value, kv_lengths=kv_lengths, cos=cos, sin=sin, interleaved=interleaved, rotary_dim=rotary_dim,
            num_threads=num_threads,
        )  # fmt: skip

    @overload
    def attend(
        self,
        query: Array,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: Literal[False] = False,
        **options: Unpack[CacheCall],
    ) -> Out: ...
    @overload
    def attend(
        self,
        query: Array,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: Literal[True],
        **options: Unpack[CacheCall],
    ) -> tuple[Out, NDArray[Any]]: ...
    @overload
    def attend(
        self,
        query: Array,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: bool,
        **options: Unpack[CacheCall],
    ) -> Out | tuple[Out, NDArray[Any]]: ...
    def attend(
        self,
        query: Array,
        attn_mask: Array | None = None,
        *,
        is_causal: bool = False,
        q_offset: IntOrIntegers | None = None,
        window: Window | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
        alibi_slopes: Array | None = None,
        position_bias: Array | None = None,
        out: Out | None = None,
        return_lse: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Attend each query to the keys of its sequence; by default the last query is aligned with the last token.

        After an append with `kv_lengths`, a query array with the same number of tokens S is taken to be padded in the
        same way: its first query is aligned with the first token appended.

        Parameters
        ----------
        query : ndarray, shape (B, Hq, Sq, D)
        attn_mask : ndarray, broadcastable to (B, Hq, Sq, longest length), optional
            Not possible once a window has dropped tokens.
        is_causal : bool
            A query sees the keys up to its own position; by default the last query is aligned with the last key.
        q_offset, window, scale, softcap, sinks, alibi_slopes, position_bias, out, return_lse, num_threads
            As in `scaled_dot_product_attention`. By default, `q_offset` is the sequence's length - Sq or, after an
            append with `kv_lengths` and of Sq tokens, the length before it. The window of a cache made with one can
            only be narrowed.

        Returns
        -------
        out : ndarray, shape (B, Hq, Sq, Dv)
            In query's dtype.
        lse : ndarray, shape (B, Hq, Sq)
            Only with `return_lse`.

        Raises
        ------
        TypeError, ValueError
            As `scaled_dot_product_attention`; ValueError also if a query's window includes keys that were dropped, and
            if positions matter but are ambiguous without `q_offset`: for several queries that may belong to the padded
            tokens of an earlier append.
        """
        options = attention_options(
            attn_mask=attn_mask, is_causal=is_causal, q_offset=q_offset, window=window, scale=scale, softcap=softcap,
            sinks=sinks, alibi_slopes=alibi_slopes, position_bias=position_bias, out=out, return_lse=return_lse,
            num_threads=num_threads,
        )  # fmt: skip
        return self._store.attend(query, options)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tokens of each sequence, those dropped by a window included; a copy, shape (B,)."""
        return self._store.lengths

    @property
    def keys(self) -> NDArray[Any]:
        """The stored keys, shape (B, Hkv, longest length, D): a view, valid until the cache changes.

        ValueError for int8, and once a window has dropped tokens.
        """
        return self._store.view("keys", False)

    @property
    def values(self) -> NDArray[Any]:
        """The stored values, shape (B, Hkv, longest length, Dv), under the conditions of `keys`."""
        return self._store.view("values", True)

    @property
    def chunk(self) -> int:
        """Maximum number of tokens to append and attend with at a time, whatever the sequence's length."""
        return self._store.chunk

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales, in use or not."""
        return sum(x.nbytes for x in self._store.arrays())

    def reset(self) -> None:
        """Remove all tokens."""
        self._store.reset()

    def truncate(self, length: IntOrIntegers) -> None:
        """Keep the first `length` tokens (an int, or one for each sequence), as after a rejected draft.

        ValueError if a sequence has fewer and, with a window, if tokens that the last one kept would see were dropped.
        """
        self._store.truncate(length)

    def reorder(self, indices: ArrayLike | Array) -> None:
        """Replace each sequence b by a copy of sequence ``indices[b]``, as beam search does; an index may be repeated.

        Only the tokens of sequences that move are copied. `PagedKVCache.fork` copies none.
        """
        self._store.reorder(indices)

    def save(self, path: str | os.PathLike) -> None:
        """Write the cache to a file of .npy arrays.

        An existing file is replaced only when the new one is complete. Devices and pipes are written directly.
        """
        _cache_file.write(path, "KVCache", self._store.parameters(), self._store)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap_mode: str | None = None) -> KVCache:
        """Read a saved cache.

        Parameters
        ----------
        path : str or os.PathLike
        mmap_mode : {None, "r", "c"}
            Map keys and values into memory instead of reading them: read-only ("r"), so that `append` and `reorder`
            raise ValueError, or copy-on-write ("c"), so that changes stay in memory.

        Raises
        ------
        ValueError
            The file is truncated, or not a saved KVCache.
        """
        cache = cls.__new__(cls)
        cache._store = _cache_file.read(path, "KVCache", _core.Fixed, mmap_mode)
        return cache

    def __repr__(self) -> str:
        store = self._store
        window = f", window={store.window}" if store.window else ""
        return (
            f"KVCache({store.batch}, {store.kv_heads}, {store.max_length}, {store.head_dim}, "
            f"dtype={store.dtype.name!r}{window}, value_dim={store.value_dim})"
        )


class PagedKVCache:
    """Keys and values of many sequences, in pages that are allocated on demand, shared by forks, and reused.

    Parameters
    ----------
    num_pages : int
    page_size : int
        Number of tokens in a page. Small pages waste less memory at the end of a sequence; large ones are read faster.
    num_kv_heads, head_dim, dtype, value_dim
        As in `KVCache`.

    Raises
    ------
    TypeError, ValueError
        A parameter has the wrong type or value.

    Notes
    -----
    Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention" (2023). A page that
    several sequences share is never written: a sequence whose last page is shared gets a copy of it before its next
    token. For memory and threads, see `KVCache`.

    Examples
    --------
    Two continuations of one prompt:

    >>> import numpy as np, fastattn
    >>> cache = fastattn.PagedKVCache(8, 4, 2, 16)
    >>> prompt = cache.allocate()
    >>> cache.append([prompt], *np.zeros((2, 1, 2, 10, 16), np.float32))
    >>> other = cache.fork(prompt)
    >>> cache.free_pages
    5
    >>> cache.append([prompt, other], *np.ones((2, 2, 2, 1, 16), np.float32))
    >>> cache.block_table(prompt), cache.block_table(other)
    (array([0, 1, 3]), array([0, 1, 2]))
    >>> cache.attend([prompt, other], np.ones((2, 4, 1, 16), np.float32)).shape
    (2, 4, 1, 16)
    >>> cache.free(prompt)
    >>> cache.lengths
    {1: 11}
    """

    __slots__ = ("_store",)

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        *,
        dtype: DTypeLike = "float32",
        value_dim: int | None = None,
    ) -> None:
        self._store = _core.Paged(
            num_pages=num_pages, page_size=page_size, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype,
            value_dim=value_dim,
        )  # fmt: skip

    def allocate(self) -> int:
        """Create an empty sequence and return its id, which is never reused."""
        return self._store.allocate()

    def fork(self, id: int) -> int:
        """Create a sequence with the same tokens, sharing their pages, and return its id."""
        return self._store.fork(id)

    def free(self, id: int) -> None:
        """Remove a sequence and release its pages; those that others share stay."""
        self._store.free(id)

    def truncate(self, id: int, length: int) -> None:
        """Keep the first `length` tokens of a sequence and release the pages that this empties."""
        self._store.truncate(id, length)

    def append(
        self,
        ids: Integers,
        key: Array,
        value: Array,
        *,
        kv_lengths: IntOrIntegers | None = None,
        cos: Array | None = None,
        sin: Array | None = None,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Store the keys and values of new tokens of several sequences.

        Parameters
        ----------
        ids : list of int, or integer ndarray
            The N sequences, each once.
        key : ndarray, shape (N, Hkv, S, D)
        value : ndarray, shape (N, Hkv, S, Dv)
        kv_lengths, cos, sin, interleaved, rotary_dim, num_threads
            As in `KVCache.append`.

        Raises
        ------
        OutOfPages
            A subclass of MemoryError: the new tokens of all sequences together need more pages than are free.
        TypeError, ValueError
            As `KVCache.append`; ValueError for an id that is unknown or was freed. In all cases the cache is left
            unchanged.
        """
        self._store.append(
            ids, key, value, kv_lengths=kv_lengths, cos=cos, sin=sin, interleaved=interleaved, rotary_dim=rotary_dim,
            num_threads=num_threads,
        )  # fmt: skip

    @overload
    def attend(
        self,
        ids: Integers,
        query: Array,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: Literal[False] = False,
        **options: Unpack[CacheCall],
    ) -> Out: ...
    @overload
    def attend(
        self,
        ids: Integers,
        query: Array,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: Literal[True],
        **options: Unpack[CacheCall],
    ) -> tuple[Out, NDArray[Any]]: ...
    @overload
    def attend(
        self,
        ids: Integers,
        query: Array,
        attn_mask: Array | None = None,
        *,
        out: Out | None = None,
        return_lse: bool,
        **options: Unpack[CacheCall],
    ) -> Out | tuple[Out, NDArray[Any]]: ...
    def attend(
        self,
        ids: Integers,
        query: Array,
        attn_mask: Array | None = None,
        *,
        is_causal: bool = False,
        q_offset: IntOrIntegers | None = None,
        window: Window | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Array | None = None,
        alibi_slopes: Array | None = None,
        position_bias: Array | None = None,
        out: Out | None = None,
        return_lse: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Attend the queries of each of these sequences to its keys, which are read in place.

        Parameters
        ----------
        ids : list of int, or integer ndarray
            The N sequences, in any order; an id may be repeated.
        query : ndarray, shape (N, Hq, Sq, D)
        attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, position_bias
            As in `KVCache.attend`, for N sequences.
        out, return_lse, num_threads
            Likewise.

        Returns
        -------
        out : ndarray, shape (N, Hq, Sq, Dv)
            In query's dtype.
        lse : ndarray, shape (N, Hq, Sq)
            Only with `return_lse`.

        Raises
        ------
        TypeError, ValueError
            As `scaled_dot_product_attention`; ValueError for an id that is unknown or was freed.
        """
        options = attention_options(
            attn_mask=attn_mask, is_causal=is_causal, q_offset=q_offset, window=window, scale=scale, softcap=softcap,
            sinks=sinks, alibi_slopes=alibi_slopes, position_bias=position_bias, out=out, return_lse=return_lse,
            num_threads=num_threads,
        )  # fmt: skip
        return self._store.attend(ids, query, options)

    @property
    def lengths(self) -> dict[int, int]:
        """Number of tokens of each live sequence, by id."""
        return self._store.lengths

    @property
    def free_pages(self) -> int:
        """Number of pages that no sequence uses."""
        return self._store.free_pages

    @property
    def nbytes(self) -> int:
        """Bytes of all pages and scales, in use or not."""
        return sum(x.nbytes for x in self._store.arrays())

    def block_table(self, id: int) -> NDArray[np.int64]:
        """The pages of a sequence, in order; a copy. Token j is row ``j % page_size`` of page ``j // page_size``."""
        return self._store.block_table(id)

    def save(self, path: str | os.PathLike) -> None:
        """Write the cache to a file, as `KVCache.save` does; ids are kept."""
        _cache_file.write(path, "PagedKVCache", self._store.parameters(), self._store)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap_mode: str | None = None) -> PagedKVCache:
        """Read a saved cache: see `KVCache.load`."""
        cache = cls.__new__(cls)
        cache._store = _cache_file.read(path, "PagedKVCache", _core.Paged, mmap_mode)
        return cache

    def __repr__(self) -> str:
        store = self._store
        return (
            f"PagedKVCache({store.pages}, {store.page_size}, {store.kv_heads}, {store.head_dim}, "
            f"dtype={store.dtype.name!r}, value_dim={store.value_dim})"
        )
