/* Masks as the attention kernels want them: a bias for each score; -inf excludes the key.
 *
 * A mask is read where it lies, at any strides, a block of keys of one row at a time. Most blocks of a bool mask, and of
 * padding, are either empty or full: they are told by their bytes, and cost neither arithmetic nor, when empty, keys. */

typedef uint8_t OP(bytes) __attribute__((vector_size(LANES), may_alias));

FA_INLINE V OP(bytes_to_bias)(const uint8_t *from) {
    OP(bytes) b;
    memcpy(&b, from, sizeof b);
    return OP(select)(__builtin_convertvector(b, VI) == (VI){0}, OP(splat)((R)-INFINITY), (V){0});
}

/* Whether `count` bytes are all 0 (BLOCK_EXCLUDES) or all 1 (BLOCK_ADMITS); both bits where they differ. */
static int OP(kinds_of_bytes)(const uint8_t *from, ptrdiff_t count) {
    uint64_t some = 0, every = ~(uint64_t)0, word;
    ptrdiff_t t = 0;
    for (; t + 8 <= count; t += 8) {
        memcpy(&word, from + t, 8);
        some |= word;
        every &= word;
    }
    for (; t < count; t++) {
        word = from[t] * (uint64_t)0x0101010101010101;
        some |= word;
        every &= word;
    }
    return (every == 0x0101010101010101 ? 0 : BLOCK_EXCLUDES) | (some ? BLOCK_ADMITS : 0);
}

static int OP(kinds_of_biases)(const R *bias, ptrdiff_t count) {
    VI excluded = {0}, admitted = {0}, biased = {0};
    const V nothing = OP(splat)((R)-INFINITY);
    for (ptrdiff_t t = 0; t < count; t += LANES) { /* the rest of the last vector is filled with its last element */
        V b = OP(load)(bias + t);
        excluded |= b == nothing;
        admitted |= b != nothing;
        biased |= (b != nothing) & (b != (V){0});
    }
    int kinds = 0;
    for (int lane = 0; lane < LANES; lane++)
        kinds |= (excluded[lane] ? BLOCK_EXCLUDES : 0) | (admitted[lane] ? BLOCK_ADMITS : 0) |
                 (biased[lane] ? BLOCK_BIASES : 0);
    return kinds;
}

/* Elements of any type and stride, one by one, as biases. */
static void OP(gather_mask)(const fa_attention *a, const char *from, ptrdiff_t count, R *to) {
    if (a->mask_type != FA_MASK_BOOL) OP(widen)(to, from, (fa_type)a->mask_type, a->mask_key, count);
    else
        for (ptrdiff_t t = 0; t < count; t++) to[t] = from[t * a->mask_key] ? 0 : (R)-INFINITY;
}

/* The biases of one row for `count` keys from `from` on, whole vectors of them; returns what kinds there are. */
static int OP(mask_row)(const fa_attention *a, const char *from, ptrdiff_t count, R *to) {
    ptrdiff_t whole = (count + LANES - 1) / LANES * LANES;
    if (a->mask_type == FA_MASK_BOOL && a->mask_key == 1) {
        const uint8_t *bytes = (const uint8_t *)from;
        int kinds = OP(kinds_of_bytes)(bytes, count);
        ptrdiff_t t = 0;
        for (; t + LANES <= count; t += LANES) OP(store)(to + t, OP(bytes_to_bias)(bytes + t));
        for (; t < whole; t++) to[t] = bytes[t < count ? t : count - 1] ? 0 : (R)-INFINITY;
        return kinds;
    }
    if (a->mask_type == STORED && a->mask_key == (ptrdiff_t)sizeof(R) && count == whole)
        memcpy(to, from, (size_t)count * sizeof(R));
    else OP(gather_mask)(a, from, count, to);
    for (ptrdiff_t t = count; t < whole; t++) to[t] = to[count - 1];
    return OP(kinds_of_biases)(to, count);
}

/* Where row `row` of the item has its mask. */
FA_INLINE const char *OP(mask_of)(const fa_attention *a, const fa_attention_item *item, ptrdiff_t row) {
    return item->mask + OP(row_offset)(a, row, a->mask_head, a->mask_row);
}

/* What becomes of scores before exclusion. */
typedef struct {
    R cap, factor; /* the cap, 0 for none; and what takes scores to the argument of tanh_half, in one rounding */
} OP(softcap);

FA_INLINE OP(softcap) OP(softcap_of)(const fa_attention *a) {
    return (OP(softcap)){(R)a->softcap, a->softcap == 0 ? 0 : (R)(2.885390081777926815 / a->softcap)};
}

FA_INLINE V OP(capped)(V score, OP(softcap) cap) { return cap.cap * OP(tanh_half)(score * cap.factor); }

FA_INLINE V OP(distance)(V position, V key) {
    V apart = position - key;
    return OP(max)(apart, -apart);
}

FA_INLINE V OP(biased)(V score, V bias) {
    const V nothing = OP(splat)((R)-INFINITY);
    return OP(select)(bias == nothing, nothing, score + bias); /* even a score of NaN or +inf is excluded */
}
