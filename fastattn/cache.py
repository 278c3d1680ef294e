"""Caches of the keys and values of earlier tokens, for decoding token by token: KVCache and PagedKVCache.

Compiled half: _core/cache.pyx, and attention over pages in _core/attention.pyx; kernel: _core/kernels/rows/cache.h;
files: _cache_file.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn import _cache_file
from fastattn._core import cache as _core
from fastattn._core.cache import OutOfPages
from fastattn._core.options import attention_options

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["KVCache", "OutOfPages", "PagedKVCache"]


class KVCache:
    """Keys and values of a batch of sequences that grow together, each in memory of its own.

    Parameters
    ----------
    batch : int
        Sequences B.
    num_kv_heads : int
        Heads Hkv of keys and values; queries have a multiple of them.
    max_length : int
        Tokens of a sequence that are held at once, at most.
    head_dim : int
        Head size D of keys and queries.
    dtype : dtype or str
        How keys and values are stored: float32, float64, float16, bfloat16 (ml_dtypes' type or its name), or int8: then
        each row of a head has a float32 scale, its largest magnitude / 127, and its elements are rounded to multiples
        of that.
    window : int, optional
        A query sees no more keys than this, the last ones up to its own position: attention's ``window=(W - 1, None)``,
        which `attend` applies. The memory is then a ring of W rows and a quarter more (at least 64), or `max_length`
        rows if that is less, and the stream may be of any length.
    value_dim : int, optional
        Size Dv of values; `head_dim` by default.

    Raises
    ------
    TypeError, ValueError
        A parameter has the wrong type or value; ValueError for "bfloat16" without ml_dtypes.

    Notes
    -----
    Memory is taken from the system as it is first written to. A step allocates only the output of `attend`, and nothing
    with `out`. Several threads may attend at once; nothing else may happen to a cache while another thread uses it.

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
        key: NDArray,
        value: NDArray,
        *,
        kv_lengths: int | Sequence[int] | NDArray | None = None,
        cos: NDArray | None = None,
        sin: NDArray | None = None,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        num_threads: int | None = None,
    ) -> None:
        """Store the keys and values of new tokens, any number of them.

        Parameters
        ----------
        key : ndarray, shape (B, Hkv, S, D)
            float32, float64, float16 or bfloat16 whatever the cache's own dtype, at any strides. Rounded to that, from
            float64 to 16 bits and int8 by way of float32.
        value : ndarray, shape (B, Hkv, S, Dv)
        kv_lengths : int, list of int or integer ndarray, shape (B,), optional
            Number of tokens that each sequence really has, the first ones of the S; the others are not read.
        cos, sin : ndarray, shape (positions, R/2), optional
            Turn the keys as `rotary_embedding` does before they are stored, each by the row of its position in the
            sequence. R is at most D.
        interleaved : bool
            A pair is ``(key[2i], key[2i + 1])``; otherwise it is ``(key[i], key[i + R/2])``.
        rotary_dim : int, optional
            R, where `cos` and `sin` look as if they held each number twice; see `rotary_embedding`.
        num_threads : int, optional
            Maximum number of threads; see `set_num_threads`.

        Raises
        ------
        TypeError
            An argument has the wrong type or dtype.
        ValueError
            A shape or value does not fit, a sequence would exceed `max_length`, key or value is not finite beside int8
            or too large for another type (65504 in float16), or the cache is mapped read-only.
        MemoryError
            In all cases the cache is left unchanged.
        """
        self._store.append(
            key, value, kv_lengths=kv_lengths, cos=cos, sin=sin, interleaved=interleaved, rotary_dim=rotary_dim,
            num_threads=num_threads,
        )  # fmt: skip

    def attend(
        self,
        query: NDArray,
        attn_mask: NDArray | None = None,
        *,
        is_causal: bool = False,
        q_offset: int | Sequence[int] | NDArray | None = None,
        window: tuple[int | None, int | None] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: NDArray | None = None,
        alibi_slopes: NDArray | None = None,
        out: NDArray | None = None,
        return_lse: bool = False,
        num_threads: int | None = None,
    ) -> NDArray | tuple[NDArray, NDArray]:
        """Attend each query to its sequence's keys; by default the last query stands at the last token.

        After an append with `kv_lengths`, as many queries as its arrays had tokens belong to these tokens, padded
        alike: the first one stands at the first token that was appended.

        Parameters
        ----------
        query : ndarray, shape (B, Hq, Sq, D)
        attn_mask : ndarray, optional
            Broadcasts to (B, Hq, Sq, longest length). None once a window has moved on.
        is_causal : bool
            A query sees the keys up to its own position; by default the last query stands at the last key.
        q_offset, window, scale, softcap, sinks, alibi_slopes, out, return_lse, num_threads
            As in `scaled_dot_product_attention`; `q_offset` is the sequence's length - Sq by default or, after an
            append with `kv_lengths`, the length before it if Sq is its S. A cache with a window of its own takes a
            narrower one only.

        Returns
        -------
        out : ndarray, shape (B, Hq, Sq, Dv)
            In query's dtype.
        lse : ndarray, shape (B, Hq, Sq)
            Only with `return_lse`.

        Raises
        ------
        TypeError, ValueError
            As `scaled_dot_product_attention`; ValueError where a query's window begins with keys that are gone, and
            where positions matter and `q_offset` must be given: to several queries that may be among the padded tokens
            of an earlier append.
        """
        options = attention_options(
            attn_mask=attn_mask, is_causal=is_causal, q_offset=q_offset, window=window, scale=scale, softcap=softcap,
            sinks=sinks, alibi_slopes=alibi_slopes, out=out, return_lse=return_lse, num_threads=num_threads,
        )  # fmt: skip
        return self._store.attend(query, options)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, counted from its beginning; a copy, shape (B,)."""
        return self._store.lengths

    @property
    def keys(self) -> NDArray:
        """What is stored, shape (B, Hkv, longest length, D): a view, valid until the cache changes.

        ValueError for int8, and once a window has moved on.
        """
        return self._store.view("keys", False)

    @property
    def values(self) -> NDArray:
        """Likewise, shape (B, Hkv, longest length, Dv)."""
        return self._store.view("values", True)

    @property
    def chunk(self) -> int:
        """Number of tokens that can be appended, and then attended from, at a time, however long the stream is."""
        return self._store.chunk

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales, in use or not."""
        return sum(x.nbytes for x in self._store.arrays())

    def reset(self) -> None:
        """Forget all tokens."""
        self._store.reset()

    def truncate(self, length: int | Sequence[int] | NDArray) -> None:
        """Forget the last tokens, as after a rejected draft: keep the first `length`, an int or one for each sequence.

        ValueError for more than there are and, with a window, where the last ones kept are no longer all there.
        """
        self._store.truncate(length)

    def reorder(self, indices: ArrayLike) -> None:
        """Replace each sequence b by a copy of sequence ``indices[b]``, as beam search does; an index may be repeated.

        Only the tokens of sequences that move are copied. `PagedKVCache.fork` copies none.
        """
        self._store.reorder(indices)

    def save(self, path: str | os.PathLike) -> None:
        """Write the cache to a file of .npy arrays.

        An existing file is replaced once the new one is whole; a device or a pipe is written to.
        """
        _cache_file.write(path, "KVCache", self._store.parameters(), self._store)

    @classmethod
    def load(cls, path: str | os.PathLike, mmap_mode: str | None = None) -> KVCache:
        """Read a saved cache.

        Parameters
        ----------
        path : str or os.PathLike
        mmap_mode : {None, "r", "c"}
            Map keys and values into memory instead of reading them: read-only, where `append` and `reorder` raise
            ValueError, or copy on write, where changes stay in memory.

        Raises
        ------
        ValueError
            The file is not whole, or not a saved KVCache.
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
    """Keys and values of many sequences, in pages that they take as they grow, share when forked, and give back.

    Parameters
    ----------
    num_pages : int
    page_size : int
        Tokens in a page. Small ones waste less at the end of a sequence, larger ones are read faster.
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
    token. Memory and threads: as `KVCache`.

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
        """Begin an empty sequence, and return its id, which no other will ever have."""
        return self._store.allocate()

    def fork(self, id: int) -> int:
        """Begin a sequence with all that this one has, sharing its pages, and return the new one's id."""
        return self._store.fork(id)

    def free(self, id: int) -> None:
        """End a sequence; pages that no other shares become free."""
        self._store.free(id)

    def truncate(self, id: int, length: int) -> None:
        """Keep the first `length` tokens of a sequence; pages that this empties and no other shares become free."""
        self._store.truncate(id, length)

    def append(
        self,
        ids: Sequence[int] | NDArray,
        key: NDArray,
        value: NDArray,
        *,
        kv_lengths: int | Sequence[int] | NDArray | None = None,
        cos: NDArray | None = None,
        sin: NDArray | None = None,
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
            A MemoryError: the new tokens of all sequences together need more pages than are free.
        TypeError, ValueError
            As `KVCache.append`; ValueError for an id that is unknown or was freed. In all cases the cache is left
            unchanged.
        """
        self._store.append(
            ids, key, value, kv_lengths=kv_lengths, cos=cos, sin=sin, interleaved=interleaved, rotary_dim=rotary_dim,
            num_threads=num_threads,
        )  # fmt: skip

    def attend(
        self,
        ids: Sequence[int] | NDArray,
        query: NDArray,
        attn_mask: NDArray | None = None,
        *,
        is_causal: bool = False,
        q_offset: int | Sequence[int] | NDArray | None = None,
        window: tuple[int | None, int | None] | None = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: NDArray | None = None,
        alibi_slopes: NDArray | None = None,
        out: NDArray | None = None,
        return_lse: bool = False,
        num_threads: int | None = None,
    ) -> NDArray | tuple[NDArray, NDArray]:
        """Attend the queries of each of these sequences to its keys, which are read where they lie.

        Parameters
        ----------
        ids : list of int, or integer ndarray
            The N sequences, in any order; one may come repeatedly.
        query : ndarray, shape (N, Hq, Sq, D)
        attn_mask, is_causal, q_offset, window, scale, softcap, sinks, alibi_slopes, out, return_lse, num_threads
            As in `KVCache.attend`, of N sequences.

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
            sinks=sinks, alibi_slopes=alibi_slopes, out=out, return_lse=return_lse, num_threads=num_threads,
        )  # fmt: skip
        return self._store.attend(ids, query, options)

    @property
    def lengths(self) -> dict[int, int]:
        """Tokens of each live sequence, by its id."""
        return self._store.lengths

    @property
    def free_pages(self) -> int:
        """Pages that no sequence has."""
        return self._store.free_pages

    @property
    def nbytes(self) -> int:
        """Bytes of all pages and scales, in use or not."""
        return sum(x.nbytes for x in self._store.arrays())

    def block_table(self, id: int) -> NDArray[np.int64]:
        """The pages of a sequence, in order: token j is row ``j % page_size`` of page ``j // page_size``; a copy."""
        return self._store.block_table(id)

    def save(self, path: str | os.PathLike) -> None:
        """Write the cache to a file, as `KVCache.save` does; ids stay what they are."""
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
