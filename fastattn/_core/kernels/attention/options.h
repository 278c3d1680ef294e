/* What stands between the products and the weights, in the contract's order: softcap, ALiBi, mask; and -inf for keys outside a
 * row's interval. */
#ifndef FA_ATTENTION_OPTIONS_H
#define FA_ATTENTION_OPTIONS_H

#include "instance.h"

/* What becomes of scores before exclusion. */
typedef struct {
    R cap, factor; /* the cap, 0 for none; and what takes scores to the argument of tanh_half, in one rounding */
} softcap_terms;

FA_INLINE softcap_terms softcap_of(const fa_attention *a) {
    return (softcap_terms){(R)a->softcap, a->softcap == 0 ? 0 : (R)(2.885390081777926815 / a->softcap)};
}

FA_INLINE V softcapped(V score, softcap_terms cap) { return cap.cap * tanh_half(score * cap.factor); }

FA_INLINE V alibi_distance(V position, V key) {
    V apart = position - key;
    return maximum(apart, -apart);
}

FA_INLINE V with_bias(V score, V bias) {
    const V nothing = splat((R)-INFINITY);
    return choose(bias == nothing, nothing, score + bias); /* even a score of NaN or +inf is excluded */
}

#endif
