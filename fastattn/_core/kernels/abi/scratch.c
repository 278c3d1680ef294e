/* Scratch memory, one block a thread: grown when a call needs more, freed when the thread ends. */

#include "abi/table.h"

#include <stdlib.h>

#if defined(_WIN32)
#include <malloc.h>
#include <windows.h>
static DWORD key;
static INIT_ONCE once = INIT_ONCE_STATIC_INIT;
static void NTAPI release(void *block) { _aligned_free(block); }
static BOOL CALLBACK make_key(PINIT_ONCE o, PVOID p, PVOID *c) {
    (void)o, (void)p, (void)c;
    key = FlsAlloc(release);
    return TRUE;
}
static void *kept(void) {
    InitOnceExecuteOnce(&once, make_key, NULL, NULL);
    return FlsGetValue(key);
}
static int keep(void *block) { return FlsSetValue(key, block); }
static void *allocate(size_t bytes) { return _aligned_malloc(bytes, 64); }
#else
#include <pthread.h>
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static void release(void *block) { free(block); }
static void make_key(void) { pthread_key_create(&key, release); }
static void *kept(void) {
    pthread_once(&once, make_key);
    return pthread_getspecific(key);
}
static int keep(void *block) { return pthread_setspecific(key, block) == 0; }
static void *allocate(size_t bytes) { return aligned_alloc(64, bytes); }
#endif

/* The block's first 64 bytes hold its size. */
void *fa_scratch(size_t bytes) {
    char *block = kept();
    bytes = (bytes + 64 + 63) / 64 * 64;
    if (block && *(size_t *)block >= bytes) return block + 64;
    if (block) {
        keep(NULL);
        release(block);
    }
    block = allocate(bytes);
    if (!block) return NULL;
    if (!keep(block)) {
        release(block);
        return NULL;
    }
    *(size_t *)block = bytes;
    return block + 64;
}
