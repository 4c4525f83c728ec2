/* Big-endian integers and the width of variable-length ones: what Cython has no words for. Unaligned access is fine. */
#ifndef GATEWAY_WIRE_H
#define GATEWAY_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define GW_BE16(v) (v)
#define GW_BE32(v) (v)
#define GW_BE64(v) (v)
#define GW_LE32(v) __builtin_bswap32(v)
#define GW_LE64(v) __builtin_bswap64(v)
#else
#define GW_BE16(v) __builtin_bswap16(v)
#define GW_BE32(v) __builtin_bswap32(v)
#define GW_BE64(v) __builtin_bswap64(v)
#define GW_LE32(v) (v)
#define GW_LE64(v) (v)
#endif

static inline void put_be16(uint8_t *to, uint16_t v) { v = GW_BE16(v); memcpy(to, &v, sizeof v); }
static inline void put_be32(uint8_t *to, uint32_t v) { v = GW_BE32(v); memcpy(to, &v, sizeof v); }
static inline void put_be64(uint8_t *to, uint64_t v) { v = GW_BE64(v); memcpy(to, &v, sizeof v); }

static inline void put_le32(uint8_t *to, uint32_t v) { v = GW_LE32(v); memcpy(to, &v, sizeof v); }
static inline void put_le64(uint8_t *to, uint64_t v) { v = GW_LE64(v); memcpy(to, &v, sizeof v); }

static inline uint16_t get_be16(const uint8_t *from) { uint16_t v; memcpy(&v, from, sizeof v); return GW_BE16(v); }
static inline uint32_t get_be32(const uint8_t *from) { uint32_t v; memcpy(&v, from, sizeof v); return GW_BE32(v); }
static inline uint64_t get_be64(const uint8_t *from) { uint64_t v; memcpy(&v, from, sizeof v); return GW_BE64(v); }

static inline uint32_t get_le32(const uint8_t *from) { uint32_t v; memcpy(&v, from, sizeof v); return GW_LE32(v); }
static inline uint64_t get_le64(const uint8_t *from) { uint64_t v; memcpy(&v, from, sizeof v); return GW_LE64(v); }

/* Bytes of `v` in base 128: ceil(bits / 7), at least 1. (9 * bits + 64) / 64 equals that for 1 to 64 bits. */
static inline size_t uvarint_bytes(uint64_t v) {
    return (size_t)((9u * (64u - (unsigned)__builtin_clzll(v | 1)) + 64u) >> 6);
}

#endif
