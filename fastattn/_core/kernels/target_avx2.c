#define FA_TARGET avx2
#include "vector_avx2.h"
#include "target.h"
