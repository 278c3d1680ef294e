#define FA_TARGET portable
#include "vector_portable.h"
#include "target.h"
