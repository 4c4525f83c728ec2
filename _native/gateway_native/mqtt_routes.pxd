"""Which stream and key a topic goes to: topic filters in their order, the first that matches wins.

Matching follows MQTT 5 section 4.7: `+` stands for one level, `#` for the rest and for the parent level too, and neither
matches the first level of a topic that begins with `$`.

The stream may be a template of topic levels, and so may the key. A level becomes a part of a stream's name escaped, so
that every topic has a name, no two levels have the same, and none can climb out of the data directory: bytes outside of
[A-Za-z0-9_-] stand as `.XX` (hex, upper case), the dot too; an empty level, or one that the topic lacks, as `.-`. A name
that would begin with two underscores, as the gateway's own streams do, begins with `.5F_`. Keys are bytes; their levels
stand as they are, and a missing one is empty.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    STREAM_NAME_BYTES_MAX = 249     # Kafka's limit
    PART_LITERAL = 0                # kinds of parts of a template; 1 to 9: that level
    PART_TOPIC = 10                 # the whole topic

# A piece of a template.
cdef struct MqttPart:
    const uint8_t* text
    uint32_t text_bytes
    uint32_t kind                   # PART_*, or a level counted from 1

cdef struct MqttTemplate:
    MqttPart* parts
    uint32_t count                  # 0: there is no template

cdef struct MqttRoute:
    const uint8_t* filter
    uint32_t filter_bytes
    uint32_t literal_bytes          # bytes before the first wildcard: equal in every topic that matches
    uint32_t partition              # where the engine keeps the stream; not used with a template for it
    uint8_t wild                    # 0: no wildcard at all, the topic must equal the filter
    uint8_t drop                    # 1: drop the newest record when the ring is full, instead of waiting
    MqttTemplate stream
    MqttTemplate key                # none: the topic

cdef struct MqttRoutes:
    uint32_t count
    uint32_t overflow               # partition of records whose stream's name is too long or one too many
    bint costly                     # finding a topic's target costs more than remembering it
    bint templates                  # some route's stream is one
    MqttRoute* routes
    uint8_t* text                   # all filters and literals, one after another
    MqttPart* parts                 # of all templates


cdef inline bint filter_matches(
    const uint8_t* filter, size_t filter_bytes, const uint8_t* topic, size_t topic_bytes,
) noexcept nogil:
    """Both must be valid: # only as the last level, wildcards alone in their level, none in the topic."""
    cdef size_t at = 0
    cdef size_t seen = 0            # in the topic
    if topic_bytes and topic[0] == c'$' and (filter[0] == c'+' or filter[0] == c'#'):
        return False
    while at < filter_bytes:
        # Both stand at the beginning of a level.
        if filter[at] == c'#':
            return True
        if filter[at] == c'+':
            at += 1
            while seen < topic_bytes and topic[seen] != c'/':
                seen += 1
        else:
            while at < filter_bytes and filter[at] != c'/':
                if seen == topic_bytes or topic[seen] != filter[at]:
                    return False
                at += 1
                seen += 1
            if seen < topic_bytes and topic[seen] != c'/':
                return False
        # Both stand at the end of a level.
        if at == filter_bytes:
            return seen == topic_bytes
        if seen == topic_bytes:     # "plant/#" matches "plant" itself
            return filter_bytes - at == 2 and filter[at + 1] == c'#'
        at += 1
        seen += 1
    return seen == topic_bytes      # the filter's last level is empty


cdef inline bint route_matches(const MqttRoute* route, const uint8_t* topic, size_t topic_bytes) noexcept nogil:
    cdef size_t literal = route.literal_bytes
    if not route.wild:
        return topic_bytes == literal and memcmp(route.filter, topic, literal) == 0
    # The literal part of "plant/#" ends with the slash that a topic "plant" lacks.
    if topic_bytes < literal:
        if topic_bytes + 1 != literal or memcmp(route.filter, topic, topic_bytes) != 0:
            return False
    elif memcmp(route.filter, topic, literal) != 0:
        return False
    elif literal + 1 == route.filter_bytes and literal and route.filter[literal] == c'#':
        return True                 # "plant/#", by far the commonest
    return filter_matches(route.filter, route.filter_bytes, topic, topic_bytes)


cdef inline const MqttRoute* route_find(const MqttRoutes* table, const uint8_t* topic, size_t topic_bytes) noexcept nogil:
    """The first route whose filter matches, or NULL."""
    cdef uint32_t i
    for i in range(table.count):
        if route_matches(&table.routes[i], topic, topic_bytes):
            return &table.routes[i]
    return NULL


