"""ONNX's operators of attention, softmax, normalisation and rotary embedding, computed by fastattn.

`OPS` is for ``onnx.reference.ReferenceEvaluator(model, new_ops=OPS)``: the evaluator then computes these operators with
fastattn, and all others in its own NumPy code. The schemas of the installed ``onnx`` package define the operators in
the model's opset; where its Python reference differs from a schema's text and function body, these are followed.

Three things differ from the schemas:

- float16 and bfloat16 are computed in float32 and rounded once, at the end; Softmax is rounded at each step of its
  function body. `stash_type` and `softmax_precision` can increase the precision, never reduce it.
- A row of -inf alone, whose softmax is 0/0, gives zeros (LogSoftmax: -inf), as in all of fastattn.
- ``nonpad_kv_seqlen`` beyond the number of keys is an error.

ReferenceEvaluator does not pass `new_ops` to a model's local functions: inline those first
(``onnx.inliner.inline_local_functions``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.lib.array_utils import normalize_axis_index
from onnx import TensorProto, defs, helper
from onnx.reference.op_run import OpRun

import fastattn
from fastattn._dtypes import REALS
from fastattn._scaling import near_one

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from numpy.typing import DTypeLike, NDArray
    from onnx import NodeProto
    from onnx.defs import OpSchema

__all__ = ["OPS"]

# ONNX's types -> the type that fastattn computes in.
_COMPUTED_IN = {row.name: np.dtype(row.computed_in) for row in REALS}

# Allowed values of `softmax_precision` and `stash_type`.
_PRECISIONS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


class _Operator(OpRun):
    """An operator with the attributes and defaults of the model's opset."""

    def __init__(self, onnx_node: NodeProto, run_params: dict[str, Any], schema: OpSchema | None = None):
        op_type, domain = onnx_node.op_type, onnx_node.domain
        # By default OpRun takes the newest schema, whose defaults are not those of older opsets (Softmax's axis).
        schema = schema or defs.get_schema(op_type, run_params["opsets"][domain], domain)
        self.since_version = schema.since_version
        unknown = sorted({attribute.name for attribute in onnx_node.attribute} - set(schema.attributes))
        if unknown:
            raise ValueError(f"{op_type}-{self.since_version} has no attribute {', '.join(unknown)}")
        if len(onnx_node.input) > schema.max_input:
            raise ValueError(
                f"{op_type}-{self.since_version} has at most {schema.max_input} inputs, got {len(onnx_node.input)}"
            )
        super().__init__(onnx_node, run_params, schema)

    def _is_asked_for(self, i: int) -> bool:
        return len(self.output) > i and self.output[i] != ""


# Attention


