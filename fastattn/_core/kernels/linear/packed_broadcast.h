/* The sums of panels in vector registers. */
#ifndef FA_LINEAR_PACKED_BROADCAST_H
#define FA_LINEAR_PACKED_BROADCAST_H

#include "linear/panels.h"

/* A tile is rows of x by panels, whose sums fill the registers. 6 rows by 4 vectors need the fewest loads for each
 * multiply-add: 1.2 to 1.3 times as fast as 12 rows by 2 vectors on a core with two multiply-adds a cycle. */
#define PACKED_ROWS FA_PACKED_ROWS
#define PACKED_PREFERRED_ROWS PACKED_ROWS
#define PACKED_MOST_ROWS 120 /* of an item */
/* Units of a panel that are in L1 at a time. Integers may be added in any order, so their runs can be short: 64 of two
 * panels side by side take 16 KB, half of a small L1 (128 are as fast on Cascade Lake). */
#define PACKED_RUN(l) (FA_QUANTISED ? 64 : LINEAR_RUN(l))
/* Panels side by side in a tile with this many rows. One row reads four, at the speed of memory. */
#define PACKED_SIDE(rows) ((rows) <= FULL_ROWS / 4 ? 4 : (rows) <= FULL_ROWS / 2 ? 2 : 1)
#define FULL_ROWS (PACKED_ROWS * FA_PACKED_PANELS) /* of one panel that the registers could hold */

/* The sizes of tiles differ by at most one row; the longer ones come first. */
FA_INLINE ptrdiff_t tile_count(ptrdiff_t rows) { return (rows + PACKED_ROWS - 1) / PACKED_ROWS; }
FA_INLINE ptrdiff_t tile_begin(ptrdiff_t rows, ptrdiff_t tile) {
    return tile * (rows / tile_count(rows)) + fa_clamp(tile, 0, rows % tile_count(rows));
}

/* How many of `left` rows to take before their results are written. */
FA_INLINE ptrdiff_t packed_group(ptrdiff_t left) { return fa_clamp(left, 0, PACKED_MOST_ROWS); }

enum { LEAST_SHARE = 16 }; /* bytes; see sum_tile */

/* Few tiles have to prefetch all of the next run: without, weights beyond the cache took 1.1 to 1.7 times as long,
 * probably as the processor's own prefetching stops with each run. With it, many tiles took 4 % longer. */
#define PACKED_FEW_ROWS (4 * PACKED_ROWS)

/* Whether rows of x can be read in place that are equally spaced: whole units and, of more than four rows, not a
 * multiple of 4 KB apart, where they would share few lines of L1. */
FA_INLINE int fits_in_place(const fa_linear *l, const fa_linear_item *item, ptrdiff_t row) {
    if (l->in_features % UNIT || row % (ptrdiff_t)sizeof(R) || (item->rows > 4 && row % 4096 == 0)) return 0;
    return !FA_MULTIPLY_ADD || l->type == STORED;
}

FA_INLINE void gather_rest(const fa_linear *l, const fa_linear_item *item, R *to) {} /* there is none */

/* A run of panels side by side, and the next one, which tiles prefetch. */
typedef struct {
    const char *first, *ahead;
    ptrdiff_t next, unit; /* bytes from a panel to the next one, and from a unit */
    ptrdiff_t units, panels;
    fa_type type;
} panel_run;

/* A vector of groups of elements as vectors of units, one for each element of a group. */
FA_INLINE void load_group(const char *at, const fa_type type, V *to) {
#if FA_MULTIPLY_ADD && FA_REAL_IS_FLOAT
    if (type == FA_BF16) {
        const VW_f32 pairs = (VW_f32)load((const R *)at);
        to[0] = (V)(pairs << 16);
        to[1] = (V)(pairs & 0xffff0000);
        return;
    }
#endif
    to[0] = FA_MULTIPLY_ADD ? load_as(at, type) : load((const R *)at);
}

