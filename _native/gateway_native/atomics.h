/* C11-style atomics as plain functions, so that Cython code can call them by name.
 *
 * The GCC/Clang builtins work on ordinary integers, also inside mapped files, and are understood by ThreadSanitizer. */
#ifndef GATEWAY_ATOMICS_H
#define GATEWAY_ATOMICS_H

#include <stdint.h>

static inline uint64_t gw_load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t gw_load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void gw_store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void gw_store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint64_t gw_add_relaxed(uint64_t *p, uint64_t v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline uint64_t gw_exchange(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t gw_load_seq(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void gw_store_seq(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }

/* Ask for a cache line that will be written soon. Any address will do. */
static inline void gw_prefetch(const void *p) { __builtin_prefetch(p, 1, 3); }

/* Order everything before against everything after. ThreadSanitizer does not model bare fences, so a fence is a
 * read-modify-write on a word of its own there. */
#if defined(__SANITIZE_THREAD__)
static uint64_t gw_fence_word;
static inline void gw_fence(void) { __atomic_fetch_add(&gw_fence_word, 1, __ATOMIC_SEQ_CST); }
#else
static inline void gw_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#endif

#endif
