"""Attention of Hugging Face transformers: after `register()`, models take ``attn_implementation="fastattn"``.

For inference on the CPU. Masks travel through models as `fastattn.integrations._transformers_masks.CompactMask`: no
Sq × Sk mask is built for causal masks, windows, chunks, packed sequences and padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface

import fastattn
from fastattn.integrations._transformers_masks import CompactMask, attention_mask

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from fastattn.integrations._transformers_masks import Segments

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

__all__ = ["register"]

NAME = "fastattn"


def register() -> None:
    """Add "fastattn" to the attention implementations of transformers 5, with masks of its own.

    Models then take it by ``from_pretrained(..., attn_implementation="fastattn")`` or
    ``model.set_attn_implementation("fastattn")``. They compute what they compute with "eager", in inference on the CPU:
    batches padded on any side, caches and generation, grouped heads, windows, chunks, softcap, sinks, position biases,
    packed sequences, and 4-D masks of the user's. Calling it again changes nothing.

    Notes
    -----
    Tensors are float32, float64, float16 or bfloat16 (which needs ml_dtypes), and are read in place. At positions that
    are padding, results may differ from those of "eager". With ``output_attentions=True`` the weights are returned.

    A forward pass raises ValueError for a model in training mode, for dropout, while gradients are recorded (use
    ``torch.inference_mode()`` or ``torch.no_grad()``) and for tensors that are not on the CPU, TypeError for a dtype or
    an option of attention that fastattn does not know.

    Examples
    --------
    >>> import torch, transformers
    >>> from fastattn.integrations.transformers import register
    >>> register()
    >>> config = transformers.LlamaConfig(vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
    ...     num_attention_heads=4, num_key_value_heads=2, attn_implementation="fastattn")
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> with torch.inference_mode():
    ...     model(torch.tensor([[1, 2, 3]])).logits.shape
    torch.Size([1, 3, 100])
    """
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    cu_seq_lens_k: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return attention (B, Sq, Hq, Dv), and its weights (B, Hq, Sq, Sk) if `output_attentions` is set, else None.

    The function that models call, with the arguments that they give to any implementation. query (B, Hq, Sq, D), key
    (B, Hkv, Sk, D) and value (B, Hkv, Sk, Dv) may have any strides.
    """
    if torch.compiler.is_compiling():
        return _uncompiled(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, sliding_window, softcap, s_aux,
            position_bias, cu_seq_lens_q, cu_seq_lens_k, **others,
        )  # fmt: skip
    needs_grad = query.requires_grad or key.requires_grad or value.requires_grad
    if dropout or module.training or (needs_grad and torch.is_grad_enabled()):
        raise ValueError(_why_not(module, dropout))
    if not _HARMLESS.issuperset(others):
        _check_unknown(others)
    if needs_grad:
        query, key, value = query.detach(), key.detach(), value.detach()
    q, k, v = _array("query", query), _array("key", key), _array("value", value)

    options, segments = _positions(module, attention_mask, is_causal, sliding_window, q.shape[2])
    if position_bias is not None:
        if segments is not None:
            options, segments = {"attn_mask": _array("attention_mask", attention_mask.build())}, None
        options["attn_mask"] = _biased(_array("position_bias", position_bias.detach()), options.get("attn_mask"))
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        segments = _packed(cu_seq_lens_q, cu_seq_lens_k, q, options)
        options.pop("q_offset", None)
    options["scale"] = None if scaling is None else float(scaling)
    options["softcap"] = softcap
    if s_aux is not None:
        options["sinks"] = _array("s_aux", s_aux.detach())

    out = np.empty((max(q.shape[0], k.shape[0]), q.shape[2], q.shape[1], v.shape[3]), q.dtype)
    if segments is None:
        fastattn.scaled_dot_product_attention(q, k, v, out=out.swapaxes(1, 2), **options)
    else:
        for row, (of_queries, of_keys) in enumerate(segments):
            tokens_first = (x[row].swapaxes(0, 1) for x in (q, k, v))
            fastattn.varlen_attention(*tokens_first, of_queries, of_keys, out=out[row], **options)
    weights = _weights(q, k, attention_mask, options, segments) if others.get("output_attentions") else None
    return _tensor(out), None if weights is None else _tensor(weights)


