/* Every kernel in float32, and of what is stored in 16 bits all but products of bfloat16. */
#define FA_ARITHMETIC FA_FLOAT32
#include "targets/kernels.h"
