/* What the team of threads needs of the compiler and of the system: atomic numbers, sleeping until one of them changes,
 * a clock, processors. Linux sleeps in a futex, Windows in WaitOnAddress, all others on one condition variable. */

#pragma once

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(_WIN32)
#include <windows.h>
#pragma comment(lib, "Synchronization.lib") /* WaitOnAddress */
#else
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__linux__)
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

/* --- atomic numbers; macros, since they serve int and uint64_t --- */

#define fa_load(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)
#define fa_store(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)
#define fa_add(place, value) __atomic_add_fetch(place, value, __ATOMIC_SEQ_CST)
#define fa_set_bits(place, value) __atomic_fetch_or(place, value, __ATOMIC_SEQ_CST)
#define fa_clear_bits(place, value) __atomic_fetch_and(place, ~(value), __ATOMIC_SEQ_CST)
/* What may change at any time and is checked afterwards. */
#define fa_peek(place) __atomic_load_n(place, __ATOMIC_RELAXED)
#define fa_put(place, value) __atomic_store_n(place, value, __ATOMIC_RELAXED)
/* On failure `expected` becomes what is there. */
#define fa_replace(place, expected, value) \
    __atomic_compare_exchange_n(place, expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
/* Between reading what may change and reading again whether it has; and, where it changes, between that and putting. */
#define fa_fence() __atomic_thread_fence(__ATOMIC_ACQ_REL)
#define fa_lowest_bit(word) __builtin_ctzll(word)

/* --- waiting --- */

static inline void fa_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb"); /* about as long as x86's pause; yield returns at once */
#endif
}

#if defined(__linux__)
static inline void fa_sleep(int *word, int expected) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, expected, NULL, NULL, 0);
}
static inline void fa_wake(int *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0); }
#elif defined(_WIN32)
static inline void fa_sleep(int *word, int expected) { WaitOnAddress(word, &expected, sizeof expected, INFINITE); }
static inline void fa_wake(int *word, int count) { (void)count, WakeByAddressAll(word); }
#else
static pthread_mutex_t fa_sleep_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fa_sleep_condition = PTHREAD_COND_INITIALIZER;
static inline void fa_sleep(int *word, int expected) {
    pthread_mutex_lock(&fa_sleep_mutex);
    if (fa_load(word) == expected) pthread_cond_wait(&fa_sleep_condition, &fa_sleep_mutex);
    pthread_mutex_unlock(&fa_sleep_mutex);
}
static inline void fa_wake(int *word, int count) {
    (void)word, (void)count;
    pthread_mutex_lock(&fa_sleep_mutex);
    pthread_cond_broadcast(&fa_sleep_condition);
    pthread_mutex_unlock(&fa_sleep_mutex);
}
#endif

/* Nanoseconds since some moment. */
static inline int64_t fa_now(void) {
#if defined(_WIN32)
    static LARGE_INTEGER frequency;
    LARGE_INTEGER ticks;
    if (!frequency.QuadPart) QueryPerformanceFrequency(&frequency);
    QueryPerformanceCounter(&ticks);
    return (int64_t)((double)ticks.QuadPart * 1e9 / (double)frequency.QuadPart);
#else
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
#endif
}

/* --- processors --- */

/* The processor that runs this thread; -1 where the system does not say. */
static inline int fa_processor(void) {
#if defined(__linux__)
    return sched_getcpu();
#elif defined(_WIN32)
    return (int)GetCurrentProcessorNumber();
#else
    return -1;
#endif
}

/* Which processors a thread may use: a bit for each of 8192, the most that Linux is built for. */
typedef struct { unsigned long words[8192 / 8 / sizeof(unsigned long)]; } fa_processors;

#if defined(__linux__)
static inline int fa_thread_id(void) { return (int)syscall(SYS_gettid); }

/* Those of the process, that is of its first thread, and how many; 0 where the system does not say. */
static inline int fa_allowed(fa_processors *processors) {
    int count = 0;
    size_t i;
    memset(processors, 0, sizeof *processors);
    if (syscall(SYS_sched_getaffinity, getpid(), sizeof *processors, processors) < 0) return 0;
    for (i = 0; i < sizeof processors->words / sizeof *processors->words; i++)
        count += __builtin_popcountl(processors->words[i]);
    return count;
}

static inline void fa_allow(int thread_id, const fa_processors *processors) {
    syscall(SYS_sched_setaffinity, thread_id, sizeof *processors, processors);
}
#else
static inline int fa_thread_id(void) { return 0; }
static inline int fa_allowed(fa_processors *processors) { return (void)processors, 0; }
static inline void fa_allow(int thread_id, const fa_processors *processors) { (void)thread_id, (void)processors; }
#endif

static inline int fa_same_processors(const fa_processors *a, const fa_processors *b) {
    return !memcmp(a, b, sizeof *a);
}

/* --- threads --- */

#if defined(_WIN32)
static inline void fa_block_signals(void) {}
static inline int fa_grantable(int count, size_t least, size_t stack) { return (void)least, (void)stack, count; }
static inline void fa_at_fork(void (*before)(void), void (*parent)(void), void (*child)(void)) {
    (void)before, (void)parent, (void)child;
}
#else
/* Signals to the process are for the program's own threads; those that tell of a fault stay with who made it. */
static inline void fa_block_signals(void) {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGSEGV), sigdelset(&all, SIGBUS), sigdelset(&all, SIGFPE), sigdelset(&all, SIGILL);
    sigdelset(&all, SIGABRT), sigdelset(&all, SIGTRAP), sigdelset(&all, SIGPROF), sigdelset(&all, SIGSYS);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
}

static inline void fa_at_fork(void (*before)(void), void (*parent)(void), void (*child)(void)) {
    pthread_atfork(before, parent, child);
}

typedef struct { pthread_mutex_t gate; size_t least; int too_small; } fa_trial;

static void *fa_try_thread(void *argument) {
    fa_trial *trial = argument;
#if defined(__linux__)
    pthread_attr_t attributes;
    size_t size = 0;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstacksize(&attributes, &size);
        pthread_attr_destroy(&attributes);
        if (size < trial->least) fa_store(&trial->too_small, 1);
    }
#endif
    pthread_mutex_lock(&trial->gate); /* stays until all have been started */
    pthread_mutex_unlock(&trial->gate);
    return NULL;
}

/* How many of `count` threads the system grants, found by starting them with stacks of the size that OpenMP was told to
 * give its own (0: the default): OpenMP's libraries end the process where one is refused. None if stacks have less than
 * `least` bytes. */
static inline int fa_grantable(int count, size_t least, size_t stack) {
    fa_trial trial = {.least = least};
    pthread_t *threads = malloc((size_t)count * sizeof *threads);
    pthread_attr_t attributes;
    int started = 0, i;
    if (!threads || pthread_attr_init(&attributes)) return free(threads), 0;
    if (stack) pthread_attr_setstacksize(&attributes, stack);
    pthread_mutex_init(&trial.gate, NULL);
    pthread_mutex_lock(&trial.gate);
    while (started < count && pthread_create(&threads[started], &attributes, fa_try_thread, &trial) == 0) started++;
    pthread_mutex_unlock(&trial.gate);
    for (i = 0; i < started; i++) pthread_join(threads[i], NULL);
    pthread_mutex_destroy(&trial.gate);
    pthread_attr_destroy(&attributes);
    free(threads);
    return trial.too_small ? 0 : started;
}
#endif
