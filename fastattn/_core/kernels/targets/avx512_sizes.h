/* Sizes that fit 32 registers of 64 bytes. */
#ifndef FA_TARGET_AVX512_SIZES_H
#define FA_TARGET_AVX512_SIZES_H

/* Rows (keys or value components) per register tile, for a tile of 1 or 2 vectors of queries: 16 sums hide the latency
 * of the multiply-add. With 8, which just fill two ports of latency 4, one vector took 6 % longer. On data in L1 two
 * vectors run at 97 % of the limit. Tiles 3 and 4 vectors wide reach 94 %, let the queries of a head of 128 components
 * overflow L1, and waste more of their lanes at the edge of a causal mask. */
#define FA_BLOCK_ROWS_1 16
#define FA_BLOCK_ROWS_2 8
#define FA_TILE_VECTORS 2
#define FA_CHAIN 128 /* components whose products are added up in one chain */

/* Rows and value vectors at a time where the components are in the lanes. */
#define FA_ROWWISE_ROWS 4
#define FA_ROWWISE_VECTORS 4

/* A full tile with a packed weight: rows of x, and panels of two vectors side by side; 24 sums. */
#define FA_PACKED_ROWS 6
#define FA_PACKED_PANELS 2

#endif
