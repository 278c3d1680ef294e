/* Which targets this build holds and which of them this machine can run. On x86-64 asked of the processor (CPUID) and
 * of the operating system, which must save the wider registers (XGETBV); on arm64 of the operating system. */

#include "targets/dispatch.h"

#include "simd/common.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* The registers that the operating system saves. */
enum { STATE_AVX = 0x6, STATE_AVX512 = 0xe6, STATE_TILES = 0x60000 };

static uint64_t enabled_state(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0; /* OSXSAVE */
    __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
    return (uint64_t)d << 32 | a;
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

/* Where CPUID tells of a feature: all bits of `mask` in a register of a leaf; and what must be saved for it. */
enum { EAX, EBX, ECX, EDX };
static const struct {
    unsigned feature, leaf, subleaf, place, mask;
    uint64_t state;
} features[] = {
    {FA_CPU_AVX, 1, 0, ECX, 1u << 28, STATE_AVX},
    {FA_CPU_F16C, 1, 0, ECX, 1u << 29, STATE_AVX},
    {FA_CPU_FMA, 1, 0, ECX, 1u << 12, STATE_AVX},
    {FA_CPU_AVX2, 7, 0, EBX, 1u << 5, STATE_AVX},
    {FA_CPU_AVX512_ONLY, 7, 0, EBX, 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31, STATE_AVX512},
    {FA_CPU_AVX512_VNNI, 7, 0, ECX, 1u << 11, STATE_AVX512},
    {FA_CPU_AVX512_BF16, 7, 1, EAX, 1u << 5, STATE_AVX512},
    {FA_CPU_AMX, 7, 0, EDX, 1u << 22 | 1u << 24 | 1u << 25, STATE_TILES},
};

int fa_is_supported(const fa_target *target) {
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        unsigned found[4];
        if (!(target->needs & features[i].feature)) continue;
        if ((enabled_state() & features[i].state) != features[i].state) return 0;
        if (!__get_cpuid_count(features[i].leaf, features[i].subleaf, &found[EAX], &found[EBX], &found[ECX],
                               &found[EDX]))
            return 0;
        if ((found[features[i].place] & features[i].mask) != features[i].mask) return 0;
    }
    return !(target->needs & FA_CPU_AMX) || tiles_are_given();
}
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

/* Where the system tells of a feature: Linux by a bit of an auxiliary value, macOS by a name. */
enum { HWCAP = 16, HWCAP2 = 26 };
static const struct {
    unsigned feature, place, bit;
    const char *name;
} features[] = {
    {FA_CPU_DOTPROD, HWCAP, 1u << 20, "hw.optional.arm.FEAT_DotProd"},
    {FA_CPU_BF16, HWCAP2, 1u << 14, "hw.optional.arm.FEAT_BF16"},
};

static int is_there(size_t i) {
#if defined(__linux__)
    return (getauxval(features[i].place) & features[i].bit) != 0;
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(features[i].name, &value, &size, NULL, 0) == 0 && value;
#else
    return 0;
#endif
}

int fa_is_supported(const fa_target *target) {
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (target->needs & features[i].feature && !is_there(i)) return 0;
    return 1;
}
#else
int fa_is_supported(const fa_target *target) { return target->needs == FA_CPU_ANY; }
#endif

/* The rows of targets.def whose FA_BUILD_<name> is 1: the build says so of those that it makes. */
#define IF_0(...)
#define IF_1(...) __VA_ARGS__
#define IF(built, ...) FA_JOIN(IF_, built)(__VA_ARGS__)

#define TARGET(name) IF(FA_BUILD_##name, extern const fa_target fa_target_##name;)
#include "targets/targets.def"
#undef TARGET

const fa_target *const fa_targets[] = {
#define TARGET(name) IF(FA_BUILD_##name, &fa_target_##name, )
#include "targets/targets.def"
};
const int fa_target_count = sizeof fa_targets / sizeof *fa_targets;