/* acc[MR][2 NP] += `count` of the units of a group, for MR rows of x and NP panels. */
FA_INLINE void add_group(V acc[][8], const char *w, ptrdiff_t next, const R *x, ptrdiff_t x_stride, const int count,
                         const fa_type type, const int MR, const int NP) {
    V units[8][2];
    const ptrdiff_t vector = FA_MULTIPLY_ADD ? LANES * panel_group(type) * fa_size_of(type) : FA_VECTOR_BYTES;
    FA_UNROLL_FOR(int j = 0; j < 2 * NP; j++) load_group(w + j / 2 * next + j % 2 * vector, type, units[j]);
    FA_UNROLL_FOR(int g = 0; g < count; g++)
        FA_UNROLL_FOR(int r = 0; r < MR; r++) {
            const spread unit = spread_unit(x + r * x_stride + g);
            FA_UNROLL_FOR(int j = 0; j < 2 * NP; j++) acc[r][j] = add_product_of_lanes(acc[r][j], units[j][g], unit);
        }
}

/* sums[2 NP][MR] (+)= units of NP panels times MR rows of x. Meanwhile `share` bytes of the next run are prefetched for
 * each unit, in each panel. */
FA_INLINE void sum_tile(const panel_run *run, const R *x, ptrdiff_t x_stride, R *sums, int more, const char *ahead,
                        ptrdiff_t share, const int few, const fa_type type, const int MR, const int NP) {
    const int group = FA_MULTIPLY_ADD ? (int)panel_group(type) : 1;
    const ptrdiff_t step = 2 * (FA_MULTIPLY_ADD ? LANES * group * fa_size_of(type) : FA_VECTOR_BYTES);
    const int at_a_time = MR > 3 ? 2 : 4; /* units of a step of the loop */
    const int lines = few ? (int)(at_a_time / group * step + CACHE_LINE - 1) / CACHE_LINE : 1; /* of a panel */
    const char *w = run->first;
    const ptrdiff_t next = run->next, units = run->units;
    V acc[PACKED_ROWS][8];
    ptrdiff_t u = 0;
    FA_UNROLL_FOR(int r = 0; r < MR; r++)
        FA_UNROLL_FOR(int j = 0; j < 2 * NP; j++) acc[r][j] = (V){0};
    for (; u + at_a_time <= units; u += at_a_time) {
        if (MR > 2 && NP == FA_PACKED_PANELS) {
            FA_UNROLL_FOR(int i = 0; i < NP * lines; i++)
                __builtin_prefetch(ahead + i / lines * next + i % lines * CACHE_LINE, 0, 2);
            ahead += share * at_a_time;
        }
        FA_UNROLL_FOR(int i = 0; i < at_a_time; i += group) {
            add_group(acc, w, next, x + u + i, x_stride, group, type, MR, NP);
            w += step;
        }
    }
    for (; u + group <= units; u += group, w += step) add_group(acc, w, next, x + u, x_stride, group, type, MR, NP);
    if (group > 1 && u < units) add_group(acc, w, next, x + u, x_stride, 1, type, MR, NP);
    FA_UNROLL_FOR(int j = 0; j < 2 * NP; j++)
        FA_UNROLL_FOR(int r = 0; r < MR; r++) {
            R *at = sums + (j * MR + r) * LANES;
            store(at, more ? join_sums(acc[r][j], load(at)) : acc[r][j]);
        }
}

/* The same for several tiles, one after the other: a call for each took up to a fifth of the time of a short run. */
FA_INLINE void sum_rows(const panel_run *run, const R *x, ptrdiff_t x_stride, R *sums, int more, const char *ahead,
                        ptrdiff_t share, ptrdiff_t tiles, const int few, const fa_type type, const int MR,
                        const int NP) {
    for (; tiles > 0; tiles--, x += MR * x_stride, sums += 2 * NP * MR * LANES, ahead += share * run->units)
        sum_tile(run, x, x_stride, sums, more, ahead, share, few, type, MR, NP);
}

typedef void sum_rows_kernel(const panel_run *run, const R *x, ptrdiff_t x_stride, R *sums, int more, const char *ahead,
                             ptrdiff_t share, ptrdiff_t tiles);

