#define FA_TARGET amx
#define FA_DOT
#define FA_AMX
#include "vector_avx512.h"
#include "target.h"
