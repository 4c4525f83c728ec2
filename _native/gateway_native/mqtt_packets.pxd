"""The packets of a buffer: where one begins and ends, whether it may come at all, and those that need little more.

Inline functions only. Source: MQTT 5 section 2.1.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.time cimport clock_gettime, timespec

from gateway_native.mqtt cimport *
from gateway_native.mqtt_headers cimport variable_integer
from gateway_native.mqtt_publish cimport fault, release
from gateway_native.mqtt_rate cimport rate_resume

cdef enum:
    # Types of packets.
    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBREL = 6
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15

    NOT_SENT = 0xFF                 # what flags_of_type says of it

    # Sets of types, one bit for each. Type 0 does not exist.
    FROM_SERVERS_ONLY = 1 << 0 | 1 << 2 | 1 << 9 | 1 << 11 | 1 << 13        # CONNACK, SUBACK, UNSUBACK, PINGRESP
    # CONNECT, SUBSCRIBE, UNSUBSCRIBE, PINGREQ; and CONNACK, which opens a connection and comes only once.
    NOT_FROM_SERVERS = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 8 | 1 << 10 | 1 << 12
    WITH_FLAGS_2 = 1 << 6 | 1 << 8 | 1 << 10                                # PUBREL, SUBSCRIBE, UNSUBSCRIBE


cdef inline uint8_t flags_of_type(uint8_t role, uint8_t kind) noexcept nogil:
    """The flags that each packet type must have [MQTT-2.2.2-2]; PUBLISH has its own rules. NOT_SENT: it may not come."""
    if (FROM_SERVERS_ONLY if role == ROLE_SERVER else NOT_FROM_SERVERS) >> kind & 1:
        return NOT_SENT
    return 2 if WITH_FLAGS_2 >> kind & 1 else 0


cdef inline uint8_t fault_of_first_byte(uint8_t role, MqttConnection* connection, uint8_t first_byte) noexcept nogil:
    """Judged as soon as it is there: garbage need not be awaited to its end."""
    cdef uint8_t flags
    if connection.version == 0:             # [MQTT-3.1.0-1], [MQTT-3.2.0-1]
        return FAULT_NONE if first_byte == (CONNECT if role == ROLE_SERVER else CONNACK) << 4 else FAULT_FIRST_PACKET
    if first_byte >> 4 == PUBLISH:
        return FAULT_NONE
    flags = flags_of_type(role, first_byte >> 4)
    if flags == NOT_SENT or (first_byte >> 4 == AUTH and connection.version != 5):
        return FAULT_TYPE
    if first_byte >> 4 == DISCONNECT and role == ROLE_CLIENT and connection.version != 5:
        return FAULT_TYPE
    return FAULT_NONE if first_byte & 15 == flags else FAULT_FLAGS


cdef inline int oversized(MqttConnection* connection, size_t left) noexcept nogil:
    """A broker's publish larger than allowed: the driver gets its beginning, the rest is passed over.

    MQTT 3.1.1 has no way to tell a broker of a limit, and one that never gets its PUBACK sends it again and again.
    """
    cdef uint64_t whole = connection.need
    connection.need = min(whole, <uint64_t>OVERSIZED_BYTES)
    if connection.need > left:
        return STOP_END
    connection.body_bytes = <uint32_t>(connection.need - connection.header_bytes)
    connection.skip = whole - connection.need
    return STOP_PACKET


cdef inline int packet_begin(
    MqttGroup* group, MqttConnection* connection, const uint8_t* at, size_t left,
) noexcept nogil:
    """Read a fixed header into header_bytes and body_bytes. STOP_NONE when the packet is whole."""
    cdef uint8_t wrong = fault_of_first_byte(group.role, connection, at[0])
    cdef uint64_t limit = group.packet_bytes_max
    cdef int width
    if wrong:
        return fault(connection, wrong)
    width = variable_integer(at + 1, left - 1, connection.version == 5, &connection.body_bytes)
    if width < 0:
        return fault(connection, FAULT_LENGTH)
    if width == 0:
        connection.need = left + 1
        return STOP_END
    connection.header_bytes = 1 + width
    connection.need = <uint64_t>connection.header_bytes + connection.body_bytes
    if at[0] >> 4 != PUBLISH and limit > CONTROL_BYTES_MAX:
        limit = CONTROL_BYTES_MAX
    if connection.need > limit:
        if group.role == ROLE_CLIENT and at[0] >> 4 == PUBLISH:
            return oversized(connection, left)
        return fault(connection, FAULT_TOO_LARGE)
    return STOP_NONE if connection.need <= left else STOP_END


cdef inline void pass_over(MqttConnection* connection, size_t size, size_t* position) noexcept nogil:
    """What is left of an oversized publish."""
    cdef uint64_t count = min(connection.skip, <uint64_t>(size - position[0]))
    position[0] += count
    connection.skip -= count


cdef inline int64_t clock_now(const MqttGroup* group, int clock) noexcept nogil:
    cdef timespec now
    if group.clock_ns:
        return group.clock_ns
    clock_gettime(clock, &now)
    return <int64_t>now.tv_sec * 1000000000 + now.tv_nsec


cdef inline bint rest(MqttGroup* group, MqttConnection* connection, int64_t steady_ns) noexcept nogil:
    """Has the connection, or the group, a rate limit that lets no publish pass now?"""
    connection.resume_ns = max(rate_resume(&connection.rate, steady_ns), rate_resume(&group.rate, steady_ns))
    return connection.resume_ns != 0


cdef inline int packet_take(
    MqttGroup* group, MqttConnection* connection, const uint8_t* at, int64_t time_ns,
) noexcept nogil:
    """Any packet but PUBLISH, as far as the parser takes it."""
    if at[0] >> 4 == PINGREQ:
        if connection.body_bytes:
            return fault(connection, FAULT_LENGTH)
        connection.pings += 1
        return STOP_NONE
    if at[0] >> 4 == PINGRESP:
        return fault(connection, FAULT_LENGTH) if connection.body_bytes else STOP_NONE
    if at[0] >> 4 == PUBREL and connection.session != NULL:
        return release(group, connection, at + connection.header_bytes, connection.body_bytes, time_ns)
    return STOP_PACKET
