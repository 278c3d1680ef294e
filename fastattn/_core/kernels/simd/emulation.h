/* The instructions of AVX512_BF16, AVX512_VNNI and AMX by those of plain AVX-512, so that the targets that need them
 * can be tested where the processor lacks them: FASTATTN_EMULATE=1, see setup.py. To the bit what Intel's manual
 * (volume 2, and the instruction set extensions' reference) says of them, and slow. Never part of a usual build.
 *
 * Products of bfloat16 ignore MXCSR: they read and write subnormal numbers as 0, and round to even. */
#ifndef FA_EMULATION_H
#define FA_EMULATION_H

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define FA_EMULATED 1

#define EMULATED static inline __attribute__((always_inline, unused))

/* Subnormal numbers become 0 and keep their sign. */
EMULATED __m512 fa_flushed(__m512 x) {
    return _mm512_mask_and_ps(x, _mm512_fpclass_ps_mask(x, 0x20), x, _mm512_set1_ps(-0.0f));
}
EMULATED __m512 fa_even_words(__m512i pairs) { return (__m512)_mm512_slli_epi32(pairs, 16); }
EMULATED __m512 fa_odd_words(__m512i pairs) {
    return (__m512)_mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000));
}
EMULATED __m512 fa_flushing_fma(__m512 sum, __m512 a, __m512 b) {
    return fa_flushed(_mm512_fmadd_ps(fa_flushed(a), fa_flushed(b), fa_flushed(sum)));
}

/* VDPBF16PS: the odd halves first. */
EMULATED __m512 fa_dpbf16(__m512 sum, __m512i a, __m512i b) {
    sum = fa_flushing_fma(sum, fa_odd_words(a), fa_odd_words(b));
    return fa_flushing_fma(sum, fa_even_words(a), fa_even_words(b));
}
#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(sum, a, b) fa_dpbf16((sum), (__m512i)(a), (__m512i)(b))

/* VCVTNEPS2BF16 and VCVTNE2PS2BF16. */
EMULATED __m256i fa_to_bf16(__m512 x) {
    const __m512i bits = (__m512i)fa_flushed(x),
                  odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    rounded = _mm512_mask_or_epi32(rounded, _mm512_fpclass_ps_mask(x, 0x81), bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}
EMULATED __m512i fa_two_to_bf16(__m512 high, __m512 low) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(fa_to_bf16(low)), fa_to_bf16(high), 1);
}
#undef _mm512_cvtneps_pbh
#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtneps_pbh(x) fa_to_bf16(x)
#define _mm512_cvtne2ps_pbh(high, low) fa_two_to_bf16((high), (low))

/* VPDPWSSD and VPDPBUSD: neither saturates. */
EMULATED __m512i fa_dpwssd(__m512i sum, __m512i a, __m512i b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
EMULATED __m512i fa_dpbusd(__m512i sum, __m512i a, __m512i b) {
    const __m512i even = _mm512_and_si512(a, _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(a, 8);
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(even, _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8)));
    return _mm512_add_epi32(sum, _mm512_madd_epi16(odd, _mm512_srai_epi16(b, 8)));
}
#undef _mm512_dpwssd_epi32
#undef _mm512_dpbusd_epi32
#define _mm512_dpwssd_epi32(sum, a, b) fa_dpwssd((sum), (a), (b))
#define _mm512_dpbusd_epi32(sum, a, b) fa_dpbusd((sum), (a), (b))

/* AMX: eight tiles of up to 16 rows of 64 bytes, each thread's own. A tile that was not configured is an error, as it
 * is for the processor; TILERELEASE forgets the configuration. */
typedef struct {
    uint8_t palette, first_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
} fa_tile_shapes;

static _Thread_local fa_tile_shapes fa_shapes;
static _Thread_local __m512i fa_tiles[8][16];

