/* Rotary position embedding: each pair (a, b) of a row turns to (a cos - b sin, a sin + b cos).
 *
 * A vector holds the first components of LANES pairs, another one the second. Halves lie so in memory; neighbours are
 * sorted into such vectors and back, two two-source permutations each way, which costs less than the memory does. All
 * of a pair is read before any of it is written: x may be out itself. */
#ifndef FA_ROWS_ROTARY_H
#define FA_ROWS_ROTARY_H

#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/layout.h"
#include "storage/partial.h"

/* Pairs [i, i + n) of a row, n <= LANES. */
FA_INLINE void turn_halves(const char *x, const R *cos, const R *sin, char *out, const fa_type type, ptrdiff_t pairs,
                           ptrdiff_t i, ptrdiff_t n) {
    const ptrdiff_t size = fa_size_of(type), first = i * size, second = (pairs + i) * size;
    V a = load_some_as(x + first, type, n), b = load_some_as(x + second, type, n);
    V c = load_some(cos + i, n), s = load_some(sin + i, n);
    store_some_as(out + first, type, a * c - b * s, n);
    store_some_as(out + second, type, a * s + b * c, n);
}

FA_INLINE void turn_neighbours(const char *x, const R *cos, const R *sin, char *out, const fa_type type, ptrdiff_t i,
                               ptrdiff_t n) {
    ptrdiff_t first = 2 * n < LANES ? 2 * n : LANES, rest = 2 * n - first; /* elements in either vector */
    const ptrdiff_t size = fa_size_of(type), low_at = 2 * i * size, high_at = (2 * i + LANES) * size;
    V low = load_some_as(x + low_at, type, first), high = rest ? load_some_as(x + high_at, type, rest) : (V){0};
    V a = even_places(low, high), b = odd_places(low, high);
    V c = load_some(cos + i, n), s = load_some(sin + i, n);
    V turned_a = a * c - b * s, turned_b = a * s + b * c;
    store_some_as(out + low_at, type, interleave_low(turned_a, turned_b), first);
    if (rest) store_some_as(out + high_at, type, interleave_high(turned_a, turned_b), rest);
}

FA_INLINE void turn_row(const char *x, const R *cos, const R *sin, char *out, const fa_type type, ptrdiff_t pairs,
                        const int interleaved) {
#define TURN(n)                                                                                                        \
    (interleaved ? turn_neighbours(x, cos, sin, out, type, i, n) : turn_halves(x, cos, sin, out, type, pairs, i, n))
    ptrdiff_t i = 0;
    for (; i + LANES <= pairs; i += LANES) TURN(LANES);
    if (i < pairs) TURN(pairs - i);
#undef TURN
}

/* Elements copied as they are, `to_step` and `from_step` bytes apart. */
FA_INLINE void copy_elements(char *to, ptrdiff_t to_step, const char *from, ptrdiff_t from_step, const fa_type type,
                             ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++) memcpy(to + i * to_step, from + i * from_step, (size_t)fa_size_of(type));
}

FA_INLINE void rotate(const fa_rotary *r, const char *x, const char *cos, const char *sin, const char *positions,
                      char *out, ptrdiff_t rows, R *scratch, const fa_type type, const int interleaved) {
    const ptrdiff_t size = fa_size_of(type), turned = 2 * r->pairs * size, rest = r->length * size - turned;
    const int contiguous_x = are_side_by_side(x, r->x_row_stride, r->x_stride, type);
    const int contiguous_out = are_side_by_side(out, r->out_row_stride, r->out_stride, type);
    const int plain_cos = r->table_type == STORED && is_contiguous(cos, r->cos_row_stride, r->cos_stride);
    const int plain_sin = r->table_type == STORED && is_contiguous(sin, r->sin_row_stride, r->sin_stride);
    R *cos_copy = scratch, *sin_copy = cos_copy + r->pairs;
    char *row = (char *)(sin_copy + r->pairs), *result = row + r->length * size;
    for (ptrdiff_t i = 0; i < rows; i++) {
        ptrdiff_t at = positions ? *(const intptr_t *)(positions + i * r->position) : i;
        const char *c = cos + at * r->cos_row_stride, *s = sin + at * r->sin_row_stride;
        if (!plain_cos) widen(cos_copy, c, r->table_type, r->cos_stride, r->pairs);
        if (!plain_sin) widen(sin_copy, s, r->table_type, r->sin_stride, r->pairs);
        if (!contiguous_x) copy_elements(row, size, x, r->x_stride, type, r->length);

        const char *from = contiguous_x ? x : row;
        char *to = contiguous_out ? out : result;
        turn_row(from, plain_cos ? (const R *)c : cos_copy, plain_sin ? (const R *)s : sin_copy, to, type, r->pairs,
                 interleaved);
        if (rest && to != from) memcpy(to + turned, from + turned, (size_t)rest);
        if (!contiguous_out) copy_elements(out, r->out_stride, result, size, type, r->length);
        x += r->x_row_stride;
        out += r->out_row_stride;
    }
}

static void EXPORT(rotate_rows)(const fa_rotary *r, const char *x, const char *cos, const char *sin,
                                const char *positions, char *out, ptrdiff_t rows, void *scratch) {
#define ROTATE(TYPE)                                                                                                   \
    (r->interleaved ? rotate(r, x, cos, sin, positions, out, rows, scratch, TYPE, 1)                                   \
                    : rotate(r, x, cos, sin, positions, out, rows, scratch, TYPE, 0))
    FA_FOR_RESULT(r->type, ROTATE);
#undef ROTATE
}

static ptrdiff_t EXPORT(rotary_scratch)(const fa_rotary *r) {
    return 2 * (r->pairs + r->length) * (ptrdiff_t)sizeof(R);
}

#endif
