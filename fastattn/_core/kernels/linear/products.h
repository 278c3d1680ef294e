/* The products of linear in the arithmetic of this instance. */
#ifndef FA_LINEAR_PRODUCTS_H
#define FA_LINEAR_PRODUCTS_H

#include "products/products.h"

#if FA_MULTIPLY_ADD
#include "linear/fma.h"
#elif FA_ARITHMETIC == FA_BFLOAT16
#include "linear/bf16.h"
#else
#include "linear/int8.h"
#endif

#endif
