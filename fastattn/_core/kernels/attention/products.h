/* The products of attention in the arithmetic of this instance. */
#ifndef FA_ATTENTION_PRODUCTS_H
#define FA_ATTENTION_PRODUCTS_H

#include "products/products.h"

#if FA_TILE_PRODUCTS
#include "attention/tiled_amx.h"
#elif FA_MULTIPLY_ADD
#include "attention/tiled_fma.h"
#include "attention/tiled_broadcast.h"
#else
#include "attention/tiled_bf16.h"
#include "attention/tiled_broadcast.h"
#endif

#endif
