"""PyTorch on the CPU, in inference mode, on tensors that share the arrays' memory.

NumPy's bfloat16 is not PyTorch's: there and back, 16 bits pass as integers.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F

from fastattn.commands.measuring import dtypes
from laboratory.peers import Unsuitable, folded, is_causal, is_square, lengths_of


def start(threads):
    """Set the number of threads, and record no gradients in this process."""
    torch.set_num_threads(threads)
    torch.inference_mode().__enter__()


def _tensor(array):
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor):
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(dtypes.named("bfloat16"))
    return tensor.numpy()


# Attention


def _attention(query, key, value, case, mask=None):
    """Causal attention of unequal lengths needs a mask: PyTorch's own is_causal counts from the first key."""
    if mask is None and is_causal(case) and not is_square(case):
        mask = _visible(case)
    call = functools.partial(
        F.scaled_dot_product_attention,
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal(case) and mask is None,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return call, functools.partial(_unfolded, case)


def _visible(case):
    Sq, Sk = case.sizes["Sq"], case.sizes["Sk"]
    return torch.ones(Sq, Sk, dtype=torch.bool).tril(Sk - Sq)


def _unfolded(case, result):
    return _array(result).reshape([case.sizes[axis] for axis in ("B", "Hq", "Sq", "Dv")])


def _heads_first(case, arguments):
    return _attention(*_tensors(arguments), case, _mask(case, arguments))


def _tokens_first(case, arguments):
    """The memory order in which a projection leaves its heads: (B, S, H, D)."""
    tensors = (tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in _tensors(arguments))
    return _attention(*tensors, case, _mask(case, arguments))


def _mask_added(case, arguments):
    """The bool mask as numbers to add, prepared beforehand."""
    mask = _mask(case, arguments)
    if mask is None or mask.dtype != torch.bool:
        raise Unsuitable("no bool mask")
    tensors = _tensors(arguments)
    added = torch.zeros(mask.shape, dtype=tensors[0].dtype).masked_fill(~mask, -torch.inf)
    return _attention(*tensors, case, added)


def _tensors(arguments):
    return [_tensor(arguments[name]) for name in ("query", "key", "value")]


def _mask(case, arguments):
    """The mask; with lengths, what is left of each sequence's keys."""
    if "kv_lengths" in arguments:
        return (torch.arange(case.sizes["Sk"]) < torch.from_numpy(arguments["kv_lengths"])[:, None])[:, None, None]
    return _tensor(arguments["attn_mask"]) if "attn_mask" in arguments else None


def _group_folded(case, arguments):
    return _heads_first(case, {**arguments, "query": folded(case, arguments["query"])})


def _each_to_its_length(case, arguments):
    """One sequence of the batch after the other, each with the keys that it has and the queries of a group folded."""
    lengths = lengths_of(case, arguments).tolist()
    query, key, value = _tensors(arguments)
    queries = query.reshape(case.sizes["B"], case.sizes["Hkv"], -1, case.sizes["D"])
    sequences = [
        [part[None] for part in (queries[n], key[n, :, :length], value[n, :, :length])]
        for n, length in enumerate(lengths)
    ]

    def call():
        return [F.scaled_dot_product_attention(*sequence) for sequence in sequences]

    return call, lambda results: _unfolded(case, torch.cat(results))


# Packed sequences: PyTorch has no function for them on CPUs. Each sequence has as many queries as keys.


def _padded(case, arguments):
    """All padded to the longest, beforehand; keys beyond a sequence's end are masked."""
    sequences = _sequences(arguments)
    lengths = [len(query) for query, _, _ in sequences]
    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    batch = (pad(tensors).transpose(1, 2) for tensors in zip(*sequences, strict=True))
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])[:, None, None]
    grouped = sequences[0][0].shape[1] != sequences[0][1].shape[1]
    call = functools.partial(F.scaled_dot_product_attention, *batch, attn_mask=mask, enable_gqa=grouped)
    return call, lambda result: _packed(row[:, :length] for row, length in zip(result, lengths, strict=True))


def _one_by_one(case, arguments):
    sequences = [[tensor.transpose(0, 1)[None] for tensor in sequence] for sequence in _sequences(arguments)]
    grouped = sequences[0][0].shape[1] != sequences[0][1].shape[1]
    attention = functools.partial(F.scaled_dot_product_attention, enable_gqa=grouped)
    return lambda: [attention(*sequence) for sequence in sequences], lambda results: _packed(
        result[0] for result in results
    )


def _sequences(arguments):
    """Query, key and value (S, H, D) of each."""
    lengths = np.diff(arguments["cu_seqlens_q"]).tolist()
    return list(zip(*(tensor.split(lengths) for tensor in _tensors(arguments)), strict=True))


def _packed(results):
    """Pack arrays (H, S, D), one after the other: (T, H, D)."""
    return _array(torch.cat([result.transpose(0, 1) for result in results]))


# Row operations


def _allocating(function):
    def build(case, arguments):
        return functools.partial(function, *map(_tensor, arguments.values())), _arrays

    return build


def _writing(prepare):
    """`prepare` turns the tensors into a call that writes into given ones."""

    def build(case, arguments):
        if not case.out:
            raise Unsuitable("writes into a given tensor")
        return prepare(*map(_tensor, arguments.values())), _arrays

    return build


def _arrays(result):
    return tuple(map(_array, result)) if isinstance(result, tuple) else _array(result)


def _along(function):
    """For functions of an axis."""

    def build(case, arguments):
        return functools.partial(function, _tensor(arguments["x"]), case.options.get("axis", -1)), _arrays

    return build


