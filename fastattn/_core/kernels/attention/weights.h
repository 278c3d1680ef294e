/* Returns the matrix of weights, (rows, keys). It is made for inspection, not for speed: the keys are passed twice,
 * first for the maximum and sum of each row, then for the weights. */
#ifndef FA_ATTENTION_WEIGHTS_H
#define FA_ATTENTION_WEIGHTS_H

#include "attention/mask.h"
#include "attention/tiled.h"
#include "storage/elements.h"

/* weights[key][lane] to rows; `to` is where each lane's row begins. */
static void scatter_weights(const fa_attention *a, const query_tile *tile, key_step step, char **to) {
    for (ptrdiff_t row = 0; row < tile->rows; row++)
        for (ptrdiff_t t = 0; t < step.count; t++) {
            const R *weight = tile->scores + (t * tile->vectors + row / LANES) * LANES + row % LANES;
            write_element(to[row] + (step.first_key + t) * a->out_stride, a->type, *weight);
        }
}

/* One step of the first pass or, if `to` is given, of the second. Single weights show the rounding of scores that
 * sums hide, hence the shorter chains. */
FA_INLINE void weights_step_of(const fa_attention *a, const fa_attention_item *item, query_tile *tile, key_step step,
                               char **to, const int NV) {
    const V nothing = splat((R)-INFINITY);
    V max[FA_TILE_VECTORS];
    if (tile_scores_of(a, item, tile, step, max, FA_SHORT_CHAIN, NV) == BLOCK_EXCLUDES) return;
    if (!to) {
        exponentiate(tile, max, step.count, NV, 0, 1);
        return;
    }
    for (int j = 0; j < NV; j++) {
        V shift = choose(tile->max[j] == nothing, (V){0}, tile->max[j]);
        V sum = choose(tile->sum[j] == (V){0}, splat(1), tile->sum[j]);
        for (ptrdiff_t t = 0; t < step.count; t++) {
            R *at = tile->scores + (t * NV + j) * LANES;
            store(at, exp_exact(load(at) - shift) / sum);
        }
    }
    scatter_weights(a, tile, step, to);
}

static void weights_step(const fa_attention *a, const fa_attention_item *item, query_tile *tile, key_step step,
                         char **to) {
#define CALL(NV) weights_step_of(a, item, tile, step, to, NV)
    FA_FOR_WIDTH(tile->vectors, CALL)
#undef CALL
}

static void clear_row(const fa_attention *a, char *to) {
    for (ptrdiff_t key = 0; key < a->keys; key++) memset(to + key * a->out_stride, 0, (size_t)fa_size_of(a->type));
}

static void EXPORT(attention_weights)(const fa_attention *a, const fa_attention_item *item, void *scratch) {
    query_tiles tiles;
    lay_out_tiles(a, &tiles, scratch, item->rows);
    begin_tiles(a, item, &tiles);
    FA_FOR_BLOCKS(block, &tiles)
        for (ptrdiff_t i = 0; i < tiles.count; i++)
            FA_FOR_STEPS(step, &tiles.tile[i], block) weights_step(a, item, &tiles.tile[i], step, NULL);

    char *to[ITEM_TILES][FA_TILE_VECTORS * LANES];
    for (ptrdiff_t i = 0; i < tiles.count; i++) {
        address_rows(a, item, &tiles.tile[i], to[i]);
        for (ptrdiff_t row = 0; row < tiles.tile[i].rows; row++) clear_row(a, to[i][row]);
    }
    FA_FOR_BLOCKS(block, &tiles)
        for (ptrdiff_t i = 0; i < tiles.count; i++)
            FA_FOR_STEPS(step, &tiles.tile[i], block) weights_step(a, item, &tiles.tile[i], step, to[i]);
}

#endif
