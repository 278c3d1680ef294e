"""A C library that stands before the system's allocator: any allocation can be refused, and blocks can end at a fence.

It is compiled when a test asks for it, and loaded into a process of its own by LD_PRELOAD.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

#define PAGE 4096
#define MOST_FENCED 256

static _Thread_local long left;
static atomic_long live;
static atomic_int fenced, others_refused;
static atomic_long refusals, of_others;
static _Thread_local int spared;
static _Atomic(char *) blocks[MOST_FENCED];
static size_t sizes[MOST_FENCED];

/* The n-th allocation of this thread from now on fails; 0: none. Returns how many were left. */
long refuse(long n) {
    long former = left;
    left = n;
    return former;
}
long live_blocks(void) { return live; }
/* From now on, aligned_alloc fails in all threads but this one. Returns how often it has. */
long refuse_others(int on) {
    spared = 1;
    others_refused = on;
    return refusals;
}
/* Blocks of aligned_alloc that threads have asked for that did not call this. */
long asked_by_others(void) {
    spared = 1;
    return of_others;
}
/* From now on, blocks of aligned_alloc, and those of malloc for the package's modules, lie between two pages that may
 * not be touched, and end at the second. */
void fence(int on) { fenced = on; }

static int is_for_the_package(void *caller) {
    Dl_info found;
    return dladdr(caller, &found) && found.dli_fname && strstr(found.dli_fname, "/fastattn/");
}

static int refused(void) {
    if (left <= 0 || --left) return 0;
    errno = ENOMEM;
    return 1;
}

static void *counted(void *block) {
    if (block) live++;
    return block;
}

static void *between_fences(size_t bytes) {
    bytes = (bytes + 7) / 8 * 8; /* so that what is in it is aligned */
    size_t inside = (bytes + PAGE - 1) / PAGE * PAGE;
    char *none = NULL, *first = mmap(NULL, inside + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int i;
    if (first == MAP_FAILED || mprotect(first + PAGE, inside, PROT_READ | PROT_WRITE)) return NULL;
    for (i = 0; i < MOST_FENCED; i++, none = NULL)
        if (atomic_compare_exchange_strong(&blocks[i], &none, first + PAGE + inside - bytes)) {
            sizes[i] = bytes;
            return blocks[i];
        }
    return NULL;
}

static int is_between_fences(char *block) {
    int i;
    for (i = 0; i < MOST_FENCED; i++)
        if (blocks[i] == block) {
            size_t inside = (sizes[i] + PAGE - 1) / PAGE * PAGE;
            munmap(block + sizes[i] - inside - PAGE, inside + 2 * PAGE);
            blocks[i] = NULL;
            return 1;
        }
    return 0;
}

void *malloc(size_t bytes) {
    if (refused()) return NULL;
    if (fenced && is_for_the_package(__builtin_return_address(0))) return counted(between_fences(bytes));
    return counted(__libc_malloc(bytes));
}
void *calloc(size_t count, size_t bytes) { return refused() ? NULL : counted(__libc_calloc(count, bytes)); }
void *memalign(size_t to, size_t bytes) { return refused() ? NULL : counted(__libc_memalign(to, bytes)); }
void *aligned_alloc(size_t to, size_t bytes) {
    if (refused()) return NULL;
    if (!spared) of_others++;
    if (others_refused && !spared) {
        refusals++;
        errno = ENOMEM;
        return NULL;
    }
    return counted(fenced && bytes % to == 0 ? between_fences(bytes) : __libc_memalign(to, bytes));
}
int posix_memalign(void **block, size_t to, size_t bytes) {
    *block = memalign(to, bytes);
    return *block ? 0 : ENOMEM;
}
void *realloc(void *block, size_t bytes) {
    void *other;
    if (refused()) return NULL;
    other = __libc_realloc(block, bytes);
    if (other && !block) live++;
    if (block && !other && !bytes) live--;
    return other;
}
void free(void *block) {
    if (!block) return;
    live--;
    if (!((uintptr_t)block % 8) && is_between_fences(block)) return;
    __libc_free(block);
}
"""

# What scripts begin with: the library's functions.
BEGIN = """
import ctypes
allocator = ctypes.CDLL(None)
"""


@functools.cache
def library():
    """The path of the library; the test is skipped where it cannot be built, or another one is there already."""
    compiler = shutil.which("cc")
    if not sys.platform.startswith("linux") or compiler is None or "LD_PRELOAD" in os.environ:
        pytest.skip("needs Linux, a C compiler and no other allocator")
    folder = Path(tempfile.mkdtemp())
    (folder / "allocator.c").write_text(SOURCE, encoding="utf-8")
    path = folder / "allocator.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-Wl,-z,defs", "-o", path, folder / "allocator.c", "-ldl"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs glibc")  # musl has no other names for its functions
    return str(path)