class Attention(_Operator):
    """Attention of opsets 23, 24 and 25, by `fastattn.scaled_dot_product_attention`.

    ``qk_matmul_output`` holds scores that fastattn never stores: they are computed separately, and only if the model
    uses that output. Its mode 3 is `fastattn.attention_weights`.
    """

    def _run(
        self,
        query,
        key,
        value,
        attn_mask=None,
        past_key=None,
        past_value=None,
        nonpad_kv_seqlen=None,
        *,
        scale,
        is_causal,
        q_num_heads,
        kv_num_heads,
        softmax_precision,
        softcap,
        qk_matmul_output_mode,
        left_window_size=-1,
        right_window_size=-1,
    ):
        _check_one_of("qk_matmul_output_mode", qk_matmul_output_mode, range(len(_QK_MATMUL_OUTPUTS)))
        precision = _precision("softmax_precision", softmax_precision)
        heads = {"q_num_heads": q_num_heads, "kv_num_heads": kv_num_heads}
        is_packed = self._is_packed(query, key, value, heads)
        if is_packed:  # (batch, sequence, heads * size)
            query = _split_heads("Q", query, "q_num_heads", q_num_heads)
            key = _split_heads("K", key, "kv_num_heads", kv_num_heads)
            value = _split_heads("V", value, "kv_num_heads", kv_num_heads)
        past, present_key, present_value = _with_past(key, value, past_key, past_value)

        options = {
            "is_causal": bool(is_causal),
            "q_offset": past,
            "window": (_bound("left_window_size", left_window_size), _bound("right_window_size", right_window_size)),
            "scale": 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale),
            "softcap": float(softcap) or None,  # 0 means none
        }
        if nonpad_kv_seqlen is not None:
            _check_lengths(nonpad_kv_seqlen, query, past_key)
            options |= {"q_offset": nonpad_kv_seqlen - query.shape[-2], "kv_lengths": nonpad_kv_seqlen}

        dtype = _computing_dtype(query.dtype, key.dtype, value.dtype, precision)
        if attn_mask is not None:
            attn_mask = self._mask(attn_mask, present_key.shape[-2], dtype)
        q, k, v = (x.astype(dtype, copy=False) for x in (query, present_key, present_value))
        out = _narrowed(fastattn.scaled_dot_product_attention(q, k, v, attn_mask, **options), query.dtype)
        if is_packed:
            out = out.swapaxes(1, 2).reshape(out.shape[0], out.shape[2], out.shape[1] * out.shape[3])
        outputs = out, present_key, present_value
        if self._is_asked_for(3):
            qk_matmul_output = _QK_MATMUL_OUTPUTS[qk_matmul_output_mode](q, k, attn_mask, options)
            outputs += (_narrowed(qk_matmul_output, query.dtype),)
        return outputs

    def _is_packed(self, query: NDArray, key: NDArray, value: NDArray, heads: dict[str, int | None]) -> bool:
        """Whether all heads of a token share one axis; ranks and head counts must agree on it."""
        ranks = query.ndim, key.ndim, value.ndim
        if ranks not in ((3, 3, 3), (4, 4, 4)):
            raise ValueError(f"Q, K and V must all have 3 or all have 4 axes, got {ranks}")
        is_packed = ranks[0] == 3
        for name, number in heads.items():
            if is_packed and (number is None or number < 1):
                raise ValueError(f"{name} must be given and positive if Q, K and V have 3 axes, got {number}")
            # Older opsets ignored it.
            if not is_packed and number is not None and self.since_version >= 25:
                raise ValueError(f"{name} must not be given if Q, K and V have 4 axes, got {number}")
        return is_packed

    def _mask(self, mask: NDArray, keys: int, dtype: DTypeLike) -> NDArray:
        """`attn_mask` for all keys: bool, or of the dtype of the computation."""
        is_bool = mask.dtype == bool
        missing = keys - mask.shape[-1]
        # Since opset 24, keys beyond the mask are excluded, even if it has a single key; before, that one broadcast.
        if missing > 0 and self.since_version >= 24:
            mask = np.pad(
                mask if is_bool else mask.astype(dtype),
                [(0, 0)] * (mask.ndim - 1) + [(0, missing)],
                constant_values=False if is_bool else -np.inf,
            )
        return mask if is_bool else mask.astype(dtype, copy=False)


