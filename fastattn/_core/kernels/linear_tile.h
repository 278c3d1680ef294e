/* A tile of linear: rows of x that stand in the lanes, and their sums with a block of the weight's rows. */

typedef struct {
    ptrdiff_t rows, vectors; /* lanes beyond `rows` repeat the last one and are dropped in the end */
    const char *const *from, *const *residual;
    char *const *to;
    R *units, *sums; /* [whole tiles of units][vectors][LANES], [SUMS_ROWS][vectors][LANES] */
    TILE(quantised) quantised;
} TILE(linear_tile);

/* n results of a row, with their residual if there is one, where elements do not lie side by side. */
static void TILE(scatter_row)(const fa_linear *l, const char *residual, char *to, V y, ptrdiff_t feature, ptrdiff_t n) {
    V more = {0};
    if (residual) OP(widen)((R *)&more, residual + feature * l->residual_element, l->type, l->residual_element, n);
    y += more;
    OP(narrow)(to + feature * l->out_element, l->type, l->out_element, (const R *)&y, n);
}

/* The scales of n features, if there are any, and their biases or 0. */
FA_INLINE void TILE(find_shift)(const fa_linear *l, ptrdiff_t feature, ptrdiff_t n, V *scale, V *bias) {
    *scale = *bias = (V){0};
    if (l->scales) OP(widen)((R *)scale, (const char *)(l->scales + feature), FA_F32, sizeof(float), n);
    if (l->bias) *bias = OP(load_some_as)(l->bias + feature * fa_size_of(l->bias_type), l->bias_type, n);
}

/* A sum with scale and bias: in one expression, so that it is rounded alike wherever it is made. */
FA_INLINE V TILE(shifted)(const fa_linear *l, V sum, V scale, V bias) { return l->scales ? sum * scale + bias : sum + bias; }
