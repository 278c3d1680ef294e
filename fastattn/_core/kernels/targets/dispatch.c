/* Which targets this build holds and which of them this machine can run: asked of the processor (CPUID) and of the
 * operating system, which must save the wider registers (XGETBV). */

#include "targets/dispatch.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

static uint64_t enabled_state(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
}

enum { STATE_AVX = 0x6, STATE_AVX512 = 0xe6, STATE_TILES = 0x60000 };

static int has(unsigned leaf_1_c, unsigned leaf_7_b, uint64_t state) {
    unsigned a, b, c, d;
    if ((enabled_state() & state) != state) return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf_1_c) != leaf_1_c) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & leaf_7_b) == leaf_7_b;
}

enum {
    FMA = 1u << 12, AVX = 1u << 28, F16C = 1u << 29,                                         /* leaf 1, ecx */
    AVX2 = 1u << 5, AVX512F = 1u << 16, AVX512DQ = 1u << 17, AVX512BW = 1u << 30,            /* leaf 7, ebx */
    AVX512VNNI = 1u << 11,                                                                   /* leaf 7, ecx */
    AMX = 1u << 22 | 1u << 24 | 1u << 25,                                                    /* leaf 7, edx: BF16, TILE, INT8 */
    AVX512BF16 = 1u << 5,                                                                    /* leaf 7.1, eax */
};
#define AVX512VL (1u << 31)

int fa_supported_avx2(void) { return has(FMA | AVX | F16C, AVX2, STATE_AVX); }
int fa_supported_avx512(void) {
    return has(FMA | AVX | F16C, AVX2 | AVX512F | AVX512DQ | AVX512BW | AVX512VL, STATE_AVX512);
}
#ifdef FA_EMULATE
int fa_supported_avx512_bf16(void) { return fa_supported_avx512(); }
int fa_supported_amx(void) { return fa_supported_avx512(); }
#else
int fa_supported_avx512_bf16(void) {
    unsigned a, b, c, d;
    if (!fa_supported_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & AVX512VNNI)) return 0;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & AVX512BF16;
}

/* Linux gives the tiles to a process that asks for them, once and for all its threads: 8 KB more of state to save. */
static int tiles_are_given(void) {
#ifdef __linux__
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA) == 0;
#else
    return 0;
#endif
}
int fa_supported_amx(void) {
    unsigned a, b, c, d;
    if (!fa_supported_avx512_bf16() || (enabled_state() & STATE_TILES) != STATE_TILES) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & AMX) == AMX && tiles_are_given();
}
#endif
#endif

int fa_supported_portable(void) { return 1; }

const fa_target *const fa_targets[] = {
#ifdef FA_HAVE_AMX
    &fa_target_amx,
#endif
#ifdef FA_HAVE_AVX512_BF16
    &fa_target_avx512_bf16,
#endif
#ifdef FA_HAVE_AVX512
    &fa_target_avx512,
#endif
#ifdef FA_HAVE_AVX2
    &fa_target_avx2,
#endif
#ifdef FA_HAVE_PORTABLE
    &fa_target_portable,
#endif
};
const int fa_target_count = sizeof fa_targets / sizeof *fa_targets;
