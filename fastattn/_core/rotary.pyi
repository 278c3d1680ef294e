from numpy.typing import ArrayLike

from fastattn._typing import Array, Out

def rotate(
    x: Array,
    cos: Array,
    sin: Array,
    positions: ArrayLike | Array | None,
    interleaved: bool,
    rotary_dim: int | None,
    out: Out | None,
    num_threads: int | None,
) -> Out: ...
