"""Payloads of MJPEG (RFC 2435) into JPEG images. Inline functions only.

The payload carries the scan only; tables and headers are made here as the RFC's appendices A and B say: standard Huffman
tables (ITU-T T.81, annex K.3), quantization tables from Q or in-band, 8-bit baseline, 4:2:2 (type 0) or 4:2:0 (type 1).
Components are numbered 1, 2, 3, which every decoder takes for YCbCr.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

from gateway_native.rtp cimport FATE_WHOLE, RtpAssembly, RtpSession
from gateway_native.rtp_nal cimport unit_unsupported
from gateway_native.rtp_unit cimport unit_append

cdef extern from "wire.h" nogil:
    uint16_t get_be16(const uint8_t*)
    uint32_t get_be32(const uint8_t*)
    void put_be16(uint8_t*, uint16_t)

cdef extern from "jpeg_tables.h" nogil:
    const uint8_t[128] gw_jpeg_quantizers
    const uint8_t[432] gw_jpeg_huffman

cdef enum:
    JPEG_HEADER_BYTES = 8           # §3.1
    JPEG_RESTART_BYTES = 4          # §3.1.7, types 64 to 127
    JPEG_TABLES_BYTES = 4           # §3.1.8, Q from 128 on
    JPEG_RESTART = 64               # bit of the type
    JPEG_Q_IN_BAND = 128
    JPEG_Q_EACH_TIME = 255          # its tables may change with each image
    JPEG_HUFFMAN_BYTES = 432
    JPEG_QUANTIZERS_BYTES = 128
    JPEG_FRONT_BYTES = 1024         # of all that stands before the scan, at most

cdef struct JpegHeader:
    uint8_t kind
    uint8_t q
    uint32_t offset
    uint32_t width                  # pixels
    uint32_t height
    uint16_t restart                # interval in MCUs; 0: none


cdef inline void quantizers_of(uint8_t q, uint8_t* to) noexcept nogil:
    """Appendix A: luma, then chroma, in zigzag order. q: 1 to 99."""
    cdef int scale = 5000 // q if q < 50 else 200 - 2 * q
    cdef int i
    for i in range(JPEG_QUANTIZERS_BYTES):
        to[i] = <uint8_t>max(1, min((gw_jpeg_quantizers[i] * scale + 50) // 100, 255))


cdef inline const uint8_t* quantizers_read(
    RtpSession* s, const JpegHeader* header, const uint8_t* at, const uint8_t* end
) noexcept nogil:
    """Those of the image, in-band or made; the address behind them, NULL: they cannot be had."""
    cdef size_t size
    cdef bint known
    if header.q < JPEG_Q_IN_BAND:
        if not 0 < header.q < 100:
            return NULL
        quantizers_of(header.q, s.quantizers)
        s.quantizers_size, s.quantizers_precision, s.quantizers_q = JPEG_QUANTIZERS_BYTES, 0, header.q
        return at
    if end - at < JPEG_TABLES_BYTES:
        return NULL
    size = get_be16(at + 2)
    if size == 0:                   # as it was the last time that this Q was used
        known = s.quantizers_size and s.quantizers_q == header.q and header.q != JPEG_Q_EACH_TIME
        return at + JPEG_TABLES_BYTES if known else NULL
    if <size_t>(end - at) - JPEG_TABLES_BYTES < size or not tables_fit(at[1], size):
        return NULL
    memcpy(s.quantizers, at + JPEG_TABLES_BYTES, size)
    s.quantizers_size, s.quantizers_precision, s.quantizers_q = <uint32_t>size, at[1], header.q
    return at + JPEG_TABLES_BYTES + size


cdef inline bint tables_fit(uint8_t precision, size_t size) noexcept nogil:
    """One table or two, each of 64 numbers of one byte or two, as its bit of `precision` says."""
    cdef size_t first = 128 if precision & 1 else 64
    cdef size_t second = 128 if precision & 2 else 64
    return size == first or size == first + second


cdef inline uint8_t* put_marker(uint8_t* to, uint8_t marker, size_t size) noexcept nogil:
    """A marker segment's beginning: size counts what follows it."""
    to[0], to[1] = 0xFF, marker
    put_be16(to + 2, <uint16_t>(size + 2))
    return to + 4


