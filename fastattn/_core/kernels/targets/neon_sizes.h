/* Sizes that fit 32 registers of 16 bytes. Nothing here was measured: by llvm-mca 19 the inner loops of attention, of
 * linear and of packed weights, compiled by GCC 12, take 99 % of the limit of multiply-adds on Neoverse N1 and N2 (two
 * a cycle), V1 and V2 (four). */
#ifndef FA_TARGET_NEON_SIZES_H
#define FA_TARGET_NEON_SIZES_H

/* Rows (keys or value components) per register tile, for a tile of 1, 2 or 3 vectors of queries: 24 sums, 3 vectors and
 * one element are 28 registers. 24 sums keep four multiply-adds a cycle of latency 4 busy, and take 11 loads, less than
 * half a load for each; cores have two loads for two, or three for four. 6 rows by 4 vectors would save one load, and
 * waste more lanes at the edge of a causal mask. */
#define FA_BLOCK_ROWS_1 8
#define FA_BLOCK_ROWS_2 8
#define FA_BLOCK_ROWS_3 8
#define FA_TILE_VECTORS 3
#define FA_CHAIN 128 /* components whose products are added up in one chain */

/* Rows and value vectors at a time where the components are in the lanes. */
#define FA_ROWWISE_ROWS 2
#define FA_ROWWISE_VECTORS 4

/* A full tile with a packed weight: rows of x, and panels of two vectors side by side; 24 sums. */
#define FA_PACKED_ROWS 6
#define FA_PACKED_PANELS 2

#endif
