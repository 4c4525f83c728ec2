"""The record headers of one PUBLISH: its flags and, in MQTT 5, its properties, written as a record batch stores them.

Inline functions only. Only what differs from MQTT's default becomes a header, so that an ordinary QoS 0 reading has
none:

    qos "1" or "2" · retain "1" · dup "1"               the fixed header
    client                                              QoS 2 of a durable session, or if the listener wants it
    packet-id, delivery                                 QoS 2 of a durable session: see mqtt_session.pxd
    payload-format "1"                                  the payload says it is UTF-8 text
    message-expiry "<seconds>"
    content-type, response-topic                        escaped
    correlation-data                                    base64
    <user property's name>                              escaped value; see `is_reserved`

Values are ASCII: in *escaped* text every byte outside 0x20..0x7E, and the percent sign itself, stands as %XX, which
`urllib.parse.unquote` undoes. Headers stand in the order above, properties in the order in which they were sent.

One walk over the properties serves twice: without a target it validates and measures, with a target it writes.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, strlen

from gateway_native.batch cimport put_uvarint, uvarint_bytes
from gateway_native.mqtt_text cimport TEXT_OK, text_check

cdef enum:
    # Properties that a PUBLISH may carry (MQTT 5 section 2.2.2.2).
    PROPERTY_PAYLOAD_FORMAT = 0x01
    PROPERTY_MESSAGE_EXPIRY = 0x02
    PROPERTY_CONTENT_TYPE = 0x03
    PROPERTY_RESPONSE_TOPIC = 0x08
    PROPERTY_CORRELATION_DATA = 0x09
    PROPERTY_SUBSCRIPTION_ID = 0x0B     # only from a server to a client
    PROPERTY_TOPIC_ALIAS = 0x23
    PROPERTY_USER = 0x26

    # What is wrong with the properties, 0 when nothing is.
    PROPERTIES_OK = 0
    PROPERTIES_TRUNCATED = 1
    PROPERTIES_UNKNOWN = 2              # an identifier that a PUBLISH does not have
    PROPERTIES_TWICE = 3
    PROPERTIES_VALUE = 4                # a value outside its range
    PROPERTIES_TEXT = 5                 # not MQTT's UTF-8
    PROPERTIES_ALIAS = 6                # a topic alias that was not offered
    PROPERTIES_SUBSCRIPTION = 7         # a subscription identifier from a client
    PROPERTIES_LENGTH = 8               # a malformed variable byte integer

    AS_IT_IS = 0                        # how a value is written
    AS_ESCAPED = 1
    AS_BASE64 = 2

    DECIMAL_BYTES_MAX = 20              # digits of a 64-bit number

    PUBLISH_RETAIN = 0x01               # bits of the fixed header's first byte
    PUBLISH_QOS = 0x06
    PUBLISH_DUP = 0x08

cdef struct HeaderSink:
    uint8_t* to                         # where the next header goes; NULL: only measure
    uint32_t count
    uint64_t size                       # bytes of all headers so far, without their count
    uint16_t alias_max                  # topic aliases that may be used
    uint16_t alias                      # the one that was, or 0
    bint from_server                    # subscription identifiers may stand there, any number of them


cdef inline uint8_t hex_digit(uint8_t value) noexcept nogil:
    return c'0' + value if value < 10 else c'A' + value - 10


cdef inline bint is_plain(uint8_t byte) noexcept nogil:
    return 0x20 <= byte <= 0x7E and byte != c'%'


cdef inline uint64_t value_bytes_as(const uint8_t* value, size_t size, int how) noexcept nogil:
    cdef uint64_t result = size
    cdef size_t i
    if how == AS_ESCAPED:
        for i in range(size):
            result += 0 if is_plain(value[i]) else 2
    elif how == AS_BASE64:
        result = (<uint64_t>size + 2) // 3 * 4
    return result


cdef inline uint8_t* put_escaped(uint8_t* to, const uint8_t* value, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(size):
        if is_plain(value[i]):
            to[0] = value[i]
            to += 1
        else:
            to[0] = c'%'
            to[1] = hex_digit(value[i] >> 4)
            to[2] = hex_digit(value[i] & 15)
            to += 3
    return to


cdef inline uint8_t base64_digit(uint32_t value) noexcept nogil:
    value &= 63
    if value < 26:
        return <uint8_t>(c'A' + value)
    if value < 52:
        return <uint8_t>(c'a' + value - 26)
    if value < 62:
        return <uint8_t>(c'0' + value - 52)
    return c'+' if value == 62 else c'/'


cdef inline uint8_t* put_base64(uint8_t* to, const uint8_t* value, size_t size) noexcept nogil:
    """RFC 4648 section 4, padded."""
    cdef size_t at = 0
    cdef size_t left
    cdef uint32_t three
    while at < size:
        left = size - at
        three = <uint32_t>value[at] << 16
        if left > 1:
            three |= <uint32_t>value[at + 1] << 8
        if left > 2:
            three |= value[at + 2]
        to[0] = base64_digit(three >> 18)
        to[1] = base64_digit(three >> 12)
        to[2] = base64_digit(three >> 6) if left > 1 else c'='
        to[3] = base64_digit(three) if left > 2 else c'='
        to += 4
        at += 3
    return to


cdef inline bint is_reserved(const uint8_t* name, size_t size) noexcept nogil:
    """Would a user property of this name pass for a header of ours? Such a name is stored with `user.` before it.

    Names that begin with `user.` themselves are stored so too: taking one `user.` away always gives the sender's name.
    """
    if size >= 5 and memcmp(name, b"user.", 5) == 0:
        return True
    if size >= 8 and memcmp(name, b"gateway.", 8) == 0:
        return True
    if size == 3:
        return memcmp(name, b"qos", 3) == 0 or memcmp(name, b"dup", 3) == 0
    if size == 4:
        return memcmp(name, b"will", 4) == 0
    if size == 6:
        return memcmp(name, b"retain", 6) == 0 or memcmp(name, b"client", 6) == 0
    if size == 8:
        return memcmp(name, b"delivery", 8) == 0
    if size == 9:
        return memcmp(name, b"packet-id", 9) == 0
    if size == 12:
        return memcmp(name, b"content-type", 12) == 0
    if size == 14:
        return (memcmp(name, b"payload-format", 14) == 0 or memcmp(name, b"message-expiry", 14) == 0
                or memcmp(name, b"response-topic", 14) == 0)
    return size == 16 and memcmp(name, b"correlation-data", 16) == 0


cdef inline void sink_header(
    HeaderSink* sink, const char* prefix, const uint8_t* name, size_t name_bytes,
    const uint8_t* value, size_t size, int how,
) noexcept nogil:
    """One header called prefix + name. The fields: FORMAT.md, "Header"."""
    cdef size_t prefix_bytes = strlen(prefix)
    cdef uint64_t value_bytes = value_bytes_as(value, size, how)
    cdef uint64_t whole = prefix_bytes + name_bytes
    cdef uint8_t* to = sink.to
    sink.count += 1
    sink.size += uvarint_bytes(whole << 1) + whole + uvarint_bytes(value_bytes << 1) + value_bytes
    if to == NULL:
        return
    to = put_uvarint(to, whole << 1)
    memcpy(to, prefix, prefix_bytes)
    to += prefix_bytes
    if name_bytes:
        memcpy(to, name, name_bytes)
        to += name_bytes
    to = put_uvarint(to, value_bytes << 1)
    if how == AS_ESCAPED:
        to = put_escaped(to, value, size)
    elif how == AS_BASE64:
        to = put_base64(to, value, size)
    elif size:
        memcpy(to, value, size)
        to += size
    sink.to = to


cdef inline uint32_t put_decimal(uint8_t* to, uint64_t number) noexcept nogil:
    """The digits of a number at to[: DECIMAL_BYTES_MAX]; how many there are."""
    cdef uint8_t[DECIMAL_BYTES_MAX] digits
    cdef uint32_t at = DECIMAL_BYTES_MAX
    while True:
        at -= 1
        digits[at] = <uint8_t>(c'0' + number % 10)
        number //= 10
        if number == 0:
            break
    memcpy(to, &digits[at], DECIMAL_BYTES_MAX - at)
    return DECIMAL_BYTES_MAX - at


cdef inline void sink_number(HeaderSink* sink, const char* name, uint64_t number) noexcept nogil:
    cdef uint8_t[DECIMAL_BYTES_MAX] digits
    cdef uint32_t size = put_decimal(digits, number)
    sink_header(sink, name, NULL, 0, digits, size, AS_IT_IS)


cdef inline void sink_flags(HeaderSink* sink, uint8_t first_byte) noexcept nogil:
    if first_byte & PUBLISH_QOS:
        sink_number(sink, b"qos", (first_byte & PUBLISH_QOS) >> 1)
    if first_byte & PUBLISH_RETAIN:
        sink_number(sink, b"retain", 1)
    if first_byte & PUBLISH_DUP:
        sink_number(sink, b"dup", 1)


cdef inline uint32_t be32(const uint8_t* at) noexcept nogil:
    return <uint32_t>at[0] << 24 | <uint32_t>at[1] << 16 | <uint32_t>at[2] << 8 | at[3]


cdef inline uint16_t be16(const uint8_t* at) noexcept nogil:
    return <uint16_t>(at[0] << 8 | at[1])


cdef inline const uint8_t* text_field(
    const uint8_t* at, const uint8_t* end, const uint8_t** text, size_t* size,
) noexcept nogil:
    """A two-byte length and that many bytes; the address after them, or NULL if they reach beyond `end`."""
    if end - at < 2:
        return NULL
    size[0] = be16(at)
    text[0] = at + 2
    if <size_t>(end - at) < 2 + size[0]:
        return NULL
    return at + 2 + size[0]


cdef inline int sink_user(HeaderSink* sink, const uint8_t** at, const uint8_t* end) noexcept nogil:
    cdef const uint8_t* name
    cdef const uint8_t* value
    cdef size_t name_bytes, value_bytes
    cdef const uint8_t* after = text_field(at[0], end, &name, &name_bytes)
    if after != NULL:
        after = text_field(after, end, &value, &value_bytes)
    if after == NULL:
        return PROPERTIES_TRUNCATED
    if sink.to == NULL and (text_check(name, name_bytes, False) != TEXT_OK
                            or text_check(value, value_bytes, False) != TEXT_OK):
        return PROPERTIES_TEXT
    sink_header(sink, b"user." if is_reserved(name, name_bytes) else b"", name, name_bytes, value, value_bytes,
                AS_ESCAPED)
    at[0] = after
    return PROPERTIES_OK


cdef inline int sink_text(
    HeaderSink* sink, const char* name, const uint8_t** at, const uint8_t* end, int how, bint is_topic,
) noexcept nogil:
    """A property with a length: text (checked once, when measuring), or binary data when `how` is AS_BASE64."""
    cdef const uint8_t* value
    cdef size_t size
    cdef const uint8_t* after = text_field(at[0], end, &value, &size)
    if after == NULL:
        return PROPERTIES_TRUNCATED
    if sink.to == NULL and how != AS_BASE64:
        if text_check(value, size, False) != TEXT_OK:
            return PROPERTIES_TEXT
        if is_topic and (size == 0 or text_check(value, size, True) != TEXT_OK):
            return PROPERTIES_VALUE
    sink_header(sink, name, NULL, 0, value, size, how)
    at[0] = after
    return PROPERTIES_OK


cdef inline int sink_alias(HeaderSink* sink, const uint8_t** at, const uint8_t* end) noexcept nogil:
    """No header, but which topic is meant."""
    if end - at[0] < 2:
        return PROPERTIES_TRUNCATED if sink.alias_max else PROPERTIES_ALIAS
    sink.alias = be16(at[0])
    if sink.alias == 0 or sink.alias > sink.alias_max:
        return PROPERTIES_ALIAS             # [MQTT-3.3.2-8], [MQTT-3.3.2-9]
    at[0] += 2
    return PROPERTIES_OK


cdef inline int variable_integer(const uint8_t* at, size_t left, bint shortest, uint32_t* value) noexcept nogil:
    """A variable byte integer (MQTT 5 section 1.5.5): the bytes it has, 0 when it is not whole, -1 when malformed."""
    cdef uint32_t result = 0
    cdef int i
    for i in range(4):
        if <size_t>i == left:
            return 0
        result |= <uint32_t>(at[i] & 0x7F) << (7 * i)
        if at[i] < 0x80:
            if shortest and i and at[i] == 0:
                return -1                   # [MQTT-1.5.5-1]
            value[0] = result
            return i + 1
    return -1


cdef inline int pass_subscription_id(const uint8_t** at, const uint8_t* end) noexcept nogil:
    """Which of our subscriptions a publish matches is of no interest; only its form is looked at (section 3.3.2.3.8)."""
    cdef uint32_t number
    cdef int width = variable_integer(at[0], end - at[0], True, &number)
    if width <= 0:
        return PROPERTIES_LENGTH if width < 0 else PROPERTIES_TRUNCATED
    at[0] += width
    return PROPERTIES_OK if number else PROPERTIES_VALUE


cdef inline int sink_property(
    HeaderSink* sink, uint8_t identifier, const uint8_t** at, const uint8_t* end,
) noexcept nogil:
    """Take one property's value at *at."""
    cdef const uint8_t* value = at[0]
    if identifier == PROPERTY_USER:
        return sink_user(sink, at, end)
    if identifier == PROPERTY_CONTENT_TYPE:
        return sink_text(sink, b"content-type", at, end, AS_ESCAPED, False)
    if identifier == PROPERTY_RESPONSE_TOPIC:
        return sink_text(sink, b"response-topic", at, end, AS_ESCAPED, True)
    if identifier == PROPERTY_CORRELATION_DATA:
        return sink_text(sink, b"correlation-data", at, end, AS_BASE64, False)
    if identifier == PROPERTY_PAYLOAD_FORMAT:
        if end - value < 1:
            return PROPERTIES_TRUNCATED
        if value[0] > 1:
            return PROPERTIES_VALUE
        if value[0]:
            sink_number(sink, b"payload-format", 1)
        at[0] = value + 1
        return PROPERTIES_OK
    if identifier == PROPERTY_MESSAGE_EXPIRY:
        if end - value < 4:
            return PROPERTIES_TRUNCATED
        sink_number(sink, b"message-expiry", be32(value))
        at[0] = value + 4
        return PROPERTIES_OK
    if identifier == PROPERTY_TOPIC_ALIAS:
        return sink_alias(sink, at, end)
    if identifier == PROPERTY_SUBSCRIPTION_ID:
        return pass_subscription_id(at, end) if sink.from_server else PROPERTIES_SUBSCRIPTION
    return PROPERTIES_UNKNOWN


cdef inline int sink_properties(HeaderSink* sink, const uint8_t* properties, size_t size) noexcept nogil:
    """All properties of a PUBLISH, their length field taken off. One of PROPERTIES_*."""
    cdef const uint8_t* at = properties
    cdef const uint8_t* end = properties + size
    cdef uint64_t seen = 0
    cdef uint8_t identifier
    cdef bint repeats
    cdef int wrong
    while at < end:
        identifier = at[0]              # a variable byte integer; all that exist have one byte
        at += 1
        repeats = identifier == PROPERTY_USER or (identifier == PROPERTY_SUBSCRIPTION_ID and sink.from_server)
        if not repeats and identifier < 64:
            if seen >> identifier & 1:
                return PROPERTIES_TWICE
            seen |= <uint64_t>1 << identifier
        wrong = sink_property(sink, identifier, &at, end)
        if wrong:
            return wrong
    return PROPERTIES_OK
