#define FA_TARGET avx512_bf16
#define FA_DOT
#include "simd/avx512.h"
#include "targets/target.h"