/* A kernel for each stored type, number of rows, and 1, 2 or 4 panels; NULL for those that are not worth their size. A
 * tile among others takes as many panels as a full one. Narrower types are widened once for many tiles, as
 * conversions take ports of the multiply-adds; for few tiles that took 1.1 to 1.5 times as long. */
#define PACKED_WIDENS(type, rows) (FA_MULTIPLY_ADD && (type) != STORED && (rows) > PACKED_FEW_ROWS)
#define FA_IS_THERE(MR, NP, TYPE)                                                                                      \
    ((NP) == 1 || (NP) == PACKED_SIDE(MR) || ((NP) < PACKED_SIDE(MR) && (!FA_MULTIPLY_ADD || (TYPE) == STORED)))
#define FA_EACH_OF_3(ROW, NAME) ROW(1, NAME) ROW(2, NAME) ROW(3, NAME)
#define FA_EACH_OF_6(ROW, NAME) FA_EACH_OF_3(ROW, NAME) ROW(4, NAME) ROW(5, NAME) ROW(6, NAME)
#define FA_EACH_NUMBER_OF_ROWS FA_JOIN(FA_EACH_OF_, PACKED_ROWS)
#define FA_SUM_ROWS(MR, NP, NAME)                                                                                      \
    FA_NOINLINE void sum_##MR##_rows_##NP##_##NAME(const panel_run *run, const R *x, ptrdiff_t x_stride, R *sums,      \
                                                   int more, const char *ahead, ptrdiff_t share, ptrdiff_t tiles) {    \
        if (!FA_IS_THERE(MR, NP, FA_##NAME)) return;                                                                   \
        if (share == LEAST_SHARE)                                                                                      \
            sum_rows(run, x, x_stride, sums, more, ahead, LEAST_SHARE, tiles, 0, FA_##NAME, MR, NP);                   \
        else sum_rows(run, x, x_stride, sums, more, ahead, share, tiles, 1, FA_##NAME, MR, NP);                        \
    }
#define FA_DEFINE(MR, NAME) FA_SUM_ROWS(MR, 1, NAME) FA_SUM_ROWS(MR, 2, NAME) FA_SUM_ROWS(MR, 4, NAME)
#define FA_NAME(MR, NP, NAME) FA_IS_THERE(MR, NP, FA_##NAME) ? sum_##MR##_rows_##NP##_##NAME : NULL
#define FA_LIST(MR, NAME) {FA_NAME(MR, 1, NAME), FA_NAME(MR, 2, NAME), FA_NAME(MR, 4, NAME)},

#if FA_MULTIPLY_ADD
#define FA_DEFINE_TYPE(_, NAME, bits, REALS, ...) FA_IF_##REALS(FA_EACH_NUMBER_OF_ROWS(FA_DEFINE, NAME))
#define FA_LIST_TYPE(_, NAME, bits, REALS, ...)                                                                        \
    FA_IF_##REALS([FA_##NAME] = {{NULL, NULL, NULL}, FA_EACH_NUMBER_OF_ROWS(FA_LIST, NAME)}, )
FA_EACH_TYPE(FA_DEFINE_TYPE, )
static sum_rows_kernel *const row_kernels[FA_TYPES][PACKED_ROWS + 1][3] = {FA_EACH_TYPE(FA_LIST_TYPE, )};
#elif FA_QUANTISED
FA_EACH_NUMBER_OF_ROWS(FA_DEFINE, I8)
static sum_rows_kernel *const row_kernels[FA_TYPES][PACKED_ROWS + 1][3] = {
    [FA_I8] = {{NULL, NULL, NULL}, FA_EACH_NUMBER_OF_ROWS(FA_LIST, I8)}};
#else
FA_EACH_NUMBER_OF_ROWS(FA_DEFINE, BF16)
static sum_rows_kernel *const row_kernels[FA_TYPES][PACKED_ROWS + 1][3] = {
    [FA_BF16] = {{NULL, NULL, NULL}, FA_EACH_NUMBER_OF_ROWS(FA_LIST, BF16)}};
#endif

#define PACKED_PANEL_REALS(l)                                                                                          \
    (FA_MULTIPLY_ADD ? FA_PACKED_PANELS * PANEL * fa_clamp(UNITS((l)->in_features), 1, LINEAR_RUN(l)) : 0)

#if FA_MULTIPLY_ADD
/* Widens units of a panel to reals and prefetches those of the next run. */
FA_INLINE void widen_panel(const char *from, const char *ahead, ptrdiff_t units, R *to, const fa_type type) {
    const int group = (int)panel_group(type);
    const ptrdiff_t vector = LANES * group * fa_size_of(type);
    V two[2][2];
    for (ptrdiff_t u = 0; u < units; u += group, from += 2 * vector, ahead += 2 * vector) {
        __builtin_prefetch(ahead, 0, 2);
        for (int j = 0; j < 2; j++) load_group(from + j * vector, type, two[j]);
        for (int g = 0; g < group && u + g < units; g++, to += PANEL)
            for (int j = 0; j < 2; j++) store(to + j * LANES, two[j][g]);
    }
}

/* Widens a run once for many tiles: conversions take the ports of the multiply-adds. */
FA_NOINLINE void widen_run(panel_run *run, R *memory) {
    const ptrdiff_t size = run->units * PANEL;
    for (ptrdiff_t p = 0; p < run->panels; p++) {
        const char *from = run->first + p * run->next, *ahead = run->ahead + p * run->next;
#define WIDEN(TYPE) widen_panel(from, ahead, run->units, memory + p * size, TYPE)
        FA_FOR_STORED(run->type, WIDEN);
#undef WIDEN
    }
    run->first = run->ahead = (const char *)memory;
    run->next = size * (ptrdiff_t)sizeof(R);
    run->type = STORED;
}
#else
static void widen_run(panel_run *run, R *memory) {}
#endif

/* Units [unit, unit + units) of `count` panels, for this many tiles. */
FA_INLINE panel_run run_at(const panels *w, ptrdiff_t panel, ptrdiff_t count, ptrdiff_t unit, ptrdiff_t units,
                           ptrdiff_t rows, R *memory) {
    const char *first = w->first + panel * w->next, *from = first + unit * w->unit;
    const int last = unit + units >= UNITS(w->l->in_features);
    panel_run run = {.first = from,
                     .ahead = last ? first + count * w->next : from + units * w->unit,
                     .next = w->next,
                     .unit = w->unit,
                     .units = units,
                     .panels = count,
                     .type = w->l->weight_type};
    if (PACKED_WIDENS(run.type, rows)) widen_run(&run, memory);
    return run;
}

/* How many of `left` panels to take side by side, for so many rows of x. */
FA_INLINE ptrdiff_t panels_beside(fa_type type, ptrdiff_t rows, ptrdiff_t left) {
    const ptrdiff_t least = rows / tile_count(rows);
    ptrdiff_t count = PACKED_SIDE(rows > PACKED_ROWS ? PACKED_ROWS : rows);
    if (PACKED_WIDENS(type, rows)) type = STORED;
    while (count > left || !row_kernels[type][least][count / 2]) count /= 2;
    return count;
}

/* sums[tile][panel][2][rows of the tile][LANES] (+)= those of so many rows of x. */
FA_INLINE void sum_tiles(const panel_run *run, const packed_x *of, ptrdiff_t rows, R *sums, int more) {
    const R *x = (const R *)of->first;
    const ptrdiff_t x_stride = of->row / (ptrdiff_t)sizeof(R);
    sum_rows_kernel *const(*kernels)[3] = row_kernels[run->type];
    const ptrdiff_t tiles = tile_count(rows), least = rows / tiles, longer = rows % tiles, which = run->panels / 2;
    const ptrdiff_t first = longer * (least + 1);
    const ptrdiff_t share = rows > PACKED_FEW_ROWS ? LEAST_SHARE : (run->unit + tiles - 1) / tiles;
    if (longer) kernels[least + 1][which](run, x, x_stride, sums, more, run->ahead, share, longer);
    kernels[least][which](run, x + first * x_stride, x_stride, sums + first * run->panels * PANEL, more,
                          run->ahead + longer * share * run->units, share, tiles - longer);
}

#endif
