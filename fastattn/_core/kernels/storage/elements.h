/* How elements lie in memory: any stored type read as R, and R written as any of them; rounded once, to even.
 *
 * Rows whose elements lie side by side go a vector at a time, all others one by one. float64 kernels store nothing but
 * float64 and read the narrower types one by one. */
#ifndef FA_STORAGE_ELEMENTS_H
#define FA_STORAGE_ELEMENTS_H

#include "instance.h"

/* One element. */
FA_INLINE R read_element(const char *from, fa_type type) {
    switch (type) {
    case FA_F32: { float x; memcpy(&x, from, sizeof x); return (R)x; }
    case FA_F64: { double x; memcpy(&x, from, sizeof x); return (R)x; }
    case FA_BF16: { uint16_t x; memcpy(&x, from, sizeof x); return (R)bf16_to_float(x); }
    case FA_F16: { uint16_t x; memcpy(&x, from, sizeof x); return (R)f16_to_float(x); }
    default: return (R)*(const int8_t *)from;
    }
}

/* No type wider than R is ever stored. */
FA_INLINE void write_element(char *to, fa_type type, R value) {
    if (type == STORED) memcpy(to, &value, sizeof value);
    else {
        uint16_t x = type == FA_BF16 ? float_to_bf16((float)value) : float_to_f16((float)value);
        memcpy(to, &x, sizeof x);
    }
}

/* A vector of elements side by side, of a type in FA_FOR_STORED. */
FA_INLINE V load_as(const char *from, fa_type type) {
#if FA_REAL_IS_FLOAT
    if (type == FA_BF16) return load_bf16((const uint16_t *)from);
    if (type == FA_F16) return load_f16((const uint16_t *)from);
    if (type == FA_I8) return load_i8((const int8_t *)from);
#endif
    return load((const R *)from);
}

FA_INLINE void store_as(char *to, fa_type type, V x) {
#if FA_REAL_IS_FLOAT
    if (type == FA_BF16) { store_bf16((uint16_t *)to, x); return; }
    if (type == FA_F16) { store_f16((uint16_t *)to, x); return; }
#endif
    store((R *)to, x);
}

/* CALL(TYPE) with the type as a constant, where vectors of it can be loaded. */
#if FA_REAL_IS_FLOAT
#define FA_FOR_STORED(type, CALL)                                                                                      \
    do {                                                                                                               \
        if ((type) == FA_F32) CALL(FA_F32);                                                                            \
        else if ((type) == FA_BF16) CALL(FA_BF16);                                                                     \
        else if ((type) == FA_F16) CALL(FA_F16);                                                                       \
        else if ((type) == FA_I8) CALL(FA_I8);                                                                         \
    } while (0)
#else
#define FA_FOR_STORED(type, CALL)                                                                                      \
    do {                                                                                                               \
        if ((type) == FA_F64) CALL(FA_F64);                                                                            \
    } while (0)
#endif

/* to[i] = element i of `from`, for i < count; `step` bytes apart. */
static void widen(R *to, const char *from, fa_type type, ptrdiff_t step, ptrdiff_t count) {
    ptrdiff_t i = 0;
#define WHOLE(TYPE)                                                                                                    \
    for (; i + LANES <= count; i += LANES) store(to + i, load_as(from + i * fa_size_of(TYPE), TYPE))
    if (step == fa_size_of(type)) FA_FOR_STORED(type, WHOLE);
#undef WHOLE
    for (; i < count; i++) to[i] = read_element(from + i * step, type);
}

/* Element i of `to` = from[i], for i < count; `step` bytes apart. */
static void narrow(char *to, fa_type type, ptrdiff_t step, const R *from, ptrdiff_t count) {
    ptrdiff_t i = 0;
#define WHOLE(TYPE)                                                                                                    \
    for (; i + LANES <= count; i += LANES) store_as(to + i * fa_size_of(TYPE), TYPE, load(from + i))
    if (step == fa_size_of(type)) FA_FOR_STORED(type, WHOLE);
#undef WHOLE
    for (; i < count; i++) write_element(to + i * step, type, from[i]);
}

/* CALL(TYPE) with the type of a result as a constant. */
#if FA_REAL_IS_FLOAT
#define FA_FOR_RESULT(type, CALL)                                                                                      \
    do {                                                                                                               \
        if ((type) == FA_F32) CALL(FA_F32);                                                                            \
        else if ((type) == FA_BF16) CALL(FA_BF16);                                                                     \
        else CALL(FA_F16);                                                                                             \
    } while (0)
#else
#define FA_FOR_RESULT(type, CALL)                                                                                      \
    do {                                                                                                               \
        CALL(FA_F64);                                                                                                  \
    } while (0)
#endif

#endif
