from numpy.typing import NDArray

def softmax(
    x: NDArray, axis: int, where: NDArray | None, out: NDArray | None, num_threads: int | None, logarithm: bool
) -> NDArray: ...