def _split_heads(name: str, x: NDArray, attribute: str, heads: int) -> NDArray:
    """(B, S, H * D) as (B, H, S, D), without a copy."""
    batch, length, hidden = x.shape
    if hidden % heads:
        raise ValueError(f"{attribute} must divide the last axis of {name}, got {heads} and shape {x.shape}")
    return x.reshape(batch, length, heads, hidden // heads).swapaxes(1, 2)


def _with_past(
    key: NDArray, value: NDArray, past_key: NDArray | None, past_value: NDArray | None
) -> tuple[int, NDArray, NDArray]:
    """The length of the past, and past and new keys and values concatenated."""
    if (past_key is None) != (past_value is None):
        raise ValueError("past_key and past_value must be given together, got one of them")
    if past_key is None:
        return 0, key, value
    return past_key.shape[-2], np.concatenate((past_key, key), axis=-2), np.concatenate((past_value, value), axis=-2)


def _check_lengths(lengths: NDArray, query: NDArray, past_key: NDArray | None) -> None:
    if past_key is not None:
        raise ValueError("nonpad_kv_seqlen must not be given together with past_key and past_value")
    if lengths.shape != query.shape[:1]:
        raise ValueError(f"nonpad_kv_seqlen must have shape {query.shape[:1]}, one per batch, got {lengths.shape}")


def _bound(name: str, size: int) -> int | None:
    """A side of the window in fastattn's terms."""
    if size < -1:
        raise ValueError(f"{name} must be -1, for no bound, or not negative, got {size}")
    return None if size == -1 else size


@np.errstate(invalid="ignore", over="ignore")
def _scores(query: NDArray, key: NDArray, attn_mask: NDArray | None, options: dict[str, Any]) -> NDArray:
    (batch, heads, queries, size), (_, kv_heads, keys, _) = query.shape, key.shape
    groups = query.reshape(batch, kv_heads, heads // kv_heads, queries, size)
    scores = options["scale"] * (groups @ key[:, :, np.newaxis].swapaxes(-1, -2))
    return scores.reshape(batch, heads, queries, keys)


def _capped_scores(query: NDArray, key: NDArray, attn_mask: NDArray | None, options: dict[str, Any]) -> NDArray:
    scores, softcap = _scores(query, key, attn_mask, options), options["softcap"]
    return scores if softcap is None else softcap * np.tanh(scores / softcap)


@np.errstate(invalid="ignore", over="ignore")
def _masked_scores(query: NDArray, key: NDArray, attn_mask: NDArray | None, options: dict[str, Any]) -> NDArray:
    scores = _capped_scores(query, key, attn_mask, options)
    if attn_mask is not None and attn_mask.dtype != bool:
        scores, attn_mask = scores + attn_mask, None
    # If all scores are equal, exactly the excluded keys have weight 0.
    positions = {name: option for name, option in options.items() if name not in ("scale", "softcap")}
    flat_query, flat_key = np.zeros_like(query[..., :1]), np.zeros_like(key[..., :1])
    is_seen = fastattn.attention_weights(flat_query, flat_key, attn_mask, **positions) > 0
    return np.where(is_seen, scores, -np.inf)


def _weights(query: NDArray, key: NDArray, attn_mask: NDArray | None, options: dict[str, Any]) -> NDArray:
    return fastattn.attention_weights(query, key, attn_mask, **options)


# By qk_matmul_output_mode.
_QK_MATMUL_OUTPUTS = (_scores, _capped_scores, _masked_scores, _weights)


# Normalisation


class LayerNormalization(_Operator):
    """LayerNormalization, by `fastattn.layer_norm`; Mean and InvStdDev, which that does not return, by NumPy."""

    def _run(self, x, scale, bias=None, *, axis, epsilon, stash_type):
        stash = _precision("stash_type", stash_type)
        axis = _axis(axis, x)
        parameters = {"Scale": scale} if bias is None else {"Scale": scale, "B": bias}
        y, rows = _normalized(fastattn.layer_norm, x, parameters, axis, epsilon, stash)
        outputs = (_narrowed(y, x.dtype),)
        if self._is_asked_for(1) or self._is_asked_for(2):
            shape = x.shape[:axis] + (1,) * (x.ndim - axis)
            outputs += tuple(_narrowed(s.reshape(shape), stash) for s in _mean_and_inverse_deviation(rows, epsilon))
        return outputs


class RMSNormalization(_Operator):
    """RMSNormalization, by `fastattn.rms_norm`."""

    def _run(self, x, scale, *, axis, epsilon, stash_type):
        stash = _precision("stash_type", stash_type)
        y, _ = _normalized(fastattn.rms_norm, x, {"scale": scale}, _axis(axis, x), epsilon, stash)
        return (_narrowed(y, scale.dtype),)


def _normalized(
    norm: Callable[..., NDArray],
    x: NDArray,
    parameters: dict[str, NDArray],
    axis: int,
    epsilon: float,
    stash: np.dtype,
) -> tuple[NDArray, NDArray]:
    """The norm over all axes from `axis` on, then scaled and shifted; and x with those axes as one.

    `parameters` are the weight and, for some norms, the bias, of any shape that broadcasts to x.
    """
    for name, p in parameters.items():
        if p.ndim > x.ndim or any(m not in (1, n) for m, n in zip(p.shape[::-1], x.shape[::-1], strict=False)):
            raise ValueError(f"{name} must broadcast to X's shape {x.shape}, got {p.shape}")
    dtype = _computing_dtype(x.dtype, stash, *(p.dtype for p in parameters.values()))
    x, *parameters = (a.astype(dtype, copy=False) for a in (x, *parameters.values()))
    row = x.shape[axis:]
    rows = x.reshape(*x.shape[:axis], math.prod(row))
    if all(p.ndim <= len(row) for p in parameters):
        same_for_all = (np.broadcast_to(p, row).reshape(-1) for p in parameters)
        return norm(rows, *same_for_all, eps=epsilon).reshape(x.shape), rows
    # The norm does not support parameters that differ between rows.
    y = norm(rows, eps=epsilon).reshape(x.shape)
    for apply, p in zip((np.multiply, np.add), parameters, strict=False):
        y = apply(y, p)
    return y, rows


@np.errstate(divide="ignore", invalid="ignore", over="ignore")
def _mean_and_inverse_deviation(rows: NDArray, epsilon: float) -> tuple[NDArray, NDArray]:
    mean, variance = _mean_and_variance(rows)
    inverse = 1 / np.sqrt(variance + epsilon)
    overflown = ~np.isfinite(variance)
    if overflown.any():
        near, exponents = near_one(rows)
        near_mean, near_variance = _mean_and_variance(near)
        near_epsilon = np.ldexp(rows.dtype.type(epsilon), -2 * exponents)
        mean = np.where(overflown, np.ldexp(near_mean, exponents), mean)
        inverse = np.where(overflown, np.ldexp(1 / np.sqrt(near_variance + near_epsilon), -exponents), inverse)
    return mean, inverse


def _mean_and_variance(rows: NDArray) -> tuple[NDArray, NDArray]:
    mean = rows.mean(axis=-1, keepdims=True)
    return mean, np.square(rows - mean).mean(axis=-1, keepdims=True)


# Rotary embedding


class RotaryEmbedding(_Operator):
    """RotaryEmbedding, by `fastattn.rotary_embedding`."""

    def _run(self, x, cos, sin, positions=None, *, interleaved, rotary_embedding_dim, num_heads):
        if x.ndim not in (3, 4):
            raise ValueError(f"X must have 3 or 4 axes, got shape {x.shape}")
        is_packed = x.ndim == 3
        if is_packed and (num_heads is None or num_heads < 1):
            raise ValueError(f"num_heads must be given and positive if X has 3 axes, got {num_heads}")
        heads = _split_heads("X", x, "num_heads", num_heads) if is_packed else x
        _check_rotation(heads, {"cos_cache": cos, "sin_cache": sin}, positions, rotary_embedding_dim)

        dtype = _computing_dtype(x.dtype, cos.dtype, sin.dtype)
        heads, cos, sin = (a.astype(dtype, copy=False) for a in (heads, cos, sin))
        turned = fastattn.rotary_embedding(
            heads, cos, sin, positions=positions, interleaved=bool(interleaved), rotary_dim=2 * cos.shape[-1]
        )
        if is_packed:
            turned = turned.swapaxes(1, 2).reshape(x.shape)
        return (_narrowed(turned, x.dtype),)


def _check_rotation(x: NDArray, caches: dict[str, NDArray], positions: NDArray | None, rotary_size: int) -> None:
    """Raise for arguments that `fastattn.rotary_embedding` would take otherwise; rotary_size 0 is the whole head."""
    head_size = x.shape[-1]
    pairs, rest = divmod(rotary_size or head_size, 2)
    if rest or not 0 < 2 * pairs <= head_size:
        raise ValueError(f"rotary_embedding_dim must be even and at most {head_size}, got {rotary_size or head_size}")
    rank = 3 if positions is None else 2
    for name, cache in caches.items():
        if cache.ndim != rank or cache.shape[-1] != pairs:
            given = "without" if positions is None else "with"
            raise ValueError(
                f"{name} must have {rank} axes {given} position_ids, the last of {pairs}, got shape {cache.shape}"
            )


# Softmax


class Softmax(_Operator):
    """Softmax, by `fastattn.softmax`."""

    def _run(self, x, *, axis):
        return (_along(_softmax, x, axis, self.since_version),)


class LogSoftmax(_Operator):
    """LogSoftmax, by `fastattn.log_softmax`."""

    def _run(self, x, *, axis):
        return (_along(_log_softmax, x, axis, self.since_version),)


def _along(function: Callable[[NDArray, int], NDArray], x: NDArray, axis: int, since_version: int) -> NDArray:
    axis = _axis(axis, x)
    if since_version < 13:  # there x is flattened to a matrix, whose second axis begins at `axis`
        return function(x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])), 1).reshape(x.shape)
    return function(x, axis)


