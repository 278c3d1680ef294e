/* Linear by dot products of int8, where the target has them. */
#define FA_ARITHMETIC FA_INT8
#include "instance.h"

#if FA_HAS_INT8_DOT
#include "linear/linear.h"
#endif
