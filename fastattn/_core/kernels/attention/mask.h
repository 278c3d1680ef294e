/* Masks become biases: one for each score, and -inf excludes the key.
 *
 * A mask is read in place, at any strides, one row and one block of keys at a time. Most blocks of a bool mask, and
 * of padding, are entirely empty or entirely full. A full block costs no arithmetic on the scores; an empty one needs
 * no scores either. */
#ifndef FA_ATTENTION_MASK_H
#define FA_ATTENTION_MASK_H

#include "attention/interval.h"
#include "attention/rows.h"
#include "storage/elements.h"

/* What the elements of a block do: a bit for each kind that occurs. */
enum { BLOCK_EXCLUDES = 1, BLOCK_ADMITS = 2, BLOCK_BIASES = 4 };

/* The kinds found so far, lane by lane. */
typedef struct {
    VI excludes, admits, biases;
} mask_kinds;

FA_INLINE mask_kinds note_kinds(mask_kinds kinds, V bias) {
    VI excludes = bias == splat((R)-INFINITY);
    return (mask_kinds){kinds.excludes | excludes, kinds.admits | ~excludes,
                        kinds.biases | (~excludes & (bias != (V){0}))};
}

FA_INLINE int kinds_noted(mask_kinds kinds) {
    const VI found = (kinds.excludes & BLOCK_EXCLUDES) | (kinds.admits & BLOCK_ADMITS) | (kinds.biases & BLOCK_BIASES);
    int noted = 0;
    FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) noted |= (int)found[lane];
    return noted;
}

/* Reads mask elements of any type and stride one by one. */
static void gather_mask(const fa_attention *a, const char *from, ptrdiff_t count, R *to) {
    if (a->mask_type != FA_MASK_BOOL) widen(to, from, (fa_type)a->mask_type, a->mask_stride, count);
    else
        for (ptrdiff_t t = 0; t < count; t++) to[t] = from[t * a->mask_stride] ? 0 : (R)-INFINITY;
}

/* Writes the biases of one row for `count` keys from `from` on and adds their kinds. The last vector is filled up
 * with the last bias. */
FA_INLINE mask_kinds mask_row(const fa_attention *a, const char *from, ptrdiff_t count, R *to, mask_kinds kinds) {
    ptrdiff_t t = 0, whole = (count + LANES - 1) / LANES * LANES;
    /* The next block of this row: with so many rows in turn the hardware does not see it coming, and a full bool mask
     * costs 40 % instead of 25 % (prefetched into L2: 37 %). */
    for (ptrdiff_t at = 0; at < count * a->mask_stride; at += 64)
        __builtin_prefetch(from + count * a->mask_stride + at, 0, 3);
    if (a->mask_type == FA_MASK_BOOL && a->mask_stride == 1)
        for (; t + LANES <= count; t += LANES) {
            VI admits = load_bytes((const uint8_t *)from + t) != (VI){0};
            V bias = choose(admits, (V){0}, splat((R)-INFINITY));
            store(to + t, bias);
            kinds = note_kinds(kinds, bias);
        }
    else if (a->mask_type == STORED && a->mask_stride == (ptrdiff_t)sizeof(R))
        for (; t + LANES <= count; t += LANES) {
            V bias = load((const R *)(from + t * a->mask_stride));
            store(to + t, bias);
            kinds = note_kinds(kinds, bias);
        }
    if (t == count) return kinds;
    gather_mask(a, from + t * a->mask_stride, count - t, to + t);
    for (ptrdiff_t rest = count; rest < whole; rest++) to[rest] = to[count - 1];
    for (; t < whole; t += LANES) kinds = note_kinds(kinds, load(to + t));
    return kinds;
}

/* Address of the mask of row `row`. */
FA_INLINE const char *mask_of(const fa_attention *a, const fa_attention_item *item, ptrdiff_t row) {
    return item->mask + row_offset(a, row, a->mask_head_stride, a->mask_row_stride);
}

#endif
