/* Attention for many rows of one kv head. The rows of an item are divided into tiles, and every tile takes each step
 * of keys in turn: a step, 128 keys and values, comes from memory once for all tiles of the item and from L2 after
 * that. ITEM_TILES is the maximum number of tiles. */
#ifndef FA_ATTENTION_TILED_H
#define FA_ATTENTION_TILED_H

#include "attention/interval.h"
#include "attention/query_tile.h"
#include "products/rows_into_lanes.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/layout.h"
#include "storage/partial.h"
#include "storage/scratch.h"

typedef struct {
    ptrdiff_t count;
    query_tile tile[ITEM_TILES];
    R *key_panel, *value_panel;
    fa_interval any; /* keys that some row of the item sees */
} query_tiles;

FA_INLINE ptrdiff_t round_up(ptrdiff_t keys, ptrdiff_t group) { return (keys + group - 1) / group * group; }

static void find_intervals(const fa_attention *a, const fa_attention_item *item, query_tile *tile) {
    fa_interval any = {item->key_end, item->key_begin}, all = {item->key_begin, item->key_end};
    for (ptrdiff_t lane = 0; lane < tile->vectors * LANES; lane++) {
        ptrdiff_t row = tile->first_row + fa_clamp(lane, 0, tile->rows - 1);
        fa_interval keys = fa_keys_of(item, row / a->group);
        tile->begin[lane] = keys.begin;
        tile->end[lane] = keys.end;
        if (keys.begin > all.begin) all.begin = keys.begin;
        if (keys.end < all.end) all.end = keys.end;
        if (keys.begin == keys.end) continue;
        if (keys.begin < any.begin) any.begin = keys.begin;
        if (keys.end > any.end) any.end = keys.end;
    }
    /* Keys come in groups, counted from the item's first one. */
    any.begin -= (any.begin - item->key_begin) % KEY_GROUP;
    any.end = fa_clamp(round_up(any.end - item->key_begin, KEY_GROUP) + item->key_begin, any.end, item->key_end);
    all.begin = round_up(all.begin - item->key_begin, STEP_GROUP) + item->key_begin;
    if (all.end < item->key_end) all.end -= (all.end - item->key_begin) % STEP_GROUP;
    tile->any = any;
    tile->all = all;
}

/* Sets position, slope and mask of each lane, and the sink, with which its sum begins. */
static void find_options(const fa_attention *a, const fa_attention_item *item, query_tile *tile) {
    const R *slopes = item->slopes, *sinks = item->sinks;
    tile->one_mask = item->position_bias == NULL;
    for (ptrdiff_t lane = 0; lane < tile->vectors * LANES; lane++) {
        ptrdiff_t row = tile->first_row + fa_clamp(lane, 0, tile->rows - 1), j = lane / LANES, i = lane % LANES;
        tile->position[j][i] = (R)((double)(row / a->group) + (double)item->q_offset);
        tile->slope[j][i] = slopes ? slopes[row % a->group] : 0;
        tile->max[j][i] = sinks ? sinks[row % a->group] : (R)-INFINITY;
        tile->sum[j][i] = tile->max[j][i] == (R)-INFINITY ? 0 : 1;
        tile->mask[lane] = item->mask ? mask_of(a, item, row) : NULL;
        tile->one_mask &= tile->mask[lane] == tile->mask[0];
    }
}

/* Transposes the queries into the lanes. */
static void gather_queries(const fa_attention *a, const fa_attention_item *item, query_tile *tile) {
    int plain = are_side_by_side(item->query, a->query_head_stride | a->query_row_stride, a->query_stride, a->type);
    for (ptrdiff_t j = 0; j < tile->vectors; j++) {
        const char *from[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            ptrdiff_t row = tile->first_row + fa_clamp(j * LANES + lane, 0, tile->rows - 1);
            from[lane] = item->query + row_offset(a, row, a->query_head_stride, a->query_row_stride);
        }
        rows_into_lanes(from, a->query_stride, a->type, a->head_size, plain, tile->query + j * LANES, tile->vectors);
    }
    const ptrdiff_t filled = UNITS(a->head_size) * tile->vectors * LANES;
    memset(tile->query + filled, 0, (size_t)(PADDED_UNITS(a->head_size) * tile->vectors * LANES - filled) * sizeof(R));
}

/* Finds the address of each result row. Also writes the maxima and sums of a part, or the rows' lse. */
static void address_rows(const fa_attention *a, const fa_attention_item *item, const query_tile *tile, char **to) {
    for (ptrdiff_t row = 0; row < tile->rows; row++) {
        R max = tile->max[row / LANES][row % LANES], sum = tile->sum[row / LANES][row % LANES];
        ptrdiff_t at = tile->first_row + row, in_item = at - item->first_row;
        if (item->part_sum) {
            to[row] = (char *)((R *)item->part_out + in_item * a->value_size);
            ((R *)item->part_max)[in_item] = max;
            ((R *)item->part_sum)[in_item] = sum;
            continue;
        }
        to[row] = item->out + row_offset(a, at, a->out_head_stride, a->out_row_stride);
        if (item->lse) {
            R lse = log_sum(max, sum);
            memcpy(item->lse + row_offset(a, at, a->lse_head_stride, a->lse_row_stride), &lse, sizeof lse);
        }
    }
}