cdef inline const uint8_t* topic_level(
    const uint8_t* topic, size_t topic_bytes, uint32_t level, size_t* size,
) noexcept nogil:
    """A level of a topic, counted from 1; size 0 when it is empty or missing."""
    cdef const uint8_t* end = topic + topic_bytes
    cdef const uint8_t* slash
    size[0] = 0
    while True:
        slash = <const uint8_t*>memchr(topic, c'/', end - topic)
        level -= 1
        if level == 0:
            size[0] = (end if slash == NULL else slash) - topic
            return topic
        if slash == NULL:
            return end
        topic = slash + 1


cdef inline uint8_t name_digit(uint8_t value) noexcept nogil:
    return c'0' + value if value < 10 else c'A' + value - 10


cdef inline bint name_is_plain(uint8_t byte) noexcept nogil:
    return (c'a' <= byte <= c'z' or c'A' <= byte <= c'Z' or c'0' <= byte <= c'9' or byte == c'_' or byte == c'-')


cdef inline uint32_t name_put_level(uint8_t* to, uint32_t at, const uint8_t* level, size_t size) noexcept nogil:
    """A level, escaped, at to[at : STREAM_NAME_BYTES_MAX]; where it ends, or 0 when there is not enough room."""
    cdef size_t i
    if size == 0:
        if at + 2 > STREAM_NAME_BYTES_MAX:
            return 0
        to[at] = c'.'
        to[at + 1] = c'-'
        return at + 2
    for i in range(size):
        if at + 3 > STREAM_NAME_BYTES_MAX and not (name_is_plain(level[i]) and at < STREAM_NAME_BYTES_MAX):
            return 0
        if name_is_plain(level[i]):
            to[at] = level[i]
            at += 1
        else:
            to[at] = c'.'
            to[at + 1] = name_digit(level[i] >> 4)
            to[at + 2] = name_digit(level[i] & 15)
            at += 3
    return at


cdef inline uint32_t name_unmask(uint8_t* to, uint32_t size) noexcept nogil:
    """Nobody outside may name one of the gateway's own streams: escape the first underscore."""
    cdef uint32_t i
    if size + 2 > STREAM_NAME_BYTES_MAX:
        return 0
    for i in range(size - 1, 0, -1):
        to[i + 2] = to[i]
    to[0] = c'.'
    to[1] = c'5'
    to[2] = c'F'
    return size + 2


cdef inline uint32_t stream_name(
    const MqttTemplate* template, const uint8_t* topic, size_t topic_bytes, uint8_t* to,
) noexcept nogil:
    """The stream's name for a topic at to[: STREAM_NAME_BYTES_MAX]; its bytes, or 0 when it would be longer."""
    cdef const MqttPart* part
    cdef const uint8_t* level
    cdef size_t size
    cdef uint32_t at = 0
    cdef uint32_t i
    for i in range(template.count):
        part = &template.parts[i]
        if part.kind == PART_LITERAL:
            if at + part.text_bytes > STREAM_NAME_BYTES_MAX:
                return 0
            memcpy(to + at, part.text, part.text_bytes)
            at += part.text_bytes
        else:
            level = topic_level(topic, topic_bytes, part.kind, &size)
            at = name_put_level(to, at, level, size)
            if at == 0:
                return 0
    if at >= 2 and to[0] == c'_' and to[1] == c'_':
        return name_unmask(to, at)
    return at


cdef inline uint64_t key_bytes(const MqttTemplate* template, const uint8_t* topic, size_t topic_bytes) noexcept nogil:
    """Of the key that `key_put` writes."""
    cdef uint64_t result = 0
    cdef size_t size
    cdef uint32_t i
    for i in range(template.count):
        if template.parts[i].kind == PART_LITERAL:
            result += template.parts[i].text_bytes
        elif template.parts[i].kind == PART_TOPIC:
            result += topic_bytes
        else:
            topic_level(topic, topic_bytes, template.parts[i].kind, &size)
            result += size
    return result


cdef inline uint8_t* key_put(
    const MqttTemplate* template, const uint8_t* topic, size_t topic_bytes, uint8_t* to,
) noexcept nogil:
    """Write the key for a topic; the address after it."""
    cdef const uint8_t* text
    cdef size_t size
    cdef uint32_t i
    for i in range(template.count):
        if template.parts[i].kind == PART_LITERAL:
            text = template.parts[i].text
            size = template.parts[i].text_bytes
        elif template.parts[i].kind == PART_TOPIC:
            text = topic
            size = topic_bytes
        else:
            text = topic_level(topic, topic_bytes, template.parts[i].kind, &size)
        memcpy(to, text, size)
        to += size
    return to


cdef class Routes:
    cdef MqttRoutes table
    cdef readonly tuple filters     # of bytes, in their order
    cdef readonly tuple streams     # of partitions (int) and templates (bytes)
    cdef int add(self, object spec, size_t* text_at, size_t* parts_at) except -1
    cdef const uint8_t* put_text(self, bytes text, size_t* text_at) except NULL
    cdef int compile(self, bytes template, MqttTemplate* to, size_t* text_at, size_t* parts_at) except -1