cdef inline uint8_t* put_quantizers(const RtpSession* s, uint8_t* to) noexcept nogil:
    cdef size_t at = 0
    cdef size_t size
    cdef uint8_t number = 0
    while at < s.quantizers_size:
        size = 128 if s.quantizers_precision >> number & 1 else 64
        to = put_marker(to, 0xDB, 1 + size)
        to[0] = <uint8_t>((s.quantizers_precision >> number & 1) << 4 | number)
        memcpy(to + 1, s.quantizers + at, size)
        to += 1 + size
        at += size
        number += 1
    return to


cdef inline uint8_t* put_frame(const RtpSession* s, const JpegHeader* header, uint8_t* to) noexcept nogil:
    """SOF0: 8-bit baseline, three components, the first sampled twice across and, for type 1, twice down."""
    cdef uint8_t i
    cdef bint two_tables = s.quantizers_size > (128 if s.quantizers_precision & 1 else 64)
    to = put_marker(to, 0xC0, 15)
    to[0] = 8
    put_be16(to + 1, <uint16_t>header.height)
    put_be16(to + 3, <uint16_t>header.width)
    to[5] = 3
    to += 6
    for i in range(3):
        to[0] = i + 1
        to[1] = 0x11 if i else 0x22 if header.kind & 1 else 0x21
        to[2] = 1 if i and two_tables else 0
        to += 3
    return to


cdef inline uint8_t* put_scan(uint8_t* to) noexcept nogil:
    """SOS: all three components, all coefficients."""
    cdef uint8_t i
    to = put_marker(to, 0xDA, 10)
    to[0] = 3
    to += 1
    for i in range(3):
        to[0] = i + 1
        to[1] = 0x11 if i else 0
        to += 2
    to[0], to[1], to[2] = 0, 63, 0
    return to + 3


cdef inline void image_begin(RtpSession* s, const JpegHeader* header) noexcept nogil:
    cdef uint8_t[JPEG_FRONT_BYTES] front
    cdef uint8_t* to = front
    to[0], to[1] = 0xFF, 0xD8
    to = put_quantizers(s, to + 2)
    if header.restart:
        to = put_marker(to, 0xDD, 2)
        put_be16(to, header.restart)
        to += 2
    to = put_frame(s, header, to)
    memcpy(to, gw_jpeg_huffman, JPEG_HUFFMAN_BYTES)
    to = put_scan(to + JPEG_HUFFMAN_BYTES)
    s.unit.picture = s.unit.key = True
    s.image_start = to - front
    if s.image_width != header.width or s.image_height != header.height:
        s.image_width, s.image_height = header.width, header.height
        s.unit.sets_changed = True
    unit_append(s, front, s.image_start)


cdef inline void image_end(RtpSession* s) noexcept nogil:
    """EOI, if the camera did not send it."""
    cdef RtpAssembly* u = &s.unit
    cdef uint8_t[2] end = [0xFF, 0xD9]
    if u.fate == FATE_WHOLE and (u.bytes.data[u.bytes.size - 2] != 0xFF or u.bytes.data[u.bytes.size - 1] != 0xD9):
        unit_append(s, end, 2)


cdef inline void payload_jpeg(RtpSession* s, const uint8_t* data, size_t size) noexcept nogil:
    cdef RtpAssembly* u = &s.unit
    cdef const uint8_t* at = data + JPEG_HEADER_BYTES
    cdef const uint8_t* end = data + size
    cdef JpegHeader header
    if size < JPEG_HEADER_BYTES:
        unit_unsupported(s)
        return
    header.offset = get_be32(data) & 0xFFFFFF
    header.kind, header.q, header.restart = data[4], data[5], 0
    header.width = <uint32_t>data[6] * 8 if data[6] else s.jpeg_width
    header.height = <uint32_t>data[7] * 8 if data[7] else s.jpeg_height
    if header.kind & JPEG_RESTART:
        if end - at < JPEG_RESTART_BYTES:
            unit_unsupported(s)
            return
        header.restart = get_be16(at)
        at += JPEG_RESTART_BYTES
    if header.offset == 0 and not u.picture:
        if header.kind & ~JPEG_RESTART > 1 or header.width == 0 or header.height == 0:
            unit_unsupported(s)     # another sampling, or no size: nothing decodes that
            return
        at = quantizers_read(s, &header, at, end)
        if at == NULL:
            unit_unsupported(s)
            return
        image_begin(s, &header)
    elif not u.picture:
        u.damaged = True            # its beginning is not there
        return
    if u.fate != FATE_WHOLE or u.cut:
        return
    if header.offset != u.bytes.size - s.image_start:
        u.cut = u.damaged = True    # a hole
        return
    unit_append(s, at, end - at)
