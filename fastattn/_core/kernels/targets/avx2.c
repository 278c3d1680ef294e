#define FA_TARGET avx2
#include "simd/avx2.h"
#include "targets/target.h"
