/* Rows stored in a cache: any stored type in, any stored type out, keys turned on the way (rotary.h).
 *
 * int8: a row's scale is its largest magnitude / 127, its elements are x / scale rounded to even; a row of zeros has
 * scale 0. Divided, not multiplied by the inverse, which overflows where the scale is subnormal. A decode step stores a
 * few rows, a prompt is bound by memory: nothing here is hot but the plain copy. */

#if FA_VECTOR_BYTES / LANES == 4
/* The scale of a row padded with zeros to whole vectors; not finite where an element is not. */
FA_INLINE R OP(scale_of)(const R *row, ptrdiff_t size) {
    V most = {0}, nothing = {0};
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        V x = OP(load)(row + i);
        nothing += x * 0; /* NaN from infinity and NaN */
        most = OP(max)(OP(max)(x, -x), most);
    }
    return OP(lane_max)(most) / 127 + OP(lane_sum)(nothing);
}

/* Rounding by the magic constant: the sum's low byte is the integer. Clamped, for a subnormal scale is itself rounded. */
FA_INLINE void OP(quantise)(int8_t *out, const R *row, R scale, ptrdiff_t size) {
    const V most = OP(splat)(127), divisor = OP(splat)(scale == 0 ? 1 : scale), magic = OP(splat)(0x1.8p23f);
    for (ptrdiff_t i = 0; i < size; i += LANES) {
        V x = OP(load)(row + i) / divisor;
        x = OP(select)(x > most, most, OP(select)(x < -most, -most, x));
        if (scale == 0) x = (V){0};
        VB_f32 bytes = __builtin_convertvector((VI)(x + magic), VB_f32);
        if (i + LANES <= size) memcpy(out + i, &bytes, sizeof bytes);
        else memcpy(out + i, &bytes, (size_t)(size - i));
    }
}
#else
FA_INLINE R OP(scale_of)(const R *row, ptrdiff_t size) { (void)row, (void)size; return 0; }
FA_INLINE void OP(quantise)(int8_t *out, const R *row, R scale, ptrdiff_t size) {
    (void)out, (void)row, (void)scale, (void)size;
}
#endif

FA_INLINE ptrdiff_t OP(whole_vectors)(ptrdiff_t size) { return (size + LANES - 1) / LANES * LANES; }

/* `rows` rows side by side from `out` on and, for int8, their scales. Without `out` nothing is written.
 * Whether all scales are finite. */
static int EXPORT(store_rows)(const fa_cache_rows *c, const char *x, const char *cos, const char *sin, char *out,
                              float *scales, ptrdiff_t rows, void *scratch) {
    const ptrdiff_t itemsize = fa_size_of(c->stored), bytes = c->size * itemsize;
    if (c->x_type == c->stored && c->x_element == itemsize && !c->pairs) {
        if (c->x_row == bytes) memcpy(out, x, (size_t)(rows * bytes));
        else for (ptrdiff_t i = 0; i < rows; i++) memcpy(out + i * bytes, x + i * c->x_row, (size_t)bytes);
        return 1;
    }
    char *free_scratch = scratch;
    R *row = OP(carve)(&free_scratch, OP(whole_vectors)(c->size));
    R *cos_row = OP(carve)(&free_scratch, c->pairs), *sin_row = OP(carve)(&free_scratch, c->pairs);
    for (ptrdiff_t i = c->size; i < OP(whole_vectors)(c->size); i++) row[i] = 0;
    for (ptrdiff_t i = 0; i < rows; i++) {
        OP(widen)(row, x + i * c->x_row, c->x_type, c->x_element, c->size);
        if (c->pairs) {
            OP(widen)(cos_row, cos + i * c->cos_row, c->table_type, c->cos_element, c->pairs);
            OP(widen)(sin_row, sin + i * c->sin_row, c->table_type, c->sin_element, c->pairs);
            if (c->interleaved) OP(turn_row)((char *)row, cos_row, sin_row, (char *)row, STORED, c->pairs, 1);
            else OP(turn_row)((char *)row, cos_row, sin_row, (char *)row, STORED, c->pairs, 0);
        }
        if (c->stored != FA_I8) {
            OP(narrow)(out + i * bytes, c->stored, itemsize, row, c->size);
            continue;
        }
        const R scale = OP(scale_of)(row, c->size);
        if (!isfinite(scale)) return 0;
        if (out) {
            scales[i] = (float)scale;
            OP(quantise)((int8_t *)out + i * bytes, row, scale, c->size);
        }
    }
    return 1;
}

static ptrdiff_t EXPORT(cache_scratch)(const fa_cache_rows *c) {
    return (OP(whole_vectors)(c->size) + 2 * c->pairs) * (ptrdiff_t)sizeof(R) + 3 * 64;
}