/* Writes the normalised results to their rows. */
static void scatter_out(const fa_attention *a, const fa_attention_item *item, const query_tile *tile) {
    char *to[FA_TILE_VECTORS * LANES];
    address_rows(a, item, tile, to);
    fa_type type = item->part_sum ? STORED : a->type;
    ptrdiff_t element = item->part_sum ? (ptrdiff_t)sizeof(R) : a->out_stride, size = fa_size_of(type);
    int plain = item->part_sum || are_side_by_side(item->out, a->out_head_stride | a->out_row_stride, element, type);
    for (ptrdiff_t j = 0; j * LANES < tile->rows; j++) {
        V inverse = choose(tile->sum[j] == (V){0}, (V){0}, (R)1 / tile->sum[j]);
        ptrdiff_t d = 0, lanes = fa_clamp(tile->rows - j * LANES, 0, LANES);
        for (; plain && d + LANES <= a->value_size; d += LANES) {
            V x[LANES];
            FA_UNROLL_FOR(int i = 0; i < LANES; i++)
                x[i] = load(tile->out + ((d + i) * tile->vectors + j) * LANES) * inverse;
            transpose(x);
            char **at = to + j * LANES;
            if (lanes == LANES)
                FA_UNROLL_FOR(int lane = 0; lane < LANES; lane++) store_as(at[lane] + d * size, type, x[lane]);
            else
                for (int lane = 0; lane < lanes; lane++) store_as(at[lane] + d * size, type, x[lane]);
        }
        if (plain && d < a->value_size) {
            const ptrdiff_t rest = a->value_size - d;
            V x[LANES] = {{0}};
            for (ptrdiff_t i = 0; i < rest; i++)
                x[i] = load(tile->out + ((d + i) * tile->vectors + j) * LANES) * inverse;
            transpose(x);
            for (int lane = 0; lane < lanes; lane++)
                store_some_as(to[j * LANES + lane] + d * size, type, x[lane], rest);
            continue;
        }
        for (; d < a->value_size; d++)
            for (int lane = 0; lane < lanes; lane++) {
                R x = tile->out[(d * tile->vectors + j) * LANES + lane] * inverse[lane];
                write_element(to[j * LANES + lane] + d * element, type, x);
            }
    }
}

/* Lays out the scratch memory of an item of `rows` rows. Returns its size; `at` may be NULL. */
static ptrdiff_t lay_out_tiles(const fa_attention *a, query_tiles *tiles, char *at, ptrdiff_t rows) {
    const char *begin = at;
    const ptrdiff_t widest = FA_TILE_VECTORS * LANES;
    R *scores = take_scratch(&at, KEYS_PER_STEP * widest), *bias = take_scratch(&at, KEYS_PER_STEP * widest);
    const ptrdiff_t values = UNITS(KEYS_PER_STEP) * PADDED_COMPONENTS(a->value_size);
    R *mask_rows = take_scratch(&at, KEYS_PER_STEP * LANES), *finite = take_scratch(&at, values);
    tiles->key_panel = take_scratch(&at, KEYS_PER_STEP * PADDED_UNITS(a->head_size));
    tiles->value_panel = take_scratch(&at, values);
    R *bias_panel = take_scratch(&at, a->bias_reach < 0 ? 0 : KEYS_PER_STEP * widest);
    tiles->count = (rows + widest - 1) / widest;
    for (ptrdiff_t i = 0; i < tiles->count; i++) {
        query_tile *tile = &tiles->tile[i];
        tile->rows = fa_clamp(rows - i * widest, 0, widest);
        tile->vectors = (tile->rows + LANES - 1) / LANES;
        tile->scores = scores;
        tile->bias = bias;
        tile->finite = finite;
        tile->mask_rows = mask_rows;
        tile->bias_panel = bias_panel;
        tile->query = take_scratch(&at, PADDED_UNITS(a->head_size) * tile->vectors * LANES);
        tile->out = take_scratch(&at, PADDED_COMPONENTS(a->value_size) * tile->vectors * LANES);
    }
    return at - begin;
}

FA_INLINE ptrdiff_t tiled_scratch(const fa_attention *a) {
    query_tiles tiles;
    return lay_out_tiles(a, &tiles, NULL, ITEM_TILES * FA_TILE_VECTORS * LANES);
}

static void begin_tiles(const fa_attention *a, const fa_attention_item *item, query_tiles *tiles) {
    tiles->any = (fa_interval){item->key_end, item->key_begin};
    for (ptrdiff_t i = 0; i < tiles->count; i++) {
        query_tile *tile = &tiles->tile[i];
        tile->first_row = item->first_row + i * FA_TILE_VECTORS * LANES;
        find_intervals(a, item, tile);
        find_options(a, item, tile);
        gather_queries(a, item, tile);
        memset(tile->out, 0, (size_t)(PADDED_COMPONENTS(a->value_size) * tile->vectors * LANES) * sizeof(R));
        if (tile->any.begin < tiles->any.begin) tiles->any.begin = tile->any.begin;
        if (tile->any.end > tiles->any.end) tiles->any.end = tile->any.end;
    }
}

