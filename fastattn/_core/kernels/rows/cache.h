/* Rows stored in a cache: any stored type in, any stored type out, keys turned on the way (rotary.h).
 *
 * int8: a row's scale is its largest magnitude / 127, its elements are x / scale rounded to even; a row of zeros has
 * scale 0. Divided, not multiplied by the inverse, which overflows where the scale is subnormal. A decode step stores a
 * few rows, a prompt is bound by memory: nothing here is hot but the plain copy.
 *
 * Infinity and NaN are stored as such, but not in int8, and no finite number becomes infinite. */
#ifndef FA_ROWS_CACHE_H
#define FA_ROWS_CACHE_H

#include "rows/rotary.h"
#include "simd/lanes.h"
#include "storage/elements.h"
#include "storage/layout.h"
#include "storage/partial.h"
#include "storage/scratch.h"

#if FA_REAL_IS_FLOAT
/* The scale of a row padded with zeros to whole vectors; not finite where an element is not. */
FA_INLINE R scale_of(const R *row, ptrdiff_t size) {
    V most = {0}, nothing = {0};
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        V x = load(row + i);
        nothing += x * 0; /* NaN from infinity and NaN */
        most = maximum(maximum(x, -x), most);
    }
    return lane_max(most) / 127 + lane_sum(nothing);
}

/* Rounded by the magic constant: the sum's low byte is the integer. Clamped, as a subnormal scale is itself rounded. */
FA_INLINE void quantise(int8_t *out, const R *row, R scale, ptrdiff_t size) {
    const V most = splat(127), divisor = splat(scale == 0 ? 1 : scale), magic = splat(0x1.8p23f);
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        V x = load(row + i) / divisor;
        x = choose(x > most, most, choose(x < -most, -most, x));
        if (scale == 0) x = (V){0};
        VB_f32 bytes = __builtin_convertvector((VI)(x + magic), VB_f32);
        if (i + LANES <= size) memcpy(out + i, &bytes, sizeof bytes);
        else memcpy(out + i, &bytes, (size_t)(size - i));
    }
}
#else
FA_INLINE R scale_of(const R *row, ptrdiff_t size) { return 0; }
FA_INLINE void quantise(int8_t *out, const R *row, R scale, ptrdiff_t size) {}
#endif

/* A row as it is stored but for its type, in memory for R. */
FA_INLINE void read_row(const fa_cache_rows *c, const char *x, const char *cos, const char *sin, R *row, R *cos_row,
                        R *sin_row) {
    widen(row, x, c->x_type, c->x_stride, c->size);
    if (!c->pairs) return;
    widen(cos_row, cos, c->table_type, c->cos_stride, c->pairs);
    widen(sin_row, sin, c->table_type, c->sin_stride, c->pairs);
    if (c->interleaved) turn_row((char *)row, cos_row, sin_row, (char *)row, STORED, c->pairs, 1);
    else turn_row((char *)row, cos_row, sin_row, (char *)row, STORED, c->pairs, 0);
}

/* The least magnitude that is stored as infinity, or was made infinity by the reading of float64; 0: there is none. */
#define FA_ROW(_, NAME, bits, REALS, ROLE, decode, encode, load_vector, store_vector, infinite)                        \
    FA_IF_##REALS(case FA_##NAME : return infinite;)
FA_INLINE R overflow_limit(const fa_cache_rows *c) {
    if (c->stored == FA_F32 && c->x_type != FA_F64) return 0;
    switch (c->stored) {
        FA_EACH_TYPE(FA_ROW, )
    default: FA_NO_SUCH_TYPE();
    }
}
#undef FA_ROW

/* All bits in a lane where a number of the row reaches the limit, or is NaN. */
FA_INLINE VI lanes_reaching(const R *row, R limit, ptrdiff_t size) {
    const V most = splat(limit);
    VI found = {0};
    ptrdiff_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        V x = load(row + i);
        found |= ~((x < most) & (x > -most));
    }
    if (i < size) {
        V x = load_some(row + i, size - i);
        found |= ~((x < most) & (x > -most));
    }
    return found;
}