def _log_softmax(x: NDArray, axis: int) -> NDArray:
    return _narrowed(fastattn.log_softmax(_widened(x), axis), x.dtype)


def _softmax(x: NDArray, axis: int) -> NDArray:
    """In 16 bits, each step of the function body is rounded: exponentials, sum and quotient."""
    weights = fastattn.softmax(_widened(x), axis)
    if x.dtype.itemsize > 2:
        return weights
    largest = weights.max(axis, keepdims=True, initial=0)
    exponentials = _narrowed(weights / np.where(largest == 0, 1, largest), x.dtype)
    total = _narrowed(_widened(exponentials).sum(axis, keepdims=True), x.dtype)
    return exponentials / np.where(total == 0, total.dtype.type(1), total)


# Attributes and types


def _axis(axis: int, x: NDArray) -> int:
    """The axis, counted from the front."""
    return normalize_axis_index(axis, x.ndim, "attribute axis")


def _precision(name: str, precision: int | None) -> np.dtype:
    """The dtype that an attribute names by its number in TensorProto; float32 if it is missing."""
    precision = TensorProto.FLOAT if precision is None else precision
    _check_one_of(name, precision, _PRECISIONS)
    return helper.tensor_dtype_to_np_dtype(precision)


def _check_one_of(name: str, value: int, allowed: Iterable[int]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value}")


def _computing_dtype(*dtypes: np.dtype) -> np.dtype:
    """The narrowest dtype of fastattn's computations that holds all of these."""
    unknown = sorted({dtype.name for dtype in dtypes} - set(_COMPUTED_IN))
    if unknown:
        raise ValueError(f"tensors must be of {', '.join(_COMPUTED_IN)}, got {', '.join(unknown)}")
    return np.result_type(*(_COMPUTED_IN[dtype.name] for dtype in dtypes))


def _widened(x: NDArray) -> NDArray:
    return x.astype(_computing_dtype(x.dtype), copy=False)


@np.errstate(over="ignore")
def _narrowed(x: NDArray, dtype: np.dtype) -> NDArray:
    """A result in the type of the operator's schema; numbers that it cannot hold become infinite."""
    return x.astype(dtype, copy=False)


OPS = [Attention, LayerNormalization, LogSoftmax, RMSNormalization, RotaryEmbedding, Softmax]
