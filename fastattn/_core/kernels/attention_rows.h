/* Key and value rows as the attention kernels want them: reals of the kernel's own type, side by side.
 *
 * Rows stored so are read in place, at any distance from row to row. Others (another type, another element stride,
 * unaligned, or narrower than the `width` asked for) are first copied to `panel`, padded with zeros; the copy serves
 * all rows of an item. */

typedef struct { const R *data; ptrdiff_t stride; } OP(rows); /* stride in elements */

static OP(rows) OP(rows_at)(R *panel, ptrdiff_t width, const char *source, fa_type type, ptrdiff_t row,
                            ptrdiff_t element, ptrdiff_t count, ptrdiff_t size) {
    if (type == STORED && width == size && OP(plain)(source, row, element))
        return (OP(rows)){(const R *)source, row / (ptrdiff_t)sizeof(R)};
    for (ptrdiff_t i = 0; i < count; i++) {
        OP(widen)(panel + i * width, source + i * row, type, element, size);
        memset(panel + i * width + size, 0, (size_t)(width - size) * sizeof(R));
    }
    return (OP(rows)){panel, width};
}

/* Where row `row` of the call stands: query row / group of the group's head row % group. */
FA_INLINE ptrdiff_t OP(row_offset)(const fa_attention *a, ptrdiff_t row, ptrdiff_t head_stride, ptrdiff_t row_stride) {
    return row / a->group * row_stride + row % a->group * head_stride;
}

/* -inf where there was nothing to attend. */
FA_INLINE R OP(log_sum)(R max, R sum) { return (R)((double)max + log((double)sum)); }

/* e^x by the cheaper 2^x, for x <= 0. Multiplied only here, where the maximum is off: log2 e in the scale would save this
 * product and cost the scores half a bit, more where they are large (ALiBi). */
FA_INLINE V OP(power)(V x) { return OP(exp2)(x * (R)1.4426950408889634); }

/* e^x for x <= 0, as exact as can be. */
FA_INLINE V OP(exact_power)(V x) {
    return OP(exp_exact_bits)(OP(max)(OP(splat)(sizeof(R) == 4 ? (R)FA_EXP_FLOOR_F32 : (R)FA_EXP_FLOOR_F64), x));
}

/* A piece of scratch memory, whole cache lines. */
FA_INLINE R *OP(carve)(char **scratch, ptrdiff_t elements) {
    R *piece = (R *)*scratch;
    *scratch += (elements * (ptrdiff_t)sizeof(R) + 63) / 64 * 64;
    return piece;
}
