"""Attention of Hugging Face transformers: after `register()`, models take ``attn_implementation="fastattn"``.

For inference on the CPU. Masks travel through models as `fastattn.integrations._transformers_masks.CompactMask`: no
Sq × Sk mask is built for causal masks, windows, chunks, packed sequences and padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad
from transformers import AttentionInterface, AttentionMaskInterface

import fastattn
from fastattn.integrations._transformers_masks import CompactMask, attention_mask

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from fastattn.integrations._transformers_masks import Segments

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
    Tensors are float32, float64, float16 or bfloat16, and are read in place. At positions that
    are padding, results may differ from those of "eager". With ``output_attentions=True`` the weights are returned.

    A forward pass raises ValueError for a model in training mode, for dropout, while gradients are recorded (use
    ``torch.inference_mode()`` or ``torch.no_grad()``), for dual tensors and for tensors that are not on the CPU,
    TypeError for a dtype or an option of attention that fastattn does not know.

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
    needs_grad = needs_grad or (s_aux is not None and s_aux.requires_grad)
    needs_grad = needs_grad or (position_bias is not None and position_bias.requires_grad)
    if dropout or module.training or (needs_grad and torch.is_grad_enabled()):
        raise ValueError(_why_not(module, dropout))
    if getattr(forward_ad, "_current_level", 0) >= 0:  # unpack_dual looks at it, too, but takes 0.5 us a tensor
        _check_tangents(query, key, value, position_bias, s_aux)
    if not _HARMLESS.issuperset(others):
        _check_unknown(others)
    if needs_grad:
        query, key, value = query.detach(), key.detach(), value.detach()

    batch, heads, queries, _ = query.shape
    tokens = queries, key.shape[2]
    options, segments = _positions(module, attention_mask, is_causal, sliding_window, tokens)
    if position_bias is not None:
        if segments is not None:
            options, segments = {"attn_mask": attention_mask.build()}, None
        options["attn_mask"] = _biased(position_bias.detach(), options.get("attn_mask"))
    if cu_seq_lens_q is not None or cu_seq_lens_k is not None:
        segments = _packed(cu_seq_lens_q, cu_seq_lens_k, query, options)
        options.pop("q_offset", None)
    options["scale"] = None if scaling is None else float(scaling)
    options["softcap"] = softcap
    if s_aux is not None:
        options["sinks"] = s_aux.detach()

    out = query.new_empty((max(batch, key.shape[0]), queries, heads, value.shape[3]))
    if segments is None:
        fastattn.scaled_dot_product_attention(query, key, value, out=out.transpose(1, 2), **options)
    else:
        for row, (of_queries, of_keys) in enumerate(segments):
            tokens_first = (x[row].transpose(0, 1) for x in (query, key, value))
            fastattn.varlen_attention(*tokens_first, of_queries, of_keys, out=out[row], **options)
    if not others.get("output_attentions"):
        return out, None
    weights = query.new_empty((len(out), heads, *tokens))
    fastattn.attention_weights(query, key, out=weights, **_for_weights(attention_mask, options, segments))
    return out, weights


_uncompiled = torch.compiler.disable(attention)


# Masks and positions


def _positions(
    module: torch.nn.Module,
    mask: torch.Tensor | None,
    is_causal: bool | None,
    window: int | None,
    tokens: tuple[int, int],
) -> tuple[dict[str, Any], Segments | None]:
    """Options that say which keys a query sees. A mask says all of it; the arguments count only without one."""
    if type(mask) is CompactMask:
        if mask.tokens != tokens:
            raise ValueError(f"attention_mask must have {tokens} queries and keys, got shape {tuple(mask.shape)}")
        return dict(mask.options), mask.segments
    if mask is not None:
        return {"attn_mask": mask.detach()}, None
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    options: dict[str, Any] = {"is_causal": True, "q_offset": 0} if is_causal and tokens[0] > 1 else {}
    if window is not None:
        options["window"] = (window - 1, None if is_causal else window - 1)
    return options, None


def _biased(bias: torch.Tensor, mask: torch.Tensor | NDArray | None) -> torch.Tensor:
    """A position bias and a mask as one float mask."""
    if mask is None:
        return bias
    mask = torch.as_tensor(mask)
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _packed(
    of_queries: torch.Tensor | None, of_keys: torch.Tensor | None, query: torch.Tensor, options: dict
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The boundaries `cu_seq_lens_q` and `cu_seq_lens_k` of the only row."""
    if of_queries is None or of_keys is None:
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together, got one of them")
    if len(query) != 1:
        raise ValueError(f"cu_seq_lens_q needs a query of shape (1, heads, tokens, size), got {tuple(query.shape)}")
    if not options.keys() <= {"is_causal", "window", "q_offset"}:
        raise ValueError("cu_seq_lens_q cannot be combined with an attention_mask or a position_bias")
    return [(of_queries, of_keys)]


def _for_weights(mask: torch.Tensor | None, options: dict[str, Any], segments: Segments | None) -> dict[str, Any]:
    """Options of the full matrix of weights."""
    if segments is None:
        return options
    if type(mask) is not CompactMask or mask.segments is not segments:
        raise ValueError("output_attentions=True cannot be combined with cu_seq_lens_q")
    return options | {"window": None, "attn_mask": mask.build()}


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


def _check_tangents(*tensors: torch.Tensor | None) -> None:
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise ValueError("fastattn computes no derivatives, got a dual tensor of torch.autograd.forward_ad")


def _check_unknown(options: dict[str, Any]) -> None:
    unknown = [name for name, x in options.items() if name not in _HARMLESS and x is not None and x is not False]
    if unknown:
        raise TypeError(f"fastattn does not know these options of attention: {', '.join(sorted(unknown))}")
