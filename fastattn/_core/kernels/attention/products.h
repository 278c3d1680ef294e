/* The products of attention in the arithmetic of this instance, and the contract of what makes them.
 *
 * A family of products, attention/tiled_*.h, defines these hooks; those with a default only where it differs, which it
 * says by `#define hook hook`. R, V: one and a vector of reals, or units where they are only moved.
 *
 *   unit_rows keys_at(a, item, rows, data, scales, first, count, size, panel)
 *   unit_rows values_at(the same)        units of `count` keys or values from `first` on: in place or in `panel`
 *   scores_<NV>(key, count, query, units, scale, scores, max, run)
 *                                        scores[count][NV] = keys times NV vectors of queries; raises the maximum;
 *                                        `run` components are added up in one chain
 *   values_<NV>(value, units, weights, value_size, out, decay)
 *                                        out[value_size][NV] = out · decay + values times weights
 *   void exponentiate_scores(scores, count, factor, shift, sum, NV, has_nonfinite, exact)
 *                                        weights in the place of scores, and their sums; -0.0 for an excluded key where
 *                                        `has_nonfinite`
 *   int all_finite(value, count, size)   whether all elements of `count` values are
 *   R value_at(value, t, d)              element d of value t
 *   R weight_at(weights, lanes, t, lane) the weight of key t in a lane
 *   unit_rows finite_values(value, count, size, panel)
 *                                        the values in `panel`, with 0 for what is not finite
 *
 *   KEY_GROUP          UNIT                keys come in whole groups, counted from the item's first one
 *   STEP_GROUP         8                   ends of steps are cut to these: a rest of one key costs as much as four
 *   PADDED_UNITS       UNITS(size)         units of a query's or a key's row, padded
 *   PADDED_COMPONENTS  size                components of a value's row, padded
 *   values_from        by rows of units    the values from key `count` of a block on
 *   factor_of          1                   scores in natural units are `factor` times those that are stored
 *   in_natural_units   the score
 *   keeps_order        1                   whether the largest score in natural units is the largest stored one
 *   is_flushed         0                   whether multiply-adds must make a tile's results again: see FA_LEAST_SUM */
#ifndef FA_ATTENTION_PRODUCTS_H
#define FA_ATTENTION_PRODUCTS_H

#include "products/products.h"

#if FA_TILE_PRODUCTS
#include "attention/tiled_amx.h"
#else
#include "attention/tiled_broadcast.h"
#endif

#ifndef KEY_GROUP
#define KEY_GROUP UNIT
#endif
#ifndef STEP_GROUP
#define STEP_GROUP 8
#endif
#ifndef PADDED_UNITS
#define PADDED_UNITS(size) UNITS(size)
#endif
#ifndef PADDED_COMPONENTS
#define PADDED_COMPONENTS(size) (size)
#endif
#ifndef values_from
FA_INLINE unit_rows values_from(unit_rows value, ptrdiff_t count) {
    return (unit_rows){value.data + count / UNIT * value.stride, value.stride};
}
#endif
#ifndef factor_of
FA_INLINE R factor_of(const fa_attention *a) { return 1; }
#endif
#ifndef in_natural_units
FA_INLINE V in_natural_units(V score, R factor) { return score; }
#endif
#ifndef keeps_order
FA_INLINE int keeps_order(const fa_attention *a) { return 1; }
#endif
#ifndef is_flushed
FA_INLINE int is_flushed(const R *out, const V *sum, ptrdiff_t vectors, ptrdiff_t value_size) { return 0; }
#endif

#endif
