/* How arrays store their elements: a row for each type.
 *
 *   NAME      its enumerator is FA_<NAME>
 *   bits      C type of what is in memory
 *   REALS     FLOAT or DOUBLE: kernels of which reals read vectors of it
 *   ROLE      RESULT, if they write it, too, or INPUT
 *   decode    from bits to a real
 *   encode    from a real to bits, rounded to even
 *   load      a vector of it from memory, by the vocabulary
 *   store     and to memory
 *   infinite  the least magnitude that becomes infinite when it is stored; 0 where none does
 *
 * A new type is a row here, its four functions in simd/vector.h, and its kernels in targets/kernels.h. */
#ifndef FA_ABI_TYPES_H
#define FA_ABI_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define FA_EACH_TYPE(ROW, ...)                                                                                         \
    ROW(__VA_ARGS__, F32, float, FLOAT, RESULT, FA_AS_IT_IS, FA_AS_IT_IS, load_reals, store_reals, INFINITY)           \
    ROW(__VA_ARGS__, F64, double, DOUBLE, RESULT, FA_AS_IT_IS, FA_AS_IT_IS, load_reals, store_reals, 0)                \
    ROW(__VA_ARGS__, BF16, uint16_t, FLOAT, RESULT, bf16_to_float, float_to_bf16, load_bf16, store_bf16, 0x1.ffp127f)  \
    ROW(__VA_ARGS__, F16, uint16_t, FLOAT, RESULT, f16_to_float, float_to_f16, load_f16, store_f16, 65520)             \
    ROW(__VA_ARGS__, I8, int8_t, FLOAT, INPUT, FA_AS_IT_IS, FA_NO_ENCODING, load_i8, FA_NO_STORE, 0)
#define FA_AS_IT_IS(x) (x)

#define FA_ROW(_, NAME, ...) FA_##NAME,
typedef enum { FA_EACH_TYPE(FA_ROW, ) FA_TYPES } fa_type;
#undef FA_ROW

/* Says that a type cannot be here. A build without NDEBUG stops if it is. */
#ifdef NDEBUG
#define FA_NO_SUCH_TYPE() __builtin_unreachable()
#else
#define FA_NO_SUCH_TYPE() __builtin_trap()
#endif

#define FA_ROW(_, NAME, bits, ...) type == FA_##NAME ? (ptrdiff_t)sizeof(bits):
static inline ptrdiff_t fa_size_of(fa_type type) { return FA_EACH_TYPE(FA_ROW, ) 0; }
#undef FA_ROW

#define FA_ROW(_, NAME, ...) type == FA_##NAME ? #NAME:
static inline const char *fa_type_name(fa_type type) { return FA_EACH_TYPE(FA_ROW, ) NULL; }
#undef FA_ROW

#endif
