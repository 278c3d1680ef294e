from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from fastattn._core.attention import Pages
from fastattn._core.options import Options
from fastattn._typing import Array, Integers, IntOrIntegers

def is_valid_padding(padding: NDArray[np.int64], lengths: NDArray[np.int64]) -> bool: ...

class OutOfPages(MemoryError): ...

class Batch:
    def __init__(self, count: int, blocks: int) -> None: ...

class Store(Pages):
    dtype: np.dtype
    kv_heads: int
    page_size: int
    head_dim: int
    value_dim: int
    pages: int
    def pools(self) -> list[tuple[tuple[int, ...], np.dtype]]: ...
    def arrays(self) -> list[NDArray]: ...

class Fixed(Store):
    batch: int
    max_length: int
    window: int
    chunk: int
    lengths: NDArray
    def __init__(
        self,
        *,
        batch: int,
        num_kv_heads: int,
        max_length: int,
        head_dim: int,
        dtype: DTypeLike,
        window: int | None,
        value_dim: int | None,
        pools: list[NDArray] | Callable[[list], list[NDArray]] | None = None,
    ) -> None: ...
    def append(
        self,
        key: Array,
        value: Array,
        *,
        kv_lengths: IntOrIntegers | None,
        cos: Array | None,
        sin: Array | None,
        interleaved: bool,
        rotary_dim: int | None,
        num_threads: int | None,
    ) -> None: ...
    def attend(self, query: Array, options: Options) -> Any: ...
    def view(self, name: str, values: bool) -> NDArray: ...
    def reset(self) -> None: ...
    def truncate(self, length: IntOrIntegers) -> None: ...
    def used(self, n: int) -> int: ...
    def used_parts(self) -> list[tuple[Any, ...]]: ...
    def parameters(self) -> dict[str, int | str | None]: ...
    def state(self) -> dict[str, NDArray[np.int64]]: ...
    def restore(self, **state: NDArray[np.int64]) -> bool: ...
    def mark(self) -> tuple[NDArray, NDArray]: ...
    def return_to(self, mark: tuple[NDArray, NDArray]) -> None: ...
    def reorder(self, order: ArrayLike | Array) -> None: ...

class Paged(Store):
    free_pages: int
    lengths: dict[int, int]
    def __init__(
        self,
        *,
        num_pages: int,
        page_size: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: DTypeLike,
        value_dim: int | None,
        pools: list[NDArray] | Callable[[list], list[NDArray]] | None = None,
    ) -> None: ...
    def allocate(self) -> int: ...
    def fork(self, id: int) -> int: ...
    def free(self, id: int) -> None: ...
    def truncate(self, id: int, length: int) -> None: ...
    def used_parts(self) -> list[tuple[Any, ...]]: ...
    def parameters(self) -> dict[str, int | str | None]: ...
    def state(self) -> dict[str, NDArray[np.int64]]: ...
    def restore(self, **state: NDArray[np.int64]) -> bool: ...
    def block_table(self, id: int) -> NDArray: ...
    def append(
        self,
        ids: Integers,
        key: Array,
        value: Array,
        *,
        kv_lengths: IntOrIntegers | None,
        cos: Array | None,
        sin: Array | None,
        interleaved: bool,
        rotary_dim: int | None,
        num_threads: int | None,
    ) -> None: ...
    def attend(self, ids: Integers, query: Array, options: Options) -> Any: ...
