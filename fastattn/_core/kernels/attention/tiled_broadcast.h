/* The two products of attention in register tiles: S' = K Q' and O' = O' + V' P', elements of keys and values broadcast
 * over vectors of rows. */
#ifndef FA_ATTENTION_TILED_BROADCAST_H
#define FA_ATTENTION_TILED_BROADCAST_H

#include "attention/rows.h"
#if FA_MULTIPLY_ADD
#include "attention/tiled_fma.h"
#else
#include "attention/tiled_bf16.h"
#endif
#include "products/broadcast.h"
#include "products/units.h"

/* An item of one vector of rows reads keys and values once and waits for them: a line of each run of components is
 * prefetched so many keys before its turn. Beyond L2, heads of 20 and 40 components took 1.2 to 1.3 times as long
 * without. */
#define KEYS_AHEAD 64
#define PREFETCH_ROW(address) __builtin_prefetch(address, 0, 3)

/* Copies the values to `panel`, with 0 for what is not finite. */
static unit_rows finite_values(unit_rows value, ptrdiff_t count, ptrdiff_t size, R *panel) {
    for (ptrdiff_t t = 0; t < count; t++)
        for (ptrdiff_t d = 0; d < size; d++) {
            R x = value_at(value, t, d);
            put_value(panel, size, t, d, isfinite(x) ? x : 0);
        }
    return (unit_rows){panel, size};
}

/* Raises the maximum of each vector of rows; NaN never becomes the maximum. In one vector alone the comparisons are two
 * chains: one of MR takes as long as the products of 8 components. */
FA_INLINE void raise_maxima(const V (*scores)[FA_TILE_VECTORS], V *max, const int MR, const int NV) {
    FA_UNROLL_FOR(int j = 0; j < NV; j++) {
        V top[2] = {max[j], max[j]};
        FA_UNROLL_FOR(int i = 0; i < MR; i++) {
            V *at = &top[NV == 1 ? i % 2 : 0];
            *at = maximum(scores[i][j], *at);
        }
        max[j] = NV == 1 ? maximum(top[1], top[0]) : top[0];
    }
}

/* scores[MR][NV] = MR keys times the transposed queries, `run` components added up in one chain; raises the lanes'
 * maximum. */
FA_INLINE void score_block(const R *key, ptrdiff_t stride, const R *query, ptrdiff_t head_size, R scale, R *scores,
                           V *max, ptrdiff_t run, const int MR, const int NV) {
    V acc[FA_BLOCK_ROWS_1][FA_TILE_VECTORS] = {{{0}}};
    for (ptrdiff_t d = 0, end; d < head_size; d = end) {
        end = head_size - d < run ? head_size : d + run;
        FA_UNROLL_FOR(int i = 0; i < MR; i++) {
            if (NV == 1) PREFETCH_ROW(key + (i + KEYS_AHEAD) * stride + d);
            FA_UNROLL_FOR(int j = 0; j < NV; j++) acc[i][j] = (V){0};
        }
        for (ptrdiff_t c = d; c < end; c++) {
            V q[FA_TILE_VECTORS];
            FA_UNROLL_FOR(int j = 0; j < NV; j++) q[j] = load(query + (c * NV + j) * LANES);
            FA_UNROLL_FOR(int i = 0; i < MR; i++) {
                spread k = spread_unit(key + i * stride + c);
                FA_UNROLL_FOR(int j = 0; j < NV; j++) acc[i][j] = add_product(acc[i][j], k, q[j]);
            }
        }
        FA_UNROLL_FOR(int i = 0; i < MR; i++)
            FA_UNROLL_FOR(int j = 0; j < NV; j++) {
                R *at = scores + (i * NV + j) * LANES;
                if (d) acc[i][j] += load(at);
                if (end == head_size) acc[i][j] *= scale; /* scaling the queries would round every component */
                store(at, acc[i][j]);
            }
    }
    raise_maxima(acc, max, MR, NV);
}

/* out[MR][NV] = out · decay + MR value components times the weights of `count` keys. The sum over a run of keys is made
 * on its own and then added: in one chain over all keys its rounding errors grow to 4 times those of NumPy. */