_uncompiled = torch.compiler.disable(attention)


# Masks and positions


def _positions(
    module: torch.nn.Module, mask: torch.Tensor | None, is_causal: bool | None, window: int | None, queries: int
) -> tuple[dict[str, Any], Segments | None]:
    """Options that say which keys a query sees. A mask says all of it; the arguments count only without one."""
    if type(mask) is CompactMask:
        return dict(mask.options), mask.segments
    if mask is not None:
        return {"attn_mask": _array("attention_mask", mask.detach())}, None
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    options: dict[str, Any] = {"is_causal": True, "q_offset": 0} if is_causal and queries > 1 else {}
    if window is not None:
        options["window"] = (window - 1, None if is_causal else window - 1)
    return options, None


def _biased(bias: NDArray, mask: NDArray | None) -> NDArray:
    """A position bias and a mask as one float mask."""
    if mask is None:
        return bias
    return np.where(mask, bias, bias.dtype.type(-np.inf)) if mask.dtype == bool else bias + mask


def _packed(of_queries: torch.Tensor | None, of_keys: torch.Tensor | None, q: NDArray, options: dict) -> Segments:
    """The boundaries `cu_seq_lens_q` and `cu_seq_lens_k` of the only row."""
    if of_queries is None or of_keys is None:
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together, got one of them")
    if q.shape[0] != 1:
        raise ValueError(f"cu_seq_lens_q needs a query of shape (1, heads, tokens, size), got {q.shape}")
    if not options.keys() <= {"is_causal", "window", "q_offset"}:
        raise ValueError("cu_seq_lens_q cannot be combined with an attention_mask or a position_bias")
    return [(of_queries.numpy(), of_keys.numpy())]


def _weights(
    q: NDArray, k: NDArray, mask: torch.Tensor | None, options: dict[str, Any], segments: Segments | None
) -> NDArray:
    if segments is not None:
        if type(mask) is not CompactMask or mask.segments is not segments:
            raise ValueError("output_attentions=True cannot be combined with cu_seq_lens_q")
        options = options | {"window": None, "attn_mask": mask.build().numpy()}
    return fastattn.attention_weights(q, k, **options)


# What is refused


#: Arguments that models pass to every implementation and that do not change the result, or say again what others say.
_HARMLESS = frozenset({
    "cache_position", "deterministic", "max_length_k", "max_length_q", "num_items_in_batch", "output_attentions",
    "output_hidden_states", "output_router_logits", "position_ids", "return_dict", "seq_idx", "use_cache",
})  # fmt: skip


def _why_not(module: torch.nn.Module, dropout: float) -> str:
    if module.training:
        return "fastattn is for inference, got a module in training mode: call model.eval()"
    if dropout:
        return f"dropout must be 0, as fastattn is for inference, got {dropout}"
    return "fastattn computes no gradients: call the model under torch.inference_mode() or torch.no_grad()"


def _check_unknown(options: dict[str, Any]) -> None:
    unknown = [name for name, x in options.items() if name not in _HARMLESS and x is not None and x is not False]
    if unknown:
        raise TypeError(f"fastattn does not know these options of attention: {', '.join(sorted(unknown))}")


# From tensors to arrays and back, without copies


def _array(name: str, tensor: torch.Tensor) -> NDArray:
    view = _VIEWS.get(tensor.dtype)
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, got device {tensor.device}")
    if view is None:
        missing = "" if bfloat16 else "; for bfloat16: pip install ml_dtypes"
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}{missing}")
    return view(tensor)


def _bfloat16_array(tensor: torch.Tensor) -> NDArray:
    return tensor.view(torch.int16).numpy().view(bfloat16)


def _tensor(array: NDArray) -> torch.Tensor:
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


_VIEWS = dict.fromkeys((torch.float32, torch.float64, torch.float16, torch.bool), torch.Tensor.numpy)
if bfloat16:
    _VIEWS[torch.bfloat16] = _bfloat16_array
