#define FA_TARGET avx512
#include "vector_avx512.h"
#include "target.h"
