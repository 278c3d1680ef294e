from fastattn._typing import Array, Out

def softmax(
    x: Array, axis: int, where: Array | None, out: Out | None, num_threads: int | None, logarithm: bool
) -> Out: ...