FA_INLINE void value_block(const R *value, ptrdiff_t stride, const R *weights, ptrdiff_t count, R *out, const V *decay,
                           const int MR, const int NV) {
    V acc[FA_BLOCK_ROWS_1][FA_TILE_VECTORS];
    FA_UNROLL_FOR(int i = 0; i < MR; i++)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) acc[i][j] = (V){0};
    for (ptrdiff_t t = 0; t < count; t++) {
        V p[FA_TILE_VECTORS];
        if (NV == 1 && MR > 1) PREFETCH_ROW(value + (t + KEYS_AHEAD) * stride);
        FA_UNROLL_FOR(int j = 0; j < NV; j++) p[j] = load(weights + (t * NV + j) * LANES);
        FA_UNROLL_FOR(int i = 0; i < MR; i++) {
            spread v = spread_unit(value + t * stride + i);
            FA_UNROLL_FOR(int j = 0; j < NV; j++) acc[i][j] = add_product(acc[i][j], v, p[j]);
        }
    }
    FA_UNROLL_FOR(int i = 0; i < MR; i++)
        FA_UNROLL_FOR(int j = 0; j < NV; j++) {
            R *at = out + (i * NV + j) * LANES;
            store(at, load(at) * decay[j] + acc[i][j]);
        }
}

FA_INLINE void scores_of(unit_rows key, ptrdiff_t count, const R *query, ptrdiff_t head_size, R scale, R *scores,
                         V *max, ptrdiff_t run, const int MR, const int NV) {
#define CALL(M)                                                                                                        \
    score_block(key.data + i * key.stride, key.stride, query, head_size, scale, scores + i * NV * LANES, max, run, M,  \
                NV)
    if (NV == 1 && MR == 16) FA_IN_LONG_BLOCKS(count, MR, CALL);
    else FA_IN_BLOCKS(count, MR, CALL);
#undef CALL
}

FA_INLINE void values_of(unit_rows value, ptrdiff_t count, const R *weights, ptrdiff_t value_size, R *out,
                         const V *decay, const int MR, const int NV) {
    V one[FA_TILE_VECTORS];
    FA_UNROLL_FOR(int j = 0; j < NV; j++) one[j] = splat(1);
    for (ptrdiff_t t = 0; t < count; t += KEYS_PER_SUM) {
        const R *first = value.data + t * value.stride, *weight = weights + t * NV * LANES;
        const V *factor = t ? one : decay;
        ptrdiff_t keys = count - t < KEYS_PER_SUM ? count - t : KEYS_PER_SUM;
#define CALL(M) value_block(first + i, value.stride, weight, keys, out + i * NV * LANES, factor, M, NV)
        if (NV == 1 && MR == 16) FA_IN_LONG_BLOCKS(value_size, MR, CALL);
        else FA_IN_BLOCKS(value_size, MR, CALL);
#undef CALL
    }
}

/* One function for each width of a tile, not inlined: within their callers the loops' addresses were kept in vector
 * registers, and attention took 12 % longer. */
#define FA_PRODUCTS(MR, NV)                                                                                            \
    FA_NOINLINE void scores_##NV(unit_rows key, ptrdiff_t count, const R *query, ptrdiff_t head_size, R scale,         \
                                 R *scores, V *max, ptrdiff_t run) {                                                   \
        scores_of(key, count, query, head_size, scale, scores, max, run, MR, NV);                                      \
    }                                                                                                                  \
    FA_NOINLINE void values_##NV(unit_rows value, ptrdiff_t count, const R *weights, ptrdiff_t value_size, R *out,     \
                                 const V *decay) {                                                                     \
        values_of(value, count, weights, value_size, out, decay, MR, NV);                                              \
    }
FA_PRODUCTS(FA_BLOCK_ROWS_1, 1)
FA_PRODUCTS(FA_BLOCK_ROWS_2, 2)
#if FA_TILE_VECTORS >= 3
FA_PRODUCTS(FA_BLOCK_ROWS_3, 3)
#define FA_SCORES(NV) (NV == 1 ? scores_1 : NV == 2 ? scores_2 : scores_3)
#define FA_VALUES(NV) (NV == 1 ? values_1 : NV == 2 ? values_2 : values_3)
#else
#define FA_SCORES(NV) (NV == 1 ? scores_1 : scores_2)
#define FA_VALUES(NV) (NV == 1 ? values_1 : values_2)
#endif

#endif
