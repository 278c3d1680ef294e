/* The products of attention by tiles (AMX_BF16): queries, keys, values and weights are bfloat16, sums float32.
 *
 *   S' = K Q'             16 keys in rows, as they lie in memory, times pairs of components of 16 queries
 *   O' = O' + V' P'       16 components in rows, times pairs of keys' weights: the values' block is transposed once for
 * all rows of an item, which takes as long as the products of 16 of them
 *
 * The products take less time than the exponentials. Scores are stored as they come; their scale goes into the argument
 * of the exponential. Keys come 32 at a time, counted from the item's first: what a step has fewer of has zeros for
 * weights. */
#ifndef FA_ATTENTION_TILED_AMX_H
#define FA_ATTENTION_TILED_AMX_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET amx
#endif
#include "attention/interval.h"
#include "attention/pages.h"
#include "attention/rows.h"
#include "products/amx.h"
#include "products/bf16_pairs.h"
#include "simd/lanes.h"
#include "storage/partial.h"

#define KEY_GROUP 32
#define STEP_GROUP 32
#define PADDED_UNITS(size) PADDED(UNITS(size))
#define PADDED_COMPONENTS(size) PADDED(size)
#define VALUE_PITCH (KEYS_PER_STEP / 2) /* units of a component's row of the panel */
#define PADDED_KEYS(keys) (((keys) + KEY_GROUP - 1) / KEY_GROUP * KEY_GROUP)

static unit_rows keys_at(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                         const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, R *panel) {
    const char *from[KEYS_PER_STEP];
    const ptrdiff_t units = PADDED_UNITS(size);
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    const int fits =
        rows->element == 2 && size == UNIT * units && count % KEY_GROUP == 0 && rows->row % (ptrdiff_t)sizeof(R) == 0;
    if (fits && fa_in_a_row(a, item, first, count))
        return (unit_rows){(const R *)from[0], rows->row / (ptrdiff_t)sizeof(R)};
    for (ptrdiff_t t = 0; t < PADDED_KEYS(count); t++) {
        R *to = panel + t * units;
        const ptrdiff_t present = t < count ? size : 0;
        if (rows->element == 2) copy_units(from[t < count ? t : 0], present, to, units, LANES);
        else
            for (ptrdiff_t u = 0; u < units; u++)
                to[u] = UNIT * u < present ? read_unit(from[t], rows->element, u, size, rows->type) : 0;
    }
    return (unit_rows){panel, units};
}

/* 32 components of 32 keys, transposed: `to` has a row of 16 pairs for each component. Neighbouring keys are
 * interleaved within each 16 bytes, so that a lane's component is not its number. Not `whole`: zeros for keys from
 * `keys` on and for components from `size` on, up to whole tiles. */
FA_INLINE void transpose_values(const char *const *from, ptrdiff_t keys, ptrdiff_t component, ptrdiff_t size, R *to,
                                const int whole) {
    V low[LANES], high[LANES];
    FA_UNROLL_FOR(int i = 0; i < LANES; i++) {
        V pair[2];
        FA_UNROLL_FOR(int half = 0; half < 2; half++) {
            const int t = 2 * i + half, present = whole || t < keys;
            const char *at = from[present ? t : 0] + 2 * component;
            pair[half] = whole ? load((const R *)at) : load_word_part(at, present ? size - component : 0);
        }
        interleave_words_by_16_bytes(pair[0], pair[1], &low[i], &high[i]);
    }
    transpose(low);
    transpose(high);
    FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) {
        const ptrdiff_t row = component + lane / 4 * 8 + lane % 4;
        if (whole || row < PADDED_COMPONENTS(size)) store(to + row * VALUE_PITCH, low[lane]);
        if (whole || row + 4 < PADDED_COMPONENTS(size)) store(to + (row + 4) * VALUE_PITCH, high[lane]);
    }
}

/* Part of a tile. Element by element, a call with 24 components took twice as long as one with 32. */
FA_NOINLINE void transpose_rest(const char *const *from, ptrdiff_t keys, ptrdiff_t component, ptrdiff_t size, R *to) {
    transpose_values(from, keys, component, size, to, 0);
}

