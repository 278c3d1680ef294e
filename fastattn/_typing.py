"""Types of arguments and results, for type checkers: nothing imports this module when the package runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypedDict

from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from fastattn.cache import KVCache

    #: The type of `out`: what is passed is returned, and without it a new ndarray.
    Out = TypeVar("Out", bound="Array", default=NDArray[Any])


class SupportsDLPack(Protocol):
    """An array of PyTorch, JAX and others."""

    def __dlpack__(self) -> Any: ...


class SupportsArray(Protocol):
    """Anything that NumPy takes for an array, but lists and numbers."""

    def __array__(self) -> NDArray[Any]: ...


Array: TypeAlias = NDArray[Any] | SupportsDLPack | SupportsArray
Integers: TypeAlias = Sequence[int] | Array
IntOrIntegers: TypeAlias = int | Integers
Window: TypeAlias = tuple[int | None, int | None]


class ScoreOptions(TypedDict, total=False):
    """What changes the scores of attention, or excludes some."""

    is_causal: bool
    q_offset: IntOrIntegers | None
    window: Window | None
    scale: float | None
    softcap: float | None
    sinks: Array | None
    alibi_slopes: Array | None
    position_bias: Array | None


class LayerOptions(ScoreOptions, total=False):
    """The same in layers, where no cache says how many keys there are."""

    kv_lengths: IntOrIntegers | None


class CacheCall(ScoreOptions, total=False):
    """Options of attention to a cache, without `out` and `return_lse`."""

    num_threads: int | None


class Call(LayerOptions, total=False):
    """Options of attention, without `out` and `return_lse`."""

    num_threads: int | None


class ModuleCall(Call, total=False):
    """Options of a layer of attention, without `out` and `return_lse`."""

    cu_seqlens: Integers | None
    cu_seqlens_q: Integers | None
    cu_seqlens_k: Integers | None
    cache: KVCache | None
    cos: Array | None
    sin: Array | None
    interleaved: bool
    residual: Array | None
