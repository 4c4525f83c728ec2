"""Topic aliases: numbers that a connection's client uses for topics it has named before (MQTT 5 section 3.3.2.3.4).

Inline functions only. The table is allocated when the first alias is set, and ends with the connection.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

cdef enum:
    ALIASES_MAX = 64                # that a connection may be offered
    ALIASES_BYTES_MAX = 16384       # topics of one connection's table

cdef struct MqttAlias:
    uint8_t* topic                  # NULL: not set
    uint16_t topic_bytes

cdef struct MqttAliases:
    MqttAlias* table                # [alias - 1]
    uint32_t bytes
    uint16_t max                    # 0: none are taken


cdef inline const MqttAlias* alias_find(const MqttAliases* aliases, uint16_t alias) noexcept nogil:
    """NULL when it was never set. alias: 1 to `max`."""
    if aliases.table == NULL or aliases.table[alias - 1].topic == NULL:
        return NULL
    return &aliases.table[alias - 1]


cdef inline bint alias_set(
    MqttAliases* aliases, uint16_t alias, const uint8_t* topic, uint16_t topic_bytes,
) noexcept nogil:
    """From now on `alias` (1 to `max`) means this topic. False: no memory, or more bytes than a connection may have."""
    cdef MqttAlias* entry
    cdef uint8_t* copy
    if aliases.table == NULL:
        aliases.table = <MqttAlias*>calloc(aliases.max, sizeof(MqttAlias))
        if aliases.table == NULL:
            return False
    entry = &aliases.table[alias - 1]
    if aliases.bytes - entry.topic_bytes + topic_bytes > ALIASES_BYTES_MAX:
        return False
    if entry.topic_bytes != topic_bytes:
        copy = <uint8_t*>malloc(topic_bytes)
        if copy == NULL:
            return False
        free(entry.topic)
        entry.topic = copy
        aliases.bytes += topic_bytes
        aliases.bytes -= entry.topic_bytes
        entry.topic_bytes = topic_bytes
    memcpy(entry.topic, topic, topic_bytes)
    return True


cdef inline void aliases_drop(MqttAliases* aliases) noexcept nogil:
    cdef uint32_t i
    if aliases.table == NULL:
        return
    for i in range(aliases.max):
        free(aliases.table[i].topic)
    free(aliases.table)
    aliases.table = NULL
    aliases.bytes = 0
