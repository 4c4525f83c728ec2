"""Text as MQTT wants it: strict UTF-8, no U+0000, and no wildcards where a topic is named.

Inline functions only; there is no module of this name at run time. Rules: MQTT 5 section 1.5.4 and 4.7, MQTT 3.1.1
section 1.5.3 and 4.7 (they agree).
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    TEXT_OK = 0
    TEXT_NOT_UTF8 = 1           # ill-formed, overlong, a surrogate or beyond U+10FFFF
    TEXT_NUL = 2                # contains U+0000
    TEXT_WILDCARD = 3           # contains + or #, which a topic name must not

    # One value in each byte of a 64-bit word.
    EVERY_7F = 0x7F7F7F7F7F7F7F7F
    EVERY_PLUS = 0x2B2B2B2B2B2B2B2B
    EVERY_HASH = 0x2323232323232323

cdef extern from *:
    """
    #define GW_EVERY_80 0x8080808080808080ull
    """
    const uint64_t EVERY_80 "GW_EVERY_80"


cdef inline size_t utf8_sequence(const uint8_t* text, size_t left) noexcept nogil:
    """Bytes of the well-formed multi-byte sequence at `text` (lead byte >= 0x80), or 0 (Unicode 15, table 3-7)."""
    cdef uint8_t lead = text[0]
    cdef uint8_t low = 0x80
    cdef uint8_t high = 0xBF
    cdef size_t length, i
    if lead < 0xC2 or lead > 0xF4:
        return 0
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if left < length:
        return 0
    if lead == 0xE0:
        low = 0xA0              # overlong below
    elif lead == 0xED:
        high = 0x9F             # surrogates above
    elif lead == 0xF0:
        low = 0x90              # overlong below
    elif lead == 0xF4:
        high = 0x8F             # beyond U+10FFFF above
    if text[1] < low or text[1] > high:
        return 0
    for i in range(2, length):
        if text[i] < 0x80 or text[i] > 0xBF:
            return 0
    return length


cdef inline int text_check_slowly(const uint8_t* text, size_t size, bint is_topic) noexcept nogil:
    """Byte by byte; what is wrong first decides. One of TEXT_*."""
    cdef size_t at = 0
    cdef size_t length
    while at < size:
        if text[at] >= 0x80:
            length = utf8_sequence(text + at, size - at)
            if length == 0:
                return TEXT_NOT_UTF8
            at += length
            continue
        if text[at] == 0:
            return TEXT_NUL
        if is_topic and (text[at] == c'+' or text[at] == c'#'):
            return TEXT_WILDCARD
        at += 1
    return TEXT_OK


cdef inline bint word_is_plain(const uint8_t* text) noexcept nogil:
    """Are these 8 bytes all ASCII and none of NUL, + and #?

    In a word of ASCII bytes, adding 0x7F to each sets the byte's high bit exactly if the byte is not zero.
    """
    cdef uint64_t word
    memcpy(&word, text, 8)
    return (not word & EVERY_80) and (
        (word + EVERY_7F) & ((word ^ EVERY_PLUS) + EVERY_7F) & ((word ^ EVERY_HASH) + EVERY_7F) & EVERY_80
    ) == EVERY_80


cdef inline int text_check(const uint8_t* text, size_t size, bint is_topic) noexcept nogil:
    """One of TEXT_*. Nearly all text is plain ASCII: eight bytes at a time, the last eight overlapping."""
    cdef size_t at = 0
    if size < 8:
        return text_check_slowly(text, size, is_topic)
    while at + 8 <= size:
        if not word_is_plain(text + at):
            return text_check_slowly(text, size, is_topic)
        at += 8
    if at < size and not word_is_plain(text + size - 8):
        return text_check_slowly(text, size, is_topic)
    return TEXT_OK