def _along_into(function):
    """The same, for those that take `out`."""

    def build(case, arguments):
        if not case.out:
            raise Unsuitable("writes into a given tensor")
        call, fetch = _along(function)(case, arguments)
        return functools.partial(call, out=torch.empty_like(call.args[0])), fetch

    return build


def _layer_norm(x, weight, bias):
    return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)


def _layer_norm_into(x, weight, bias):
    """The operator behind F.layer_norm; it also returns the mean and deviation of each row."""
    parameters = x, x.shape[-1:], weight, bias, 1e-5
    out, mean, deviation = torch.native_layer_norm(*parameters)
    write = functools.partial(torch.ops.aten.native_layer_norm.out, *parameters, out0=out, out1=mean, out2=deviation)
    return lambda: write()[0]


def _rms_norm(x, weight):
    return F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def _add(norm):
    def function(x, residual, *parameters):
        total = x + residual
        return norm(total, *parameters), total

    return function


def _add_layer_norm_into(x, residual, weight, bias):
    total = torch.empty_like(x)
    norm = _layer_norm_into(total, weight, bias)
    return lambda: (torch.add(x, residual, out=total), norm())[::-1]


# Linear layers

#: By activation, what PyTorch calls the way to compute gelu.
_GELUS = {"gelu": "none", "gelu_tanh": "tanh"}


def _gelu(case):
    """The way; None without an activation."""
    return _GELUS[case.options["activation"]] if case.options else None


def _linear(case, arguments):
    layer, gelu = functools.partial(F.linear, *map(_tensor, arguments.values())), _gelu(case)
    return (layer if gelu is None else lambda: F.gelu(layer(), approximate=gelu)), _arrays


def _linear_into(case, arguments):
    if not case.out:
        raise Unsuitable("writes into a given tensor")
    (x, weight, bias), gelu = map(_tensor, arguments.values()), _gelu(case)
    out = torch.empty(len(x), len(weight), dtype=x.dtype)
    layer = functools.partial(torch.addmm, bias, x, weight.T, out=out)
    return (layer if gelu is None else lambda: torch.ops.aten.gelu_(layer(), approximate=gelu)), _arrays


def _linear_packed(case, arguments):
    """What torch.compile makes of a model whose weights stay: laid out beforehand, the activation in the same pass."""
    (x, weight, bias), gelu = map(_tensor, arguments.values()), _gelu(case)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    activation = ("none", [], "none") if gelu is None else ("gelu", [], gelu)
    return functools.partial(torch.ops.mkldnn._linear_pointwise, x, packed, bias, *activation), _arrays


# Rotary embedding: PyTorch has no function for it, so as models write it. The table's rows are chosen beforehand.


def _angles(arguments):
    """x, and cos and sin with a row for each token, (B, 1, S, D/2)."""
    x, cos, sin, positions = map(_tensor, arguments.values())
    return x, cos[positions][:, None], sin[positions][:, None]


def _rotate_half(case, arguments):
    """As transformers has it."""
    if case.options.get("interleaved"):
        raise Unsuitable("halves")
    x, cos, sin = _angles(arguments)
    cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    half = x.shape[-1] // 2
    return lambda: x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin, _arrays


def _halves_into(case, arguments):
    if case.options.get("interleaved") or not case.out:
        raise Unsuitable("halves, into a given tensor")
    x, cos, sin = _angles(arguments)
    out = torch.empty_like(x)
    (a, b), (turned_a, turned_b) = x.chunk(2, -1), out.chunk(2, -1)

    def call():
        torch.mul(a, cos, out=turned_a).addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=turned_b).addcmul_(a, sin)
        return out

    return call, _arrays


def _complex(case, arguments):
    """As Llama's authors have it: there are no complex numbers of 16 bits, so those are widened and narrowed again."""
    if not case.options.get("interleaved"):
        raise Unsuitable("neighbours")
    x, cos, sin = _angles(arguments)
    wide = torch.promote_types(x.dtype, torch.float32)
    turn = torch.complex(cos.to(wide), sin.to(wide))

    def numbers():
        return torch.view_as_complex(x.to(wide).unflatten(-1, (-1, 2)))

    out = torch.empty_like(numbers()) if case.out else None
    return lambda: torch.view_as_real(torch.mul(numbers(), turn, out=out)).flatten(-2).to(x.dtype), _arrays


VARIANTS = {
    "scaled_dot_product_attention": {
        "scaled_dot_product_attention": _heads_first,
        "scaled_dot_product_attention on (B, S, H, D)": _tokens_first,
        "scaled_dot_product_attention, groups folded": _group_folded,
        "scaled_dot_product_attention, mask as numbers": _mask_added,
        "one by one, groups folded": _each_to_its_length,
    },
    "varlen_attention": {"padded, with a mask": _padded, "one by one": _one_by_one},
    "softmax": {
        "softmax": _along(torch.softmax),
        "softmax, out": _along_into(torch.softmax),
    },
    "log_softmax": {
        "log_softmax": _along(torch.log_softmax),
        "log_softmax, out": _along_into(torch.log_softmax),
    },
    "layer_norm": {
        "layer_norm": _allocating(_layer_norm),
        "native_layer_norm, out": _writing(_layer_norm_into),
    },
    "rms_norm": {"rms_norm": _allocating(_rms_norm)},
    "add_layer_norm": {
        "add, layer_norm": _allocating(_add(_layer_norm)),
        "add, native_layer_norm, out": _writing(_add_layer_norm_into),
    },
    "add_rms_norm": {"add, rms_norm": _allocating(_add(_rms_norm))},
    "linear": {
        "linear, gelu": _linear,
        "addmm, gelu_, out": _linear_into,
        "linear_pointwise, packed": _linear_packed,
    },
    "rotary_embedding": {
        "rotate_half": _rotate_half,
        "halves, out": _halves_into,
        "complex product": _complex,
    },
}
