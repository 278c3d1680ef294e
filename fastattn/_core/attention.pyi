from numpy.typing import NDArray

def scaled_dot_product_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    is_causal: bool,
    q_offset: int | None,
    scale: float | None,
    out: NDArray | None,
    return_lse: bool,
    num_threads: int | None,
) -> NDArray | tuple[NDArray, NDArray]: ...
