"""Which stream a topic goes to: topic filters in their order, the first that matches wins.

Inline functions only. Matching follows MQTT 5 section 4.7: `+` stands for one level, `#` for the rest and for the
parent level too, and neither matches the first level of a topic that begins with `$`.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcmp

cdef struct MqttRoute:
    const uint8_t* filter
    uint32_t filter_bytes
    uint32_t literal_bytes          # bytes before the first wildcard: equal in every topic that matches
    uint32_t partition              # where the engine keeps the stream
    uint8_t wild                    # 0: no wildcard at all, the topic must equal the filter

cdef struct MqttRoutes:
    uint32_t count
    MqttRoute* routes
    uint8_t* text                   # all filters, one after another


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
