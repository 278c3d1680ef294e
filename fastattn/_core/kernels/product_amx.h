/* Sums of products in tile registers (AMX): 16 rows of 16 units, as they lie in memory, times 16 units of 16 lanes.
 *
 * Follows the header that says what a unit is, and MULTIPLY_TILES. A multiplication takes 16 cycles and a load of a tile 8,
 * so two times two sums share their operands: a load for each multiplication. Rows and units come in whole tiles, padded
 * with zeros where there are fewer. The registers' shapes are the thread's own, and other libraries set them, too: a kernel
 * sets them where it begins, 0.1 microseconds, and gives them back in the end. */

#define TILE_MOST AMX_TILES
#define WHOLE_TILES(count) (((count) + 15) / 16 * 16)

static void TILE(take_registers)(void) {
    static const struct {
        uint8_t palette, first_row, unused[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shapes = {1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&shapes);
}

static void TILE(give_registers)(void) { _tile_release(); }

/* sums[16 MR][NV] = those of 16 MR rows, `stride` bytes apart, times `count` units of the lanes; `more`: added to it. */
FA_INLINE void TILE(multiply_block)(const char *rows, ptrdiff_t stride, const R *units, ptrdiff_t count, R *sums,
                                    int more, const int MR, const int NV) {
    const ptrdiff_t pitch = NV * FA_VECTOR_BYTES;
    if (more) {
        _tile_loadd(0, sums, pitch);
        if (NV > 1) _tile_loadd(1, sums + LANES, pitch);
        if (MR > 1) _tile_loadd(2, sums + 16 * NV * LANES, pitch);
        if (MR > 1 && NV > 1) _tile_loadd(3, sums + (16 * NV + 1) * LANES, pitch);
    } else {
        _tile_zero(0);
        if (NV > 1) _tile_zero(1);
        if (MR > 1) _tile_zero(2);
        if (MR > 1 && NV > 1) _tile_zero(3);
    }
    for (ptrdiff_t u = 0; u < count; u += 16, rows += 64, units += 16 * NV * LANES) {
        _tile_loadd(6, units, pitch);
        _tile_loadd(4, rows, stride);
        MULTIPLY_TILES(0, 4, 6);
        if (NV > 1) {
            _tile_loadd(7, units + LANES, pitch);
            MULTIPLY_TILES(1, 4, 7);
        }
        if (MR > 1) {
            _tile_loadd(5, rows + 16 * stride, stride);
            MULTIPLY_TILES(2, 5, 6);
            if (NV > 1) MULTIPLY_TILES(3, 5, 7);
        }
    }
    _tile_stored(0, sums, pitch);
    if (NV > 1) _tile_stored(1, sums + LANES, pitch);
    if (MR > 1) _tile_stored(2, sums + 16 * NV * LANES, pitch);
    if (MR > 1 && NV > 1) _tile_stored(3, sums + (16 * NV + 1) * LANES, pitch);
}

/* The same for any number of whole tiles of rows. GCC's intrinsics do not say that they read memory: hence the barriers. */
#define FA_MULTIPLY(NV)                                                                                                \
    FA_APART void TILE(multiply_##NV)(const R *rows, ptrdiff_t stride, ptrdiff_t count, const R *units,                \
                                      ptrdiff_t unit_count, R *sums, int more) {                                       \
        const ptrdiff_t step = stride * (ptrdiff_t)sizeof(R);                                                          \
        const char *from = (const char *)rows;                                                                         \
        ptrdiff_t i = 0;                                                                                               \
        __asm__ volatile("" ::: "memory");                                                                             \
        for (; i + 32 <= count; i += 32)                                                                               \
            TILE(multiply_block)(from + i * step, step, units, unit_count, sums + i * NV * LANES, more, 2, NV);        \
        for (; i < count; i += 16)                                                                                     \
            TILE(multiply_block)(from + i * step, step, units, unit_count, sums + i * NV * LANES, more, 1, NV);        \
        __asm__ volatile("" ::: "memory");                                                                             \
    }
FA_MULTIPLY(1)
FA_MULTIPLY(2)
#undef FA_MULTIPLY
#define FA_MULTIPLY_OF(NV) (NV == 1 ? TILE(multiply_1) : TILE(multiply_2))
