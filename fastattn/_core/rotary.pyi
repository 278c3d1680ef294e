from numpy.typing import ArrayLike, NDArray

def rotate(
    x: NDArray,
    cos: NDArray,
    sin: NDArray,
    positions: ArrayLike | None,
    interleaved: bool,
    rotary_dim: int | None,
    out: NDArray | None,
    num_threads: int | None,
) -> NDArray: ...
