/* Attention and linear by dot products of bfloat16, where the target has them. */
#define FA_ARITHMETIC FA_BFLOAT16
#include "instance.h"

#if FA_HAS_BF16_DOT
#include "attention/tiled.h"
#include "linear/linear.h"
#include "targets/probe_dot.h"

ptrdiff_t FA_SYMBOL(attention_scratch, f32)(const fa_attention *);
ptrdiff_t EXPORT(attention_scratch)(const fa_attention *a) {
    ptrdiff_t own = tiled_scratch(a), others = FA_SYMBOL(attention_scratch, f32)(a);
    return own > others ? own : others;
}
#endif
