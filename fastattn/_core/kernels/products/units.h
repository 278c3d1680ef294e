/* What a product multiplies in the arithmetic of this instance, and the contract of what says so.
 *
 *   UNIT                            elements along the sum of a product that one lane takes at a time: 1, 2 or 4
 *   unit_rows {data, stride}        rows of units in memory; the stride in units
 *   spread                          a unit for all lanes: a vector of it or, where the vocabulary multiplies by an
 *                                   element of a register (FA_HAS_ELEMENT_PRODUCTS), the unit alone
 *   spread spread_unit(unit)
 *   V add_product(sum, spread, lanes)
 *   V load_units(from, unit, type)  a vector of the units of a row of that stored type, whose elements lie side by side
 *   V load_some_units(from, unit, n, type)
 *                                   the first n units of one, fewer than a vector's
 *   R read_unit(from, element, unit, size, type)
 *                                   one of them, at any distance of elements; 0 for elements beyond `size`
 *   MULTIPLY_TILES, MULTIPLY_SWAPPED(sums, rows, lanes)
 *                                   with tile registers: what is unsigned stands in the lanes, or in the rows */
#ifndef FA_PRODUCTS_UNITS_H
#define FA_PRODUCTS_UNITS_H

#include "instance.h"

#if FA_MULTIPLY_ADD
#include "products/fma.h"
#elif FA_ARITHMETIC == FA_BFLOAT16
#include "products/bf16.h"
#else
#include "products/int8.h"
#endif

/* The dot product of bfloat16 takes subnormal numbers and products for 0. Sums below this would show it: 2^-126 times a
 * million keys is half a bfloat16's unit of it. They are made again by multiply-adds. */
#define FA_LEAST_SUM 0x1p-97f

#define UNITS(count) (((count) + UNIT - 1) / UNIT)

#endif
