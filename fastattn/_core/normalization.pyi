from numpy.typing import NDArray

def normalize(
    x: NDArray,
    weight: NDArray | None,
    bias: NDArray | None,
    eps: float,
    out: NDArray | None,
    num_threads: int | None,
    centred: bool,
) -> NDArray: ...
def add_normalize(
    x: NDArray,
    residual: NDArray,
    weight: NDArray | None,
    bias: NDArray | None,
    eps: float,
    out: tuple[NDArray | None, NDArray | None] | None,
    num_threads: int | None,
    centred: bool,
) -> tuple[NDArray, NDArray]: ...
