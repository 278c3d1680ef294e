/* Rotary position embedding: each pair (a, b) of a row turns to (a cos - b sin, a sin + b cos).
 *
 * A vector holds the first components of LANES pairs, another one the second. Halves lie so in memory; neighbours are
 * sorted into such vectors and back, two two-source permutations each way, which costs less than the memory does. All of
 * a pair is read before any of it is written: x may be out itself. */

/* Pairs [i, i + n) of a row, n <= LANES. */
FA_INLINE void OP(turn_halves)(const R *x, const R *cos, const R *sin, R *out, ptrdiff_t pairs, ptrdiff_t i,
                               ptrdiff_t n) {
    V a = OP(load_some)(x + i, n), b = OP(load_some)(x + pairs + i, n);
    V c = OP(load_some)(cos + i, n), s = OP(load_some)(sin + i, n);
    OP(store_some)(out + i, a * c - b * s, n);
    OP(store_some)(out + pairs + i, a * s + b * c, n);
}

FA_INLINE void OP(turn_neighbours)(const R *x, const R *cos, const R *sin, R *out, ptrdiff_t i, ptrdiff_t n) {
    ptrdiff_t first = 2 * n < LANES ? 2 * n : LANES, rest = 2 * n - first; /* elements in either vector */
    V low = OP(load_some)(x + 2 * i, first), high = rest ? OP(load_some)(x + 2 * i + LANES, rest) : (V){0};
    V a = OP(even_places)(low, high), b = OP(odd_places)(low, high);
    V c = OP(load_some)(cos + i, n), s = OP(load_some)(sin + i, n);
    V turned_a = a * c - b * s, turned_b = a * s + b * c;
    OP(store_some)(out + 2 * i, OP(interleave_low)(turned_a, turned_b), first);
    if (rest) OP(store_some)(out + 2 * i + LANES, OP(interleave_high)(turned_a, turned_b), rest);
}

FA_INLINE void OP(turn_row)(const R *x, const R *cos, const R *sin, R *out, ptrdiff_t pairs, const int interleaved) {
#define TURN(n)                                                                                                        \
    (interleaved ? OP(turn_neighbours)(x, cos, sin, out, i, n) : OP(turn_halves)(x, cos, sin, out, pairs, i, n))
    ptrdiff_t i = 0;
    for (; i + LANES <= pairs; i += LANES) TURN(LANES);
    if (i < pairs) TURN(pairs - i);
#undef TURN
}

FA_INLINE void OP(rotate)(const fa_rotary *r, const char *x, const char *cos, const char *sin, const char *positions,
                          char *out, ptrdiff_t rows, R *scratch, const int interleaved) {
    const ptrdiff_t turned = 2 * r->pairs;
    const int plain_x = OP(plain)(x, r->x_row, r->x_element), plain_out = OP(plain)(out, r->out_row, r->out_element);
    const int plain_cos = r->table_type == STORED && OP(plain)(cos, r->cos_row, r->cos_element);
    const int plain_sin = r->table_type == STORED && OP(plain)(sin, r->sin_row, r->sin_element);
    R *cos_copy = scratch, *sin_copy = cos_copy + r->pairs, *row = sin_copy + r->pairs, *result = row + r->length;
    for (ptrdiff_t i = 0; i < rows; i++) {
        ptrdiff_t at = positions ? *(const intptr_t *)(positions + i * r->position) : i;
        const char *c = cos + at * r->cos_row, *s = sin + at * r->sin_row;
        if (!plain_cos) OP(widen)(cos_copy, c, r->table_type, r->cos_element, r->pairs);
        if (!plain_sin) OP(widen)(sin_copy, s, r->table_type, r->sin_element, r->pairs);
        if (!plain_x) OP(gather)(row, x, r->x_element, r->length);

        const R *from = plain_x ? (const R *)x : row;
        R *to = plain_out ? (R *)out : result;
        OP(turn_row)(from, plain_cos ? (const R *)c : cos_copy, plain_sin ? (const R *)s : sin_copy, to, r->pairs,
                     interleaved);
        if (turned < r->length && to != from)
            memcpy(to + turned, from + turned, (size_t)(r->length - turned) * sizeof *to);
        if (!plain_out) OP(scatter)(out, r->out_element, result, r->length);
        x += r->x_row;
        out += r->out_row;
    }
}

static void EXPORT(rotate_rows)(const fa_rotary *r, const char *x, const char *cos, const char *sin,
                                const char *positions, char *out, ptrdiff_t rows, void *scratch) {
    if (r->interleaved) OP(rotate)(r, x, cos, sin, positions, out, rows, scratch, 1);
    else OP(rotate)(r, x, cos, sin, positions, out, rows, scratch, 0);
}

static ptrdiff_t EXPORT(rotary_scratch)(const fa_rotary *r) {
    return 2 * (r->pairs + r->length) * (ptrdiff_t)sizeof(R);
}
