/* CRC-32C three times: by tables anywhere, by instruction on x86-64 with SSE4.2 and on ARMv8 with the CRC extension.
 *
 * The instruction takes 8 bytes at a time but has a latency of about three cycles, so three blocks are summed side by
 * side and joined afterwards. Joining needs the sum of a block "moved" over the block that follows it: multiplied by
 * x^(8 * block) modulo the polynomial. That is linear in the 32 bits of the sum, so four tables of 256 entries, one per
 * byte, do it in four look-ups. No carry-less multiplication is needed: small ARM boards do not have it.
 */
#include "crc32c.h"
#include "wire.h"

#define POLYNOMIAL 0x82F63B78u  /* 0x1EDC6F41 with its bits reversed: bit 0 stands for x^31 */

#define LONG_BLOCK 4096u        /* three of these while there is enough data */
#define SHORT_BLOCK 256u        /* then three of these, then 8 bytes at a time */

typedef struct {
    uint32_t byte[4][256];
} shift_table;

static uint32_t slices[8][256]; /* slices[k][b]: byte b followed by k zero bytes */
static shift_table over_long;
static shift_table over_short;

static crc32c_implementation available[2];
static size_t available_count;

/* -- portable: slicing-by-8 (Kounavis and Berry, 2005) ------------------------------------------------------------- */

static uint32_t crc32c_portable(uint32_t crc, const uint8_t *data, size_t n) {
    crc = ~crc;
    while (n >= 8) {
        uint64_t v = get_le64(data) ^ crc;
        crc = slices[7][v & 0xff] ^ slices[6][(v >> 8) & 0xff] ^ slices[5][(v >> 16) & 0xff] ^
              slices[4][(v >> 24) & 0xff] ^ slices[3][(v >> 32) & 0xff] ^ slices[2][(v >> 40) & 0xff] ^
              slices[1][(v >> 48) & 0xff] ^ slices[0][v >> 56];
        data += 8;
        n -= 8;
    }
    while (n--)
        crc = (crc >> 8) ^ slices[0][(crc ^ *data++) & 0xff];
    return ~crc;
}

static void make_slices(void) {
    for (uint32_t b = 0; b < 256; b++) {
        uint32_t crc = b;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (POLYNOMIAL & (0u - (crc & 1u)));
        slices[0][b] = crc;
    }
    for (int k = 1; k < 8; k++)
        for (int b = 0; b < 256; b++)
            slices[k][b] = (slices[k - 1][b] >> 8) ^ slices[0][slices[k - 1][b] & 0xff];
}

/* -- by instruction --------------------------------------------------------------------------------------------------- */

/* One function per instruction set, with the same body: STEP8 and STEP1 are the instruction, TARGET lets the compiler
 * use it in this function only, so the rest of the program runs on any processor. */
#define DEFINE_THREE_WAY(NAME, TARGET, STEP8, STEP1)                                                                  \
    TARGET static const uint8_t *NAME##_blocks(uint32_t *sum, const uint8_t *data, size_t *n, size_t block,           \
                                               const shift_table *over) {                                             \
        uint32_t crc = *sum;                                                                                          \
        while (*n >= 3 * block) {                                                                                     \
            uint32_t second = 0, third = 0;                                                                           \
            for (const uint8_t *end = data + block; data < end; data += 8) {                                          \
                crc = STEP8(crc, get_le64(data));                                                                     \
                second = STEP8(second, get_le64(data + block));                                                       \
                third = STEP8(third, get_le64(data + 2 * block));                                                     \
            }                                                                                                         \
            crc = shifted(over, shifted(over, crc) ^ second) ^ third;                                                 \
            data += 2 * block;                                                                                        \
            *n -= 3 * block;                                                                                          \
        }                                                                                                             \
        *sum = crc;                                                                                                   \
        return data;                                                                                                  \
    }                                                                                                                 \
    TARGET static uint32_t NAME(uint32_t crc, const uint8_t *data, size_t n) {                                        \
        crc = ~crc;                                                                                                   \
        data = NAME##_blocks(&crc, data, &n, LONG_BLOCK, &over_long);                                                 \
        data = NAME##_blocks(&crc, data, &n, SHORT_BLOCK, &over_short);                                               \
        for (; n >= 8; data += 8, n -= 8)                                                                             \
            crc = STEP8(crc, get_le64(data));                                                                         \
        while (n--)                                                                                                   \
            crc = STEP1(crc, *data++);                                                                                \
        return ~crc;                                                                                                  \
    }

