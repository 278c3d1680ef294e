from fastattn._core.packed import Packed
from fastattn._typing import Array, Out

def linear(
    x: Array,
    weight: Array | tuple[Array, Array] | Packed,
    bias: Array | None,
    activation: str | None,
    residual: Array | None,
    out: Out | None,
    num_threads: int | None,
) -> Out: ...