static unit_rows values_at(const fa_attention *a, const fa_attention_item *item, const fa_rows *rows, const char *data,
                           const char *scales, ptrdiff_t first, ptrdiff_t count, ptrdiff_t size, R *panel) {
    const char *from[KEYS_PER_STEP];
    fa_addresses(a, item, data, rows->row, rows->page, first, count, from);
    for (ptrdiff_t t = 0; t < count; t += KEY_GROUP) {
        R *to = panel + t / 2;
        ptrdiff_t d = 0;
        for (; rows->element == 2 && t + KEY_GROUP <= count && d + 32 <= size; d += 32)
            transpose_values(from + t, KEY_GROUP, d, size, to, 1);
        for (; rows->element == 2 && d < size; d += 32) transpose_rest(from + t, count - t, d, size, to);
        for (; d < PADDED_COMPONENTS(size); d++)
            for (ptrdiff_t u = 0; u < KEY_GROUP / 2; u++) {
                const ptrdiff_t even = t + 2 * u, odd = even + 1, at = d * rows->element;
                R *pair = to + d * VALUE_PITCH + u;
                if (d < size && even < count)
                    *pair = unit_of_halves(from[even] + at, odd < count ? from[odd] + at : NULL);
                else *pair = 0;
            }
    }
    return (unit_rows){panel, VALUE_PITCH};
}

#define values_from values_from
FA_INLINE unit_rows values_from(unit_rows value, ptrdiff_t count) {
    return (unit_rows){value.data + count / 2, value.stride};
}

static int all_finite(unit_rows rows, ptrdiff_t count, ptrdiff_t size) {
    VI special = {0};
    for (ptrdiff_t d = 0; d < size; d++)
        for (ptrdiff_t u = 0; u < UNITS(count); u += LANES)
            special |= has_special(load_some(rows.data + d * rows.stride + u, fa_clamp(UNITS(count) - u, 0, LANES)));
    return !any_lane(special);
}

FA_INLINE R value_at(unit_rows value, ptrdiff_t t, ptrdiff_t d) {
    return read_half(value.data + d * value.stride + t / 2, t % 2);
}

/* Values whose non-finite elements are 0, in a panel of their own; zeros for what is missing from the last group. */
static unit_rows finite_values(unit_rows value, ptrdiff_t count, ptrdiff_t size, R *panel) {
    memset(panel, 0, (size_t)(PADDED_COMPONENTS(size) * VALUE_PITCH) * sizeof(R));
    for (ptrdiff_t d = 0; d < size; d++)
        for (ptrdiff_t t = 0; t < count; t++) {
            R x = value_at(value, t, d);
            write_half(panel + d * VALUE_PITCH + t / 2, t % 2, isfinite(x) ? x : 0);
        }
    return (unit_rows){panel, VALUE_PITCH};
}

#define factor_of factor_of
#define in_natural_units in_natural_units
#define keeps_order keeps_order
FA_INLINE R factor_of(const fa_attention *a) { return (R)a->scale; }
FA_INLINE V in_natural_units(V score, R factor) { return score * factor; }
FA_INLINE int keeps_order(const fa_attention *a) { return a->scale > 0; }

#define FA_AMX_PRODUCTS(NV)                                                                                            \
    FA_NOINLINE void scores_##NV(unit_rows key, ptrdiff_t count, const R *query, ptrdiff_t units, R scale, R *scores,  \
                                 V *max, ptrdiff_t run) {                                                              \
        V top[NV];                                                                                                     \
        multiply_tiles(operand_in_place(key), PADDED_KEYS(count), query, units, scores, 0, NV);                        \
        FA_UNROLL_FOR(int j = 0; j < NV; j++) top[j] = splat((R)-INFINITY);                                            \
        for (ptrdiff_t t = 0; t < count; t++)                                                                          \
            FA_UNROLL_FOR(int j = 0; j < NV; j++) top[j] = maximum(load(scores + (t * NV + j) * LANES), top[j]);       \
        FA_UNROLL_FOR(int j = 0; j < NV; j++) max[j] = maximum(top[j] * scale, max[j]);                                \
    }                                                                                                                  \
    FA_NOINLINE void values_##NV(unit_rows value, ptrdiff_t count, const R *weights, ptrdiff_t value_size, R *out,     \
                                 const V *decay) {                                                                     \
        VI changes = {0};                                                                                              \
        const ptrdiff_t components = PADDED_COMPONENTS(value_size);                                                    \
        FA_UNROLL_FOR(int j = 0; j < NV; j++) changes |= decay[j] != splat(1);                                         \
        for (ptrdiff_t d = 0; any_lane(changes) && d < components; d++)                                                \
            FA_UNROLL_FOR(int j = 0; j < NV; j++) {                                                                    \
                R *at = out + (d * NV + j) * LANES;                                                                    \
                store(at, load(at) * decay[j]);                                                                        \
            }                                                                                                          \
        multiply_tiles(operand_in_place(value), components, weights, count, out, 1, NV);                               \
    }