/* The step of a tile from `key` on, within the item's block of keys; empty at the end. Steps end where the interval
 * that all lanes see begins or ends, so that only steps at its edges pay for exclusion. A step depends on the tile
 * alone, not on the rest of the item. */
static key_step step_from(const query_tile *tile, key_step block, ptrdiff_t key) {
    ptrdiff_t last = fa_clamp(tile->any.end, 0, block.first_key + block.count);
    key = fa_clamp(tile->any.begin, key, last);
    ptrdiff_t end = key < tile->all.begin && tile->all.begin < last ? tile->all.begin
                    : key < tile->all.end && tile->all.end < last   ? tile->all.end
                                                                    : last;
    ptrdiff_t skipped = key - block.first_key;
    return (key_step){{block.key.data + skipped * block.key.stride, block.key.stride},
                      values_from(block.value, skipped),
                      key,
                      end - key,
                      block.finite};
}

/* The item's block of keys from `key` on, up to the next multiple of KEYS_PER_STEP from its first key. Empty at the
 * end. */
static key_step block_from(const fa_attention *a, const fa_attention_item *item, const query_tiles *tiles,
                           ptrdiff_t key) {
    ptrdiff_t step_end = key + KEYS_PER_STEP - (key - item->key_begin) % KEYS_PER_STEP;
    ptrdiff_t end = fa_clamp(step_end, key, tiles->any.end);
    key_step block = {.first_key = key, .count = end - key};
    block.key = keys_at(a, item, &a->key, item->key, item->key_scale, key, block.count, a->head_size, tiles->key_panel);
    block.value = values_at(a, item, &a->value, item->value, item->value_scale, key, block.count, a->value_size,
                            tiles->value_panel);
    /* Once for all tiles; a single tile checks only steps in which it excludes a key. */
    block.finite = item->mask && tiles->count > 1 && all_finite(block.value, block.count, a->value_size);
    return block;
}

#define FA_FOR_BLOCKS(block, tiles)                                                                                    \
    for (key_step block = {.first_key = (tiles)->any.begin};                                                           \
         block.first_key < (tiles)->any.end && (block = block_from(a, item, (tiles), block.first_key), block.count);   \
         block.first_key += block.count)
#define FA_FOR_STEPS(step, tile, block)                                                                                \
    for (key_step step = step_from((tile), (block), (block).first_key); step.count > 0;                                \
         step = step_from((tile), (block), step.first_key + step.count))

/* Runs every tile over all keys. */
static void attend_tiles(const fa_attention *a, const fa_attention_item *item, query_tiles *tiles) {
    FA_FOR_BLOCKS(block, tiles)
        for (ptrdiff_t i = 0; i < tiles->count; i++)
            FA_FOR_STEPS(step, &tiles->tile[i], block) tile_step(a, item, &tiles->tile[i], step);
}

/* The part of the item that is one tile. */
FA_INLINE fa_attention_item item_of(const fa_attention *a, const fa_attention_item *item, const query_tile *tile) {
    fa_attention_item own = *item;
    ptrdiff_t in_item = tile->first_row - item->first_row;
    own.first_row = tile->first_row;
    own.rows = tile->rows;
    if (item->part_sum) {
        own.part_out = (R *)item->part_out + in_item * a->value_size;
        own.part_max = (R *)item->part_max + in_item;
        own.part_sum = (R *)item->part_sum + in_item;
    }
    return own;
}

/* The kernel that recomputes tiles whose results were flushed. */
#if FA_MULTIPLY_ADD
#define ATTENTION_BY_MULTIPLY_ADDS EXPORT(attention_tiled)
#else
#define ATTENTION_BY_MULTIPLY_ADDS FA_SYMBOL(attention_tiled, f32)
void ATTENTION_BY_MULTIPLY_ADDS(const fa_attention *a, const fa_attention_item *item, void *scratch);
#endif

void EXPORT(attention_tiled)(const fa_attention *a, const fa_attention_item *item, void *scratch) {
    query_tiles tiles;
    fa_attention_item again[ITEM_TILES];
    ptrdiff_t repeated = 0;
    lay_out_tiles(a, &tiles, scratch, item->rows);
    begin_tiles(a, item, &tiles);
    configure_registers(16);
    attend_tiles(a, item, &tiles);
    release_registers();
    for (ptrdiff_t i = 0; i < tiles.count; i++)
        if (is_flushed(tiles.tile[i].out, tiles.tile[i].sum, tiles.tile[i].vectors, a->value_size))
            again[repeated++] = item_of(a, item, &tiles.tile[i]);
        else scatter_out(a, item, &tiles.tile[i]);
    for (ptrdiff_t i = 0; i < repeated; i++) ATTENTION_BY_MULTIPLY_ADDS(a, &again[i], scratch);
}

#endif
