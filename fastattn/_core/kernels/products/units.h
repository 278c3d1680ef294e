/* What a product multiplies in the arithmetic of this instance. */
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