FA_AMX_PRODUCTS(1)
FA_AMX_PRODUCTS(2)
#define FA_SCORES(NV) (NV == 1 ? scores_1 : scores_2)
#define FA_VALUES(NV) (NV == 1 ? values_1 : values_2)

/* 2^(score · scale - from): one operation for the argument, whose error is that of `from`. In lanes where that is `far`
 * from 0 the score is rounded as the maximum was, so that their difference is exact; what the compiler does not see it
 * does not fuse. */
FA_INLINE V exponentiate_score(V score, V scale, V from, R factor, V shift, VI far, const int some_far) {
    V power = multiply_subtract(score, scale, from);
    if (some_far) {
        score *= factor;
        __asm__("" : "+v"(score));
        power = choose(far, (score - shift) * 1.44269504f, power);
    }
    return exp2_rough(power);
}

/* A step's weights, in pairs in the place of the scores, zeros behind the last; and their sums. */
FA_INLINE void exponentiate_from(R *scores, ptrdiff_t count, R factor, const V *shift, const V *from, const VI *far,
                                 V *sum, const int NV, int has_nonfinite, const int some_far) {
    const V nothing = splat((R)-INFINITY), scale = splat(factor * 1.44269504f);
    ptrdiff_t t = 0;
    for (; t + 2 <= count; t += 2)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) {
            V weight[2];
            FA_UNROLL_FOR(int half = 0; half < 2; half++) {
                V score = load(scores + ((t + half) * NV + j) * LANES);
                weight[half] = exponentiate_score(score, scale, from[j], factor, shift[j], far[j], some_far);
                sum[j] += weight[half];
                if (has_nonfinite) weight[half] = choose(score == nothing, splat((R)-0.0), weight[half]);
            }
            store(scores + (t / 2 * NV + j) * LANES, pair_bf16(weight[0], weight[1]));
        }
    for (; t < count; t += 2)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) {
            V score = load(scores + (t * NV + j) * LANES);
            V weight = exponentiate_score(score, scale, from[j], factor, shift[j], far[j], some_far);
            sum[j] += weight;
            if (has_nonfinite) weight = choose(score == nothing, splat((R)-0.0), weight);
            store(scores + (t / 2 * NV + j) * LANES, pair_bf16(weight, (V){0}));
        }
    memset(scores + t / 2 * NV * LANES, 0, (size_t)((PADDED_KEYS(count) - t) / 2 * NV) * FA_VECTOR_BYTES);
}

FA_INLINE void exponentiate_scores(R *scores, ptrdiff_t count, R factor, const V *shift, V *sum, const int NV,
                                   int has_nonfinite, const int exact) {
    V from[FA_TILE_VECTORS];
    VI far[FA_TILE_VECTORS], some = {0};
    FA_UNROLL_FOR(int j = 0; j < NV; j++) {
        from[j] = shift[j] * 1.44269504f;
        some |= far[j] = (from[j] > 0x1p13f) | (from[j] < -0x1p13f);
    }
    if (__builtin_expect(any_lane(some), 0))
        exponentiate_from(scores, count, factor, shift, from, far, sum, NV, has_nonfinite, 1);
    else exponentiate_from(scores, count, factor, shift, from, far, sum, NV, has_nonfinite, 0);
}

#endif
