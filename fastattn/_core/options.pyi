from collections.abc import Sequence

from numpy.typing import NDArray

class Options: ...

def attention_options(
    *,
    attn_mask: NDArray | None = None,
    is_causal: bool = False,
    q_offset: int | Sequence[int] | NDArray | None = None,
    window: tuple[int | None, int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: NDArray | None = None,
    alibi_slopes: NDArray | None = None,
    kv_lengths: int | Sequence[int] | NDArray | None = None,
    out: NDArray | None = None,
    return_lse: bool = False,
    num_threads: int | None = None,
) -> Options: ...
