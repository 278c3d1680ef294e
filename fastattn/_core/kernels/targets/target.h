/* One target: every template for every type, and the table of what came out. Included by target_<name>.c after the
 * target's vocabulary. */

#include "attention/interval.h"
#include "targets/dispatch.h"

#define LINEAR_FEATURES 64 /* rows of a weight's block: see linear.h */

/* Tiles of an item, which share each step of keys, or each block of a weight. */
#define BROADCAST_TILES 4
#define AMX_TILES 16 /* and the transposing of values */
#ifdef FA_AMX
#define FA_DOT_TILES AMX_TILES
#define FA_DOT_FEW 4 /* tiles of 16 rows are the faster way even with 5 */
#define FA_LINEAR_PRODUCTS "linear/amx.h"
#else
#define FA_DOT_TILES BROADCAST_TILES
#define FA_DOT_FEW FA_FEW_BEST
#define FA_LINEAR_PRODUCTS "linear/broadcast.h"
#endif

#define FA_JOIN_(a, b) a##b
#define FA_JOIN(a, b) FA_JOIN_(a, b)
#define FA_TEXT_(a) #a
#define FA_TEXT(a) FA_TEXT_(a)

#define R float
#define I int32_t
#define V V_f32
#define VI VI_f32
#define STORED FA_F32
#define LANES (FA_VECTOR_BYTES / 4)
#define OP(name) name##_f32
#define EXPORT(name) FA_JOIN(fa_##name##_f32_, FA_TARGET)
#include "targets/templates.h"

#define R double
#define I int64_t
#define V V_f64
#define VI VI_f64
#define STORED FA_F64
#define LANES (FA_VECTOR_BYTES / 8)
#define OP(name) name##_f64
#define EXPORT(name) FA_JOIN(fa_##name##_f64_, FA_TARGET)
#include "targets/templates.h"

const fa_target FA_JOIN(fa_target_, FA_TARGET) = {
    FA_TEXT(FA_TARGET),
    FA_JOIN(fa_supported_, FA_TARGET),
#ifdef FA_EMULATED
    1,
#else
    0,
#endif
    {
        [FA_F32] = &FA_JOIN(fa_kernels_f32_, FA_TARGET),
        [FA_F64] = &FA_JOIN(fa_kernels_f64_, FA_TARGET),
        /* What is stored in 16 bits is computed in float32, or in sums of dot products. */
        [FA_F16] = &FA_JOIN(fa_kernels_f32_, FA_TARGET),
#ifdef FA_DOT
        [FA_BF16] = &FA_JOIN(fa_kernels_dot_f32_, FA_TARGET),
#else
        [FA_BF16] = &FA_JOIN(fa_kernels_f32_, FA_TARGET),
#endif
    },
};