EMULATED void fa_need(int holds) {
    if (!holds) __builtin_trap();
}
EMULATED void fa_tile_zero(int tile) {
    fa_need(fa_shapes.palette == 1 && fa_shapes.rows[tile]);
    memset(fa_tiles[tile], 0, sizeof fa_tiles[tile]);
}
static void __attribute__((unused)) fa_tile_loadconfig(const void *shapes) {
    memcpy(&fa_shapes, shapes, sizeof fa_shapes);
    fa_need(fa_shapes.palette == 1);
    for (int i = 0; i < 8; i++)
        fa_need(fa_shapes.rows[i] <= 16 && fa_shapes.bytes[i] <= 64 && fa_shapes.bytes[i] % 4 == 0);
    memset(fa_tiles, 0, sizeof fa_tiles);
}
static void __attribute__((unused)) fa_tile_release(void) {
    memset(&fa_shapes, 0, sizeof fa_shapes);
    memset(fa_tiles, 0, sizeof fa_tiles);
}
static void __attribute__((unused)) fa_tile_loadd(int tile, const void *from, ptrdiff_t stride) {
    fa_tile_zero(tile);
    for (int i = 0; i < fa_shapes.rows[tile]; i++)
        memcpy(&fa_tiles[tile][i], (const char *)from + i * stride, fa_shapes.bytes[tile]);
}
static void __attribute__((unused)) fa_tile_stored(int tile, void *to, ptrdiff_t stride) {
    fa_need(fa_shapes.palette == 1 && fa_shapes.rows[tile]);
    for (int i = 0; i < fa_shapes.rows[tile]; i++)
        memcpy((char *)to + i * stride, &fa_tiles[tile][i], fa_shapes.bytes[tile]);
}

/* Row i of the sums takes SUMS(row, what is spread from a, row k of b) for each k: shapes are those of the operands. */
EMULATED void fa_tile_fits(int sums, int a, int b) {
    fa_need(fa_shapes.palette == 1 && sums != a && sums != b && a != b);
    fa_need(fa_shapes.rows[sums] == fa_shapes.rows[a] && fa_shapes.rows[b] == fa_shapes.bytes[a] / 4);
    fa_need(fa_shapes.bytes[sums] == fa_shapes.bytes[b]);
}
EMULATED __m512i fa_spread(int tile, int row, int k) {
    return _mm512_set1_epi32(((const int32_t *)&fa_tiles[tile][row])[k]);
}

/* TDPBF16PS: even and odd halves are summed apart, from 0 on, then added, and last added to the sum. */
static void __attribute__((unused)) fa_tile_dpbf16ps(int sums, int a, int b) {
    fa_tile_fits(sums, a, b);
    for (int i = 0; i < fa_shapes.rows[sums]; i++) {
        __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
        for (int k = 0; k < fa_shapes.rows[b]; k++) {
            const __m512i left = fa_spread(a, i, k), right = fa_tiles[b][k];
            even = fa_flushing_fma(even, fa_even_words(left), fa_even_words(right));
            odd = fa_flushing_fma(odd, fa_odd_words(left), fa_odd_words(right));
        }
        const __m512 both = fa_flushed(_mm512_add_ps(even, odd));
        fa_tiles[sums][i] = (__m512i)fa_flushed(_mm512_add_ps(fa_flushed((__m512)fa_tiles[sums][i]), both));
    }
}
/* TDPBUSD and TDPBSUD: which operand's bytes are unsigned. */
static void __attribute__((unused)) fa_tile_dpbusd(int sums, int a, int b) {
    fa_tile_fits(sums, a, b);
    for (int i = 0; i < fa_shapes.rows[sums]; i++)
        for (int k = 0; k < fa_shapes.rows[b]; k++)
            fa_tiles[sums][i] = fa_dpbusd(fa_tiles[sums][i], fa_spread(a, i, k), fa_tiles[b][k]);
}
static void __attribute__((unused)) fa_tile_dpbsud(int sums, int a, int b) {
    fa_tile_fits(sums, a, b);
    for (int i = 0; i < fa_shapes.rows[sums]; i++)
        for (int k = 0; k < fa_shapes.rows[b]; k++)
            fa_tiles[sums][i] = fa_dpbusd(fa_tiles[sums][i], fa_tiles[b][k], fa_spread(a, i, k));
}
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#undef _tile_dpbsud
#define _tile_loadconfig(shapes) fa_tile_loadconfig(shapes)
#define _tile_release() fa_tile_release()
#define _tile_zero(tile) fa_tile_zero(tile)
#define _tile_loadd(tile, from, stride) fa_tile_loadd((tile), (from), (stride))
#define _tile_stored(tile, to, stride) fa_tile_stored((tile), (to), (stride))
#define _tile_dpbf16ps(sums, a, b) fa_tile_dpbf16ps((sums), (a), (b))
#define _tile_dpbusd(sums, a, b) fa_tile_dpbusd((sums), (a), (b))
#define _tile_dpbsud(sums, a, b) fa_tile_dpbsud((sums), (a), (b))

#undef EMULATED
#endif
