"""Stands in for attention over pages, which is to be a part of _core/attention.pyx: gathers the pages, and attends."""

import numpy as np

from fastattn._core.attention import scaled_dot_product_attention


def attend_pages(
    query, key_pages, value_pages, key_scales, value_scales, block_tables, first_keys, lengths, attn_mask, is_causal,
    q_offset, window, scale, softcap, sinks, alibi_slopes, out, return_lse, num_threads,
):  # fmt: skip
    batch, heads, queries, _ = query.shape
    result = np.empty((batch, heads, queries, value_pages.shape[-1]), query.dtype) if out is None else out
    wide = np.float64 if query.dtype == np.float64 else np.float32
    lse = np.empty((batch, heads, queries), wide)
    offsets = lengths - queries if q_offset is None else np.broadcast_to(q_offset, batch)
    for b in range(batch):
        first = 0 if first_keys is None else first_keys[b]
        own = slice(first, lengths[b])
        key = _gathered(key_pages, key_scales, block_tables[b], own).astype(wide)
        value = _gathered(value_pages, value_scales, block_tables[b], own).astype(wide)
        mask = attn_mask
        if mask is not None:
            mask = np.broadcast_to(mask, (batch, heads, queries, lengths.max()))[b, :, :, own]
        slopes = alibi_slopes
        if slopes is not None:
            slopes = np.broadcast_to(slopes, (batch, heads))[b].astype(wide)
        own_sinks = None if sinks is None else sinks.astype(wide)
        result[b], lse[b] = scaled_dot_product_attention(
            query[b].astype(wide), key, value, mask, is_causal, int(offsets[b] - first), window, scale, softcap,
            own_sinks, slopes, None, None, True, num_threads,
        )  # fmt: skip
    return (result, lse) if return_lse else result


def _gathered(pages, scales, table, own):
    """(Hkv, keys, size)"""
    page_size = pages.shape[2]
    j = np.arange(own.start, own.stop)
    rows = pages[table[j // page_size], :, j % page_size].swapaxes(0, 1)
    if scales is None:
        return rows
    return rows * scales[table[j // page_size], :, j % page_size].T[..., None]
