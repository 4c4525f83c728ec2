/* Lets libFuzzer see which branches of our extension modules an input reached.
 *
 * GCC calls __sanitizer_cov_trace_pc at each block of code that it compiled with -fsanitize-coverage=trace-pc; libFuzzer wants
 * counters, which Clang would have written into the code itself. This library, loaded before anything else with that symbol,
 * counts each place of call in a table, and libFuzzer is given that table: `coverage_begin` gets its two functions. */
#include <stddef.h>
#include <stdint.h>

enum { COUNTERS = 1 << 15 };

static uint8_t counters[COUNTERS];
static uintptr_t places[COUNTERS][2]; /* what libFuzzer calls a PC table: an address and flags for each counter */

void __sanitizer_cov_trace_pc(void) {
    uint64_t place = (uint64_t)(uintptr_t)__builtin_return_address(0);
    uint8_t *counter = &counters[(place * 0x9E3779B97F4A7C15ull) >> 49];
    if (*counter != UINT8_MAX)
        *counter += 1;
}

void coverage_begin(void (*counters_init)(uint8_t *, uint8_t *), void (*places_init)(const uintptr_t *, const uintptr_t *)) {
    for (size_t i = 0; i < COUNTERS; i++)
        places[i][0] = i + 1;
    counters_init(counters, counters + COUNTERS);
    places_init(&places[0][0], &places[COUNTERS][0]);
}

/* For a test: how many places were reached since the start. */
size_t coverage_reached(void) {
    size_t reached = 0;
    for (size_t i = 0; i < COUNTERS; i++)
        reached += counters[i] != 0;
    return reached;
}
