/* The three clocks, in ns. */
#ifndef GATEWAY_CLOCK_H
#define GATEWAY_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline int64_t gw_clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* For waiting and measuring. */
static inline uint64_t gw_monotonic_ns(void) { return (uint64_t)gw_clock_ns(CLOCK_MONOTONIC); }
/* What records are stamped with. It steps. */
static inline int64_t gw_realtime_ns(void) { return gw_clock_ns(CLOCK_REALTIME); }
/* Monotonic, and it goes on while the machine sleeps: what a step of the wall clock is told by. */
static inline int64_t gw_boottime_ns(void) { return gw_clock_ns(CLOCK_BOOTTIME); }

#endif
