/* How sums of products are made in this instance: in vector registers or in tile registers.
 *
 *   PADDED(count)        count     rows or units, padded to what is multiplied at a time
 *   configure_registers  nothing   before the first product of an item: tile registers of sums and of rows have so many
 *                                  rows, 16 at most
 *   release_registers    nothing   after the last */
#ifndef FA_PRODUCTS_PRODUCTS_H
#define FA_PRODUCTS_PRODUCTS_H

#include "products/units.h"

/* Tiles of an item. They share each step of keys or block of a weight and, with tile registers, the transposing. */
#define FA_BROADCAST_TILES 4
#define FA_AMX_TILES 16
#define FA_BF16_TILES (FA_HAS_TILES ? FA_AMX_TILES : FA_BROADCAST_TILES)

#define FA_TILE_PRODUCTS (FA_HAS_TILES && !FA_MULTIPLY_ADD)
#if FA_TILE_PRODUCTS
#define ITEM_TILES FA_AMX_TILES
#include "products/amx.h"
#else
#define ITEM_TILES FA_BROADCAST_TILES
#include "products/broadcast.h"
#endif

#ifndef PADDED
#define PADDED(count) (count)
#endif
#ifndef configure_registers
FA_INLINE void configure_registers(int rows) {}
#endif
#ifndef release_registers
FA_INLINE void release_registers(void) {}
#endif

#endif
