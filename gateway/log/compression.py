"""Record batches that Kafka's clients and brokers have compressed, made plain: nothing else here knows compression.

The records behind a batch's header are compressed as a whole. Codecs are imported when a batch needs them: gzip is in
the standard library, lz4, zstd and snappy come with the extras `[kafka]` and `[replay]`. A few bytes can claim to be
terabytes: no more than the given bound is ever expanded. Source: Apache Kafka, DefaultRecordBatch.java and
org.apache.kafka.common.compress; github.com/xerial/snappy-java, SnappyOutputStream.java, for the framing of snappy.
"""

from __future__ import annotations

import importlib
import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from gateway_native import batch

from gateway.errors import FormatError
from gateway.log.layout import BATCH_BYTES_MAX

# Of one batch that is read from a log: Kafka's brokers take compressed ones of 1 MiB unless told otherwise.
EXPANDED_BYTES_MAX = 2 * BATCH_BYTES_MAX
# Each record becomes a Python object in the end, and takes 7 bytes here at least.
RECORDS_MAX = 2_500_000
# zstd looks back so far at most; its own programs refuse more, too. Only what is written of it takes memory.
_ZSTD_WINDOW_BYTES_MAX = 2**27
_PIECE_BYTES = 2**20

_CODEC_BITS = 0x07
_LENGTH = struct.Struct(">i")
_LENGTH_AT, _CRC_AT, _ATTRIBUTES_AT, _COUNT_AT = 8, 17, 21, 57
_XERIAL = b"\x82SNAPPY\0"
_XERIAL_HEADER_BYTES = 16


class CodecMissing(FormatError):
    """The library that reads this compression is not installed, or there is none."""


class TooLarge(FormatError):
    """A batch holds more than is expanded."""


class _Damaged(Exception):
    """What is compressed cannot be read."""


def expanded(data: bytes | memoryview, *, bytes_max: int = EXPANDED_BYTES_MAX) -> bytes:
    """One whole batch, whose CRC was right, as it would be without compression.

    Raises CodecMissing and TooLarge, whose texts are the middle of a sentence, and BatchError where what is compressed
    is damaged.
    """
    data = bytes(data)
    codec = data[_ATTRIBUTES_AT + 1] & _CODEC_BITS
    (count,) = _LENGTH.unpack_from(data, _COUNT_AT)
    name = batch.CODECS.get(codec, f"unknown codec {codec}")
    expand = _EXPANDERS.get(codec)
    if expand is None:
        raise CodecMissing(f"the batch is compressed with {name}, which nobody reads here")
    if count > RECORDS_MAX:
        raise TooLarge(f"the batch is compressed and counts {count} records; at most {RECORDS_MAX} are read at once")
    try:
        records = expand(data[batch.HEADER_BYTES :], bytes_max)
    except ImportError:
        raise CodecMissing(f"the batch is compressed with {name}: pip install 'gateway[kafka]' reads it") from None
    except _Damaged as error:
        text = f"damaged batch: its {name} data {error}, although the CRC-32C is right"
        raise batch.BatchError(text, 0, batch.PROBLEM_RECORDS, count, 0) from None
    if len(records) > bytes_max:
        raise TooLarge(f"the batch is compressed with {name} and holds more than {bytes_max} bytes")
    return _plain(data, records)


def _plain(data: bytes, records: bytes) -> bytes:
    summed = data[_ATTRIBUTES_AT : _ATTRIBUTES_AT + 1] + bytes([data[_ATTRIBUTES_AT + 1] & ~_CODEC_BITS])
    summed += data[_ATTRIBUTES_AT + 2 : batch.HEADER_BYTES] + records
    length = _LENGTH.pack(_CRC_AT - batch.LENGTH_PREFIX_BYTES + 4 + len(summed))
    crc = batch.crc32c(summed).to_bytes(4, "big")
    return data[:_LENGTH_AT] + length + data[batch.LENGTH_PREFIX_BYTES : _CRC_AT] + crc + summed


# -- each gives at most bytes_max and some more bytes, and raises _Damaged or ImportError ------------------------------


def _gzip(data: bytes, bytes_max: int) -> bytes:
    """RFC 1952: one member after the other."""
    found = b""
    while data and len(found) <= bytes_max:
        member = zlib.decompressobj(wbits=31)
        try:
            found += member.decompress(data, bytes_max + 1 - len(found))
        except zlib.error as error:
            raise _Damaged(f"cannot be expanded ({error})") from None
        if not member.eof and len(found) <= bytes_max:
            raise _Damaged("is cut off")
        data = member.unused_data
    return found


def _snappy(data: bytes, bytes_max: int) -> bytes:
    """One block as it is, or blocks in the frames of snappy-java. Each says first how large it is."""
    library: Any = importlib.import_module("cramjam")
    if not data.startswith(_XERIAL):
        return _snappy_block(library, data, bytes_max)
    found = bytearray()
    position = _XERIAL_HEADER_BYTES
    while position < len(data) and len(found) <= bytes_max:
        size = _LENGTH.unpack_from(data, position)[0] if position + _LENGTH.size <= len(data) else -1
        position += _LENGTH.size
        if not 0 <= size <= len(data) - position:
            raise _Damaged("is cut off")
        found += _snappy_block(library, data[position : position + size], bytes_max - len(found))
        position += size
    return bytes(found)


def _snappy_block(library: Any, data: bytes, bytes_max: int) -> bytes:
    try:
        if library.snappy.decompress_raw_len(data) > bytes_max:
            return bytes(bytes_max + 1)  # more than what is wanted, whatever it is
        return bytes(library.snappy.decompress_raw(data))
    except library.DecompressionError as error:
        raise _Damaged(f"cannot be expanded ({error})") from None


def _lz4(data: bytes, bytes_max: int) -> bytes:
    frame: Any = importlib.import_module("lz4.frame").LZ4FrameDecompressor()
    try:
        found: bytes = frame.decompress(data, max_length=bytes_max + 1)
    except (RuntimeError, ValueError) as error:
        raise _Damaged(f"cannot be expanded ({error})") from None
    if not frame.eof and len(found) <= bytes_max:
        raise _Damaged("is cut off")
    return found


def _zstd(data: bytes, bytes_max: int) -> bytes:
    zstandard: Any = importlib.import_module("zstandard")
    made = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
    found = bytearray()
    try:
        with made.stream_reader(data, read_across_frames=True) as reader:
            while len(found) <= bytes_max and (piece := reader.read(min(_PIECE_BYTES, bytes_max + 1 - len(found)))):
                found += piece
    except zstandard.ZstdError as error:
        raise _Damaged(f"cannot be expanded ({error})") from None
    return bytes(found)


_EXPANDERS: Mapping[int, Callable[[bytes, int], bytes]] = {1: _gzip, 2: _snappy, 3: _lz4, 4: _zstd}
