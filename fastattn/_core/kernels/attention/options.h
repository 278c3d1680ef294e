/* The score stage: what happens to scores between the products and the exponential. In this order: softcap, ALiBi,
 * biases (of masks and by position), and -inf for keys outside a row's interval.
 *
 * Tiled and rowwise attention both call apply_options: in the former the lanes of a vector are rows, in the latter
 * they are keys. */
#ifndef FA_ATTENTION_OPTIONS_H
#define FA_ATTENTION_OPTIONS_H

#include "instance.h"

/* The options that apply to a step of keys. */
typedef struct {
    R cap, cap_factor; /* 0: no softcap; what takes scores to the argument of tanh_half, in one rounding */
    int has_slopes, has_bias, has_edge; /* has_edge: some row does not see all keys of the step */
} score_options;

/* The rows whose scores a vector holds. Keys are counted from the first key of the step. */
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

/* Applies the options to scores of the keys `key`, which are also given as reals. `bias` is read only if there is a
 * mask: a vector of biases, or one for all lanes. */
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
