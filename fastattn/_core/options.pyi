from typing import final

from fastattn._typing import Array, IntOrIntegers, Window

@final
class Options: ...

def attention_options(
    *,
    attn_mask: Array | None = None,
    is_causal: bool = False,
    q_offset: IntOrIntegers | None = None,
    window: Window | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Array | None = None,
    alibi_slopes: Array | None = None,
    position_bias: Array | None = None,
    kv_lengths: IntOrIntegers | None = None,
    out: Array | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Options: ...
