from fastattn._typing import Array, Out

def normalize(
    x: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    out: Out | None,
    num_threads: int | None,
    centred: bool,
) -> Out: ...
def add_normalize(
    x: Array,
    residual: Array,
    weight: Array | None,
    bias: Array | None,
    eps: float,
    out: tuple[Out | None, Out | None] | None,
    num_threads: int | None,
    centred: bool,
) -> tuple[Out, Out]: ...
