/* CRC-32C (Castagnoli), the checksum of Kafka's record batches (RFC 3720 appendix B.4; polynomial 0x1EDC6F41).
 *
 * Call crc32c_init once, before any other function and before threads start; `batch` does so when it is imported.
 * After that everything here is constant, so any thread may call it.
 *
 * `crc` is 0 to begin with and the previous result to go on: crc32c(crc32c(0, a), b) is the checksum of a followed by b.
 */
#ifndef GATEWAY_CRC32C_H
#define GATEWAY_CRC32C_H

#include <stddef.h>
#include <stdint.h>

typedef uint32_t (*crc32c_function)(uint32_t crc, const uint8_t *data, size_t n);

typedef struct {
    const char *name;           /* "portable", "sse4.2", "armv8" */
    crc32c_function function;
} crc32c_implementation;

/* Makes the tables and looks at the processor. Calling it again changes nothing. */
void crc32c_init(void);

/* Those this processor can run, slowest first: at least "portable". */
size_t crc32c_implementations(const crc32c_implementation **list);

/* The fastest of them. */
uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t n);

#endif
