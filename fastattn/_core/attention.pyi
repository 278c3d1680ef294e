from typing import Any

from numpy.typing import NDArray

from fastattn._core.options import Options
from fastattn._typing import Array, Integers

class Pages:
    key_pages: NDArray[Any]
    value_pages: NDArray[Any]
    key_scales: NDArray[Any] | None
    value_scales: NDArray[Any] | None

def scaled_dot_product_attention(query: Array, key: Array, value: Array, options: Options) -> Any: ...
def attention_weights(query: Array, key: Array, options: Options) -> Any: ...
def varlen_attention(
    query: Array, key: Array, value: Array, cu_seqlens_q: Integers, cu_seqlens_k: Integers, options: Options
) -> Any: ...
