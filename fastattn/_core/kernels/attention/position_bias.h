/* Position biases become biases of scores, as masks do, and join those of the mask.
 *
 * A head has a row of biases for the distances -reach ... reach of a key from its query; farther keys have the biases
 * of its ends. What a step needs is copied from there, whatever the numbers of queries and keys. */
#ifndef FA_ATTENTION_POSITION_BIAS_H
#define FA_ATTENTION_POSITION_BIAS_H

#include "attention/mask.h"

/* Where a query stands; cut where it is beyond the reach of all keys. */
FA_INLINE ptrdiff_t position_of(const fa_attention_item *item, ptrdiff_t query) {
    const ptrdiff_t far = (ptrdiff_t)1 << 61;
    return query + fa_clamp(item->q_offset, -far, far);
}

/* Copies the biases of `count` distances from `distance` on, for one head of the group. */
FA_INLINE void copy_biases(const fa_attention *a, const fa_attention_item *item, ptrdiff_t head, ptrdiff_t distance,
                           ptrdiff_t count, R *to, const ptrdiff_t stride) {
    const ptrdiff_t reach = a->bias_reach, width = 2 * reach + 1;
    const R *row = (const R *)item->position_bias + head * width, first = row[0], last = row[width - 1];
    const ptrdiff_t inner = fa_clamp(-reach - distance, 0, count), outer = fa_clamp(reach + 1 - distance, inner, count);
    ptrdiff_t t = 0;
    for (; t < inner; t++) to[t * stride] = first;
    for (; t < outer; t++) to[t * stride] = row[reach + distance + t];
    for (; t < count; t++) to[t * stride] = last;
}

/* Rows in the lanes. The next query of a head stands one position further, as the key before does, so the lanes of two
 * keys have the same biases, moved by the rows of a query. The panel holds the last key's lanes first; those of the key
 * before begin `bias_pitch` elements further, and overlap them in a small group. */
FA_INLINE ptrdiff_t bias_pitch(const fa_attention *a, ptrdiff_t lanes) { return a->group < lanes ? a->group : lanes; }

/* Fills the panel of the rows from `first_row` on. Returns the kinds that occur. */
FA_INLINE int fill_bias_panel(const fa_attention *a, const fa_attention_item *item, ptrdiff_t first_row,
                              ptrdiff_t lanes, ptrdiff_t first_key, ptrdiff_t count, R *panel) {
    const ptrdiff_t pitch = bias_pitch(a, lanes), size = (count - 1) * pitch + lanes;
    for (ptrdiff_t i = 0; i < pitch; i++) { /* one head's biases, from the first key to the last: backwards */
        const ptrdiff_t row = first_row + i, copies = (size - i + pitch - 1) / pitch;
        const ptrdiff_t distance = first_key + count - copies - position_of(item, row / a->group);
        R *to = panel + i + (copies - 1) * pitch;
        if (pitch == 1) copy_biases(a, item, 0, distance, copies, to, -1); /* known to the compiler: whole vectors */
        else copy_biases(a, item, row % a->group, distance, copies, to, -pitch);
    }
    mask_kinds kinds = {{0}, {0}, {0}};
    for (ptrdiff_t t = 0; t < size; t += LANES) kinds = note_kinds(kinds, load(panel + fa_clamp(t, 0, size - LANES)));
    return kinds_noted(kinds);
}

/* The sum of two biases, of which -inf excludes the key whatever the other is. */
FA_INLINE V join_biases(V a, V b) {
    const V excluded = splat((R)-INFINITY);
    return choose((a == excluded) | (b == excluded), excluded, a + b);
}

/* Adds the position biases of a tile to bias[count][vectors][LANES], in which the mask's are, of these kinds; if those
 * are BLOCK_ADMITS alone, nothing was written there. Returns the kinds of the sum. */
FA_NOINLINE int add_lane_biases(const fa_attention *a, const fa_attention_item *item, ptrdiff_t first_row,
                                ptrdiff_t vectors, ptrdiff_t first_key, ptrdiff_t count, R *panel, R *bias, int kinds) {
    const ptrdiff_t pitch = bias_pitch(a, vectors * LANES);
    const int own = fill_bias_panel(a, item, first_row, vectors * LANES, first_key, count, panel);
    if (own == BLOCK_ADMITS || own == BLOCK_EXCLUDES) return own == BLOCK_ADMITS ? kinds : own;
    for (ptrdiff_t t = 0; t < count; t++)
        for (ptrdiff_t j = 0; j < vectors; j++) {
            V x = load(panel + (count - 1 - t) * pitch + j * LANES);
            R *at = bias + (t * vectors + j) * LANES;
            store(at, kinds == BLOCK_ADMITS ? x : join_biases(load(at), x));
        }
    return kinds | own;
}

/* The same for one row, with keys in the lanes: bias[count], and the rest of the last vector. */
FA_NOINLINE int add_row_biases(const fa_attention *a, const fa_attention_item *item, ptrdiff_t row, ptrdiff_t first_key,
                               ptrdiff_t count, R *panel, R *bias, int kinds) {
    const ptrdiff_t whole = (count + LANES - 1) / LANES * LANES;
    mask_kinds own = {{0}, {0}, {0}};
    copy_biases(a, item, row % a->group, first_key - position_of(item, row / a->group), whole, panel, 1);
    for (ptrdiff_t t = 0; t < whole; t += LANES) {
        V x = load(panel + t);
        own = note_kinds(own, x);
        store(bias + t, kinds == BLOCK_ADMITS ? x : join_biases(load(bias + t), x));
    }
    return kinds | kinds_noted(own);
}

#endif
