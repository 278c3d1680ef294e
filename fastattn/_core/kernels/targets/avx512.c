#define FA_TARGET avx512
#include "simd/avx512.h"
#include "targets/target.h"