FA_INLINE int is_finite_in(const char *from, fa_type type) {
    double x;
    if (type == FA_F64) memcpy(&x, from, sizeof x);
    else x = (double)read_element(from, type);
    return isfinite(x);
}

/* Whether a row has a number that reaches the limit and was made of finite ones. Seldom asked. */
FA_NOINLINE int has_overflown(const fa_cache_rows *c, const char *x, const R *row, const R *cos_row, const R *sin_row,
                              R limit) {
    for (ptrdiff_t i = 0; i < c->size; i++) {
        if (row[i] < limit && row[i] > -limit) continue;
        int finite = is_finite_in(x + i * c->x_stride, c->x_type);
        if (i < 2 * c->pairs) {
            const ptrdiff_t pair = c->interleaved ? i / 2 : i % c->pairs;
            const ptrdiff_t other = c->interleaved ? i ^ 1 : i < c->pairs ? i + c->pairs : i - c->pairs;
            finite = finite && is_finite_in(x + other * c->x_stride, c->x_type) && isfinite(cos_row[pair]) &&
                     isfinite(sin_row[pair]);
        }
        if (finite) return 1;
    }
    return 0;
}

/* `rows` rows side by side from `out` on and, for int8, their scales. Without `out` nothing is written.
 * Whether all scales are finite, and no finite number became infinite. */
static int EXPORT(store_rows)(const fa_cache_rows *c, const char *x, const char *cos, const char *sin, char *out,
                              float *scales, ptrdiff_t rows, void *scratch) {
    const ptrdiff_t itemsize = fa_size_of(c->stored), bytes = c->size * itemsize;
    if (c->x_type == c->stored && c->x_stride == itemsize && !c->pairs) {
        if (!out) return 1;
        if (c->x_row_stride == bytes) memcpy(out, x, (size_t)(rows * bytes));
        else
            for (ptrdiff_t i = 0; i < rows; i++) memcpy(out + i * bytes, x + i * c->x_row_stride, (size_t)bytes);
        return 1;
    }
    char *free_scratch = scratch;
    R *row = take_scratch(&free_scratch, whole_vectors(c->size));
    R *cos_row = take_scratch(&free_scratch, c->pairs), *sin_row = take_scratch(&free_scratch, c->pairs);
    for (ptrdiff_t i = c->size; i < whole_vectors(c->size); i++) row[i] = 0;
    const R limit = overflow_limit(c);
    const int as_they_lie =
        c->x_type == STORED && is_contiguous(x, c->x_row_stride, c->x_stride) && !c->pairs && c->stored != FA_I8;
    VI reaching = {0};
    for (ptrdiff_t i = 0; i < rows; i++) {
        const char *given = x + i * c->x_row_stride;
        const R *read = as_they_lie ? (const R *)given : row;
        if (!as_they_lie)
            read_row(c, given, cos + i * c->cos_row_stride, sin + i * c->sin_row_stride, row, cos_row, sin_row);
        if (c->stored != FA_I8) {
            if (limit) reaching |= lanes_reaching(read, limit, c->size);
            if (out) narrow(out + i * bytes, c->stored, itemsize, read, c->size);
            continue;
        }
        const R scale = scale_of(row, c->size);
        if (!isfinite(scale)) return 0;
        if (out) {
            scales[i] = (float)scale;
            quantise((int8_t *)out + i * bytes, row, scale, c->size);
        }
    }
    if (!(lane_max(choose(reaching, splat(1), (V){0})) > 0)) return 1;
    for (ptrdiff_t i = 0; i < rows; i++) {
        const char *given = x + i * c->x_row_stride;
        read_row(c, given, cos + i * c->cos_row_stride, sin + i * c->sin_row_stride, row, cos_row, sin_row);
        if (has_overflown(c, given, row, cos_row, sin_row, limit)) return 0;
    }
    return 1;
}

static ptrdiff_t EXPORT(cache_scratch)(const fa_cache_rows *c) {
    return (whole_vectors(c->size) + 2 * c->pairs) * (ptrdiff_t)sizeof(R) + 3 * 64;
}

#endif
