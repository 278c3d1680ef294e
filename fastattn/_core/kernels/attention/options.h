/* The score stage: what stands between the products and the weights, in the contract's order. Softcap, ALiBi, mask; and
 * -inf for keys outside a row's interval. Tiles, with rows in the lanes, and rows, with keys in the lanes, both go
 * through apply_options. */
#ifndef FA_ATTENTION_OPTIONS_H
#define FA_ATTENTION_OPTIONS_H

#include "instance.h"

/* Which of them there are for a step of keys. */
typedef struct {
    R cap, cap_factor; /* 0: no softcap; what takes scores to the argument of tanh_half, in one rounding */
    int has_slopes, has_bias, has_edge; /* has_edge: some row does not see all keys of the step */
} score_options;

/* What they ask of the rows whose scores a vector holds. Keys are counted from the step's first one. */
typedef struct {
    V position, slope; /* for ALiBi */
    VI begin, end;     /* the keys that are seen */
} score_rows;

FA_INLINE score_options options_of(const fa_attention *a, const fa_attention_item *item, int has_bias, int has_edge) {
    const R factor = a->softcap == 0 ? 0 : (R)(2.885390081777926815 / a->softcap);
    return (score_options){(R)a->softcap, factor, item->slopes != NULL, has_bias, has_edge};
}

FA_INLINE int any_options(score_options o) { return o.cap != 0 || o.has_slopes || o.has_bias || o.has_edge; }

FA_INLINE V distance(V position, V key) {
    V difference = position - key;
    return maximum(difference, -difference);
}

/* A vector of scores of the keys `key`, also given as reals. `bias` is read where there is one: a vector, or one for
 * all. */
FA_INLINE V apply_options(score_options o, V score, score_rows rows, VI key, V real_key, const R *bias, int one_bias) {
    const V excluded = splat((R)-INFINITY);
    if (o.cap != 0) score = o.cap * tanh_half(score * o.cap_factor);
    if (o.has_slopes) score -= rows.slope * distance(rows.position, real_key);
    if (o.has_bias) {
        V x = one_bias ? splat(*bias) : load(bias);
        score = choose(x == excluded, excluded, score + x); /* even a score of NaN or +inf is excluded */
    }
    if (o.has_edge) score = choose((key >= rows.begin) & (key < rows.end), score, excluded);
    return score;
}

#endif
