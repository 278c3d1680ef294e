/* Sums of products in tile registers (AMX): 16 rows of 16 units in memory times 16 units of 16 lanes. A
 * multiplication takes 16 cycles and a load of a tile 8, so two by two sums share their operands: one load for each
 * multiplication. Units are padded with zeros to whole tiles; so are rows, except those of packed weights, whose last
 * two registers of rows overlap instead. The shapes of the registers belong to the thread, and other libraries set
 * them as well: a kernel sets them where it begins (0.1 microseconds) and releases them where it ends. */
#ifndef FA_PRODUCTS_AMX_H
#define FA_PRODUCTS_AMX_H

#ifndef FA_ARITHMETIC /* opened alone */
#define FA_ARITHMETIC FA_BFLOAT16
#define FA_TARGET amx
#endif
#include "products/units.h"

#define PADDED(count) (((count) + 15) / 16 * 16)

/* Registers of lanes always have 16 rows. */
#define configure_registers configure_registers
static void configure_registers(int rows) {
    const uint8_t height = (uint8_t)rows;
    const struct {
        uint8_t palette, first_row, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {height, height, height, height, height, height, 16, 16}};
    tiles_configure(&shapes);
}

#define release_registers release_registers
static void release_registers(void) { tiles_release(); }

/* One side of a product, or its sums: where its first tile lies, and how far apart, in bytes, are rows of a tile, the
 * next tile along the sum (of sums: the next rows'), and the next one across it. Tiles that are packed lie one behind
 * the other, 1 KB each: at other distances they may compete for few lines of L1. */
typedef struct {
    char *first;
    ptrdiff_t row, along, across;
} amx_operand;

#define AMX_TILE_REALS (16 * LANES)
#define PACKED(first, along, across)                                                                                   \
    ((amx_operand){(char *)(first), FA_VECTOR_BYTES, (along) * FA_VECTOR_BYTES * 16, (across) * FA_VECTOR_BYTES * 16})

#define MULTIPLY(sum, row, lane)                                                                                       \
    do {                                                                                                               \
        if (swapped) MULTIPLY_SWAPPED(sum, row, lane);                                                                 \
        else MULTIPLY_TILES(sum, row, lane);                                                                           \
    } while (0)
#define FOUR_TILES(CALL)                                                                                               \
    CALL(0, 0, 0);                                                                                                     \
    if (NL > 1) CALL(1, 0, 1);                                                                                         \
    if (NR > 1) CALL(2, 1, 0);                                                                                         \
    if (NR > 1 && NL > 1) CALL(3, 1, 1)
#define SUM_AT(i, j) (sums.first + (i) * sums.along + (j) * sums.across)
#define LOAD(tile, i, j) tile_load(tile, SUM_AT(i, j), sums.row)
#define ZERO(tile, i, j) tile_zero(tile)
#define STORE(tile, i, j) tile_store(tile, SUM_AT(i, j), sums.row)

/* The products of NR tiles of rows and NL of lanes. `swapped`: the unsigned bytes stand in the rows; by default in the
 * lanes. */
FA_INLINE void multiply_step(amx_operand rows, amx_operand lanes, const int NR, const int NL, const int swapped) {
    tile_load(6, lanes.first, lanes.row);
    tile_load(4, rows.first, rows.row);
    MULTIPLY(0, 4, 6);
    if (NL > 1) {
        tile_load(7, lanes.first + lanes.across, lanes.row);
        MULTIPLY(1, 4, 7);
    }
    if (NR > 1) {
        tile_load(5, rows.first + rows.across, rows.row);
        MULTIPLY(2, 5, 6);
        if (NL > 1) MULTIPLY(3, 5, 7);
    }
}

/* sums[NR][NL] tiles = those of `count` steps along the sum; `more`: added to what is there. */
FA_INLINE void multiply_block(amx_operand rows, amx_operand lanes, ptrdiff_t count, amx_operand sums, int more,
                              const int NR, const int NL, const int swapped) {
    if (more) {
        FOUR_TILES(LOAD);
    } else {
        FOUR_TILES(ZERO);
    }
    for (; count > 0; count--, rows.first += rows.along, lanes.first += lanes.along)
        multiply_step(rows, lanes, NR, NL, swapped);
    FOUR_TILES(STORE);
}

/* The same for any number of tiles of rows. GCC's intrinsics do not say that they read memory: hence the barriers. What
 * is passed by address is read field by field: as a value it went through memory, and its load waited for several
 * stores. */
FA_INLINE void multiply_rows(const amx_operand *from, ptrdiff_t row_tiles, const amx_operand *units, ptrdiff_t count,
                             const amx_operand *to, int more, const int NL, const int swapped) {
    amx_operand rows = {from->first, from->row, from->along, from->across};
    amx_operand sums = {to->first, to->row, to->along, to->across};
    const amx_operand lanes = {units->first, units->row, units->along, units->across};
    tile_barrier();
    for (; row_tiles >= 2; row_tiles -= 2, rows.first += 2 * rows.across, sums.first += 2 * sums.along)
        multiply_block(rows, lanes, count, sums, more, 2, NL, swapped);
    if (row_tiles) multiply_block(rows, lanes, count, sums, more, 1, NL, swapped);
    tile_barrier();
}
#define FA_MULTIPLY(NAME, NL, SWAPPED)                                                                                 \
    FA_NOINLINE void NAME(const amx_operand *from, ptrdiff_t row_tiles, const amx_operand *units, ptrdiff_t count,     \
                          const amx_operand *to, int more) {                                                           \
        multiply_rows(from, row_tiles, units, count, to, more, NL, SWAPPED);                                           \
    }
FA_MULTIPLY(multiply_1, 1, 0)
FA_MULTIPLY(multiply_2, 2, 0)
FA_MULTIPLY(multiply_swapped, 2, 1)

/* sums[rows][NV] = those of so many rows with `count` units [count][NV] of NV vectors. */
FA_INLINE void multiply_tiles(amx_operand from, ptrdiff_t rows, const R *units, ptrdiff_t count, R *sums, int more,
                              const int NV) {
    const ptrdiff_t row = NV * FA_VECTOR_BYTES;
    const amx_operand lanes = {(char *)units, row, 16 * row, FA_VECTOR_BYTES};
    const amx_operand to = {(char *)sums, row, 16 * row, FA_VECTOR_BYTES};
    if (NV == 1) multiply_1(&from, (rows + 15) / 16, &lanes, (count + 15) / 16, &to, more);
    else multiply_2(&from, (rows + 15) / 16, &lanes, (count + 15) / 16, &to, more);
}

/* Rows as they lie. */
FA_INLINE amx_operand operand_in_place(unit_rows rows) {
    const ptrdiff_t row = rows.stride * (ptrdiff_t)sizeof(R);
    return (amx_operand){(char *)rows.data, row, 16 * (ptrdiff_t)sizeof(R), 16 * row};
}

#endif
