from numpy.typing import NDArray

from fastattn._core.packed import Packed

def linear(
    x: NDArray,
    weight: NDArray | tuple[NDArray, NDArray] | Packed,
    bias: NDArray | None,
    activation: str | None,
    residual: NDArray | None,
    out: NDArray | None,
    num_threads: int | None,
) -> NDArray: ...
