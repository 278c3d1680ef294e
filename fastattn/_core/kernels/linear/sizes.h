/* Sizes that all of linear shares. */
#ifndef FA_LINEAR_SIZES_H
#define FA_LINEAR_SIZES_H

#define LINEAR_FEATURES 64 /* rows of a weight's block: see linear.h */

#endif
