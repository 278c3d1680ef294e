/* Every kernel in float64. */
#define FA_ARITHMETIC FA_FLOAT64
#include "targets/kernels.h"