static inline uint32_t shifted(const shift_table *over, uint32_t crc) {
    return over->byte[0][crc & 0xff] ^ over->byte[1][(crc >> 8) & 0xff] ^ over->byte[2][(crc >> 16) & 0xff] ^
           over->byte[3][crc >> 24];
}

/* Appending `block` zero bytes to a sum multiplies it by x^(8 * block); do so with each bit alone, then add them up. */
static void make_shift(shift_table *over, size_t block) {
    uint32_t bits[32];
    for (int bit = 0; bit < 32; bit++) {
        uint32_t crc = 1u << bit;
        for (size_t i = 0; i < block; i++)
            crc = (crc >> 8) ^ slices[0][crc & 0xff];
        bits[bit] = crc;
    }
    for (int k = 0; k < 4; k++)
        for (int b = 0; b < 256; b++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                if (b >> bit & 1)
                    crc ^= bits[8 * k + bit];
            over->byte[k][b] = crc;
        }
}

#if defined(__x86_64__)

#include <nmmintrin.h>

#define SSE42_STEP8(crc, v) ((uint32_t)_mm_crc32_u64((crc), (v)))
#define SSE42_STEP1(crc, v) _mm_crc32_u8((crc), (v))
DEFINE_THREE_WAY(crc32c_sse42, __attribute__((target("sse4.2"))), SSE42_STEP8, SSE42_STEP1)

static crc32c_implementation by_instruction(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("sse4.2"))
        return (crc32c_implementation){"sse4.2", crc32c_sse42};
    return (crc32c_implementation){NULL, NULL};
}

#elif defined(__aarch64__)

#if defined(__linux__)
#include <sys/auxv.h>
#endif
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)    /* arch/arm64/include/uapi/asm/hwcap.h */
#endif

/* Written as assembly because arm_acle.h offers the intrinsics only when the whole file is compiled for +crc. */
static inline uint32_t armv8_step8(uint32_t crc, uint64_t v) {
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(v));
    return crc;
}

static inline uint32_t armv8_step1(uint32_t crc, uint8_t v) {
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)v));
    return crc;
}

DEFINE_THREE_WAY(crc32c_armv8, , armv8_step8, armv8_step1)

static crc32c_implementation by_instruction(void) {
#if defined(__linux__)
    if (!(getauxval(AT_HWCAP) & HWCAP_CRC32))
        return (crc32c_implementation){NULL, NULL};
#elif !defined(__APPLE__)       /* every Apple processor has it */
    return (crc32c_implementation){NULL, NULL};
#endif
    return (crc32c_implementation){"armv8", crc32c_armv8};
}

#else

static crc32c_implementation by_instruction(void) {
    return (crc32c_implementation){NULL, NULL};
}

#endif

/* -- choice -------------------------------------------------------------------------------------------------------------- */

void crc32c_init(void) {
    if (available_count)
        return;
    make_slices();
    make_shift(&over_long, LONG_BLOCK);
    make_shift(&over_short, SHORT_BLOCK);
    available[0] = (crc32c_implementation){"portable", crc32c_portable};
    available[1] = by_instruction();
    available_count = available[1].function ? 2 : 1;
}

size_t crc32c_implementations(const crc32c_implementation **list) {
    *list = available;
    return available_count;
}

uint32_t crc32c(uint32_t crc, const uint8_t *data, size_t n) {
    return available[available_count - 1].function(crc, data, n);
}
