/* A tile of linear: rows of x that stand in the lanes, and their sums with a block of the weight's rows. */

typedef struct {
    ptrdiff_t rows, vectors; /* lanes beyond `rows` repeat the last one and are dropped in the end */
    const char *const *from, *const *residual;
    char *const *to;
    R *units, *sums; /* [whole tiles of units][vectors][LANES], [SUMS_ROWS][vectors][LANES] */
    TILE(quantised) quantised;
} TILE(linear_tile);
