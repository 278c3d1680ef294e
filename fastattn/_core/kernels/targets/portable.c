#define FA_TARGET portable
#include "simd/portable.h"
#include "targets/target.h"
