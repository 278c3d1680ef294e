#define FA_TARGET amx
#define FA_DOT
#define FA_AMX
#include "simd/avx512.h"
#include "targets/target.h"
