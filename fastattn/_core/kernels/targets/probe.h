/* The limits of the machine, which benchmarks compare with. */
#ifndef FA_TARGETS_PROBE_H
#define FA_TARGETS_PROBE_H

#include "rows/passes.h"
#include "simd/lanes.h"
#include "storage/partial.h"
#include "storage/streaming.h"

/* Independent chains of multiply-add; the FLOPs done. */
static double EXPORT(probe_fma)(ptrdiff_t rounds) {
    V acc[FA_CHAINS];
    const V factor = splat((R)0.999), term = splat((R)0.001);
    FA_UNROLL_FOR(int i = 0; i < FA_CHAINS; i++) acc[i] = splat((R)(i + 2)); /* not a fixed point */
    for (ptrdiff_t n = 0; n < rounds; n++) {
#if FA_HAS_ELEMENT_PRODUCTS /* which add to a register in place */
        FA_UNROLL_FOR(int i = 0; i < FA_CHAINS; i++) acc[i] = add_element_product(acc[i], term, factor[0]);
#else
        FA_UNROLL_FOR(int i = 0; i < FA_CHAINS; i++) acc[i] = acc[i] * factor + term;
#endif
    }
    FA_UNROLL_FOR(int i = 1; i < FA_CHAINS; i++) acc[0] += acc[i];
    return 2.0 * FA_CHAINS * LANES * (double)rounds + 0 * (double)lane_sum(acc[0]);
}

static double EXPORT(probe_read)(const void *memory, ptrdiff_t bytes) {
    const R *p = memory;
    V sum[8] = {{0}, {0}, {0}, {0}, {0}, {0}, {0}, {0}};
    for (ptrdiff_t i = 0; i + 8 * LANES <= bytes / (ptrdiff_t)sizeof(R); i += 8 * LANES)
        FA_UNROLL_FOR(int j = 0; j < 8; j++) sum[j] += load(p + i + j * LANES);
    FA_UNROLL_FOR(int j = 1; j < 8; j++) sum[0] += sum[j];
    return (double)lane_sum(sum[0]);
}

static void EXPORT(probe_copy)(void *to, const void *from, ptrdiff_t bytes) {
    const R *x = from;
    nontemporal_line state = {.filled = 0}, *nontemporal = &state;
#define SAME(i, n) (prefetch_l2(x + 2048 + i), load_some(x + i, n))
    FA_MAP((char *)to, STORED, bytes / (ptrdiff_t)sizeof(R), nontemporal, SAME);
#undef SAME
    end_nontemporal_row(nontemporal, (R *)to + bytes / (ptrdiff_t)sizeof(R), 0);
    nontemporal_fence();
}

#endif
