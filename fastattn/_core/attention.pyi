from typing import Any

from fastattn._core.options import Options
from fastattn._typing import Array, Integers

def scaled_dot_product_attention(query: Array, key: Array, value: Array, options: Options) -> Any: ...
def attention_weights(query: Array, key: Array, options: Options) -> Any: ...
def varlen_attention(
    query: Array, key: Array, value: Array, cu_seqlens_q: Integers, cu_seqlens_k: Integers, options: Options
) -> Any: ...
