/* The products of attention in the arithmetic of this instance. */
#ifndef FA_ATTENTION_PRODUCTS_H
#define FA_ATTENTION_PRODUCTS_H

#include "products/products.h"

#if FA_TILE_PRODUCTS
#include "attention/tiled_amx.h"
#else
#include "attention/tiled_broadcast.h"
#endif

#endif
