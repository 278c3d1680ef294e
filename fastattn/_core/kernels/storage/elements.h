/* How elements lie in memory: any stored type read as R, and R written as any of them; rounded once, to even.
 *
 * Rows whose elements lie side by side go a vector at a time, all others one by one. float64 kernels store nothing but
 * float64 and read the narrower types one by one. */
#ifndef FA_STORAGE_ELEMENTS_H
#define FA_STORAGE_ELEMENTS_H

#include "instance.h"

/* One element. */
#define FA_ROW(_, NAME, bits, REALS, ROLE, decode, ...)                                                                \
    case FA_##NAME: {                                                                                                  \
        bits x;                                                                                                        \
        memcpy(&x, from, sizeof x);                                                                                    \
        return (R)decode(x);                                                                                           \
    }
FA_INLINE R read_element(const char *from, fa_type type) {
    switch (type) {
        FA_EACH_TYPE(FA_ROW, )
    case FA_TYPES: break;
    }
    FA_NO_SUCH_TYPE();
}
#undef FA_ROW

/* The functions below serve the types that kernels of these reals read, or write, in vectors. */
#if FA_REAL_IS_FLOAT
#define FA_IF_FLOAT(...) __VA_ARGS__
#define FA_IF_DOUBLE(...)
#else
#define FA_IF_FLOAT(...)
#define FA_IF_DOUBLE(...) __VA_ARGS__
#endif
#define FA_IF_RESULT(...) __VA_ARGS__
#define FA_IF_INPUT(...)

#define FA_ROW(_, NAME, bits, REALS, ROLE, decode, encode, ...)                                                        \
    FA_IF_##REALS(FA_IF_##ROLE(case FA_##NAME : {                                                                      \
        const bits x = encode(value);                                                                                  \
        memcpy(to, &x, sizeof x);                                                                                      \
        return;                                                                                                        \
    }))
FA_INLINE void write_element(char *to, fa_type type, R value) {
    switch (type) {
        FA_EACH_TYPE(FA_ROW, )
    default: FA_NO_SUCH_TYPE();
    }
}
#undef FA_ROW

/* A vector of elements side by side. */
FA_INLINE V load_reals(const R *from) { return load(from); }
FA_INLINE void store_reals(R *to, V x) { store(to, x); }

#define FA_ROW(_, NAME, bits, REALS, ROLE, decode, encode, load_vector, ...)                                           \
    FA_IF_##REALS(case FA_##NAME : return load_vector((const bits *)from);)
FA_INLINE V load_as(const char *from, fa_type type) {
    switch (type) {
        FA_EACH_TYPE(FA_ROW, )
    default: FA_NO_SUCH_TYPE();
    }
}
#undef FA_ROW

#define FA_ROW(_, NAME, bits, REALS, ROLE, decode, encode, load_vector, store_vector, ...)                             \
    FA_IF_##REALS(FA_IF_##ROLE(case FA_##NAME : store_vector((bits *)to, x); return;))
FA_INLINE void store_as(char *to, fa_type type, V x) {
    switch (type) {
        FA_EACH_TYPE(FA_ROW, )
    default: FA_NO_SUCH_TYPE();
    }
}
#undef FA_ROW

/* CALL(TYPE) with the type as a constant, if vectors of it can be loaded; and with that of a result. */
#define FA_FOR_STORED(type, CALL)                                                                                      \
    do {                                                                                                               \
        FA_EACH_TYPE(FA_TRY_STORED, type, CALL) {}                                                                     \
    } while (0)
#define FA_FOR_RESULT(type, CALL)                                                                                      \
    do { FA_EACH_TYPE(FA_TRY_RESULT, type, CALL) FA_NO_SUCH_TYPE(); } while (0)
#define FA_TRY_STORED(type, CALL, NAME, bits, REALS, ...)                                                              \
    FA_IF_##REALS(if ((type) == FA_##NAME) { CALL(FA_##NAME); } else)
#define FA_TRY_RESULT(type, CALL, NAME, bits, REALS, ROLE, ...)                                                        \
    FA_IF_##REALS(FA_IF_##ROLE(if ((type) == FA_##NAME) { CALL(FA_##NAME); } else))

/* to[i] = element i of `from`, for i < count; `step` bytes apart. */
static void widen(R *to, const char *from, fa_type type, ptrdiff_t step, ptrdiff_t count) {
    ptrdiff_t i = 0;
#define WHOLE(TYPE)                                                                                                    \
    for (; i + LANES <= count; i += LANES) store(to + i, load_as(from + i * fa_size_of(TYPE), TYPE))
    if (step == fa_size_of(type)) FA_FOR_STORED(type, WHOLE);
#undef WHOLE
    if (type == STORED && step == fa_size_of(type) && i < count) {
        store_part(to + i, load_part((const R *)from + i, (int)(count - i)), (int)(count - i));
        return;
    }
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

#endif
