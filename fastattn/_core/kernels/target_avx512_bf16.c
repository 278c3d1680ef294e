#define FA_TARGET avx512_bf16
#define FA_DOT
#include "vector_avx512.h"
#include "target.h"
