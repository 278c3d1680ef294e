from collections.abc import Sequence

from numpy.typing import NDArray

from fastattn._core.options import Options

def scaled_dot_product_attention(
    query: NDArray, key: NDArray, value: NDArray, options: Options
) -> NDArray | tuple[NDArray, NDArray]: ...
def attention_weights(query: NDArray, key: NDArray, options: Options) -> NDArray | tuple[NDArray, NDArray]: ...
def varlen_attention(
    query: NDArray,
    key: NDArray,
    value: NDArray,
    cu_seqlens_q: Sequence[int] | NDArray,
    cu_seqlens_k: Sequence[int] | NDArray,
    options: Options,
) -> NDArray | tuple[NDArray, NDArray]: ...
