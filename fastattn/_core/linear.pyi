from numpy.typing import NDArray

def linear(
    x: NDArray,
    weight: NDArray | tuple[NDArray, NDArray],
    bias: NDArray | None,
    activation: str | None,
    residual: NDArray | None,
    out: NDArray | None,
    num_threads: int | None,
) -> NDArray: ...
