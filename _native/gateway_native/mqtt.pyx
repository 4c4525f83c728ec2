"""MQTT publishers' side of the wire, sans I/O. See mqtt.pxd for the contract."""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from gateway_native.batch cimport headers_count_bytes, put_headers_count
from gateway_native.mqtt_headers cimport (
    PROPERTIES_ALIAS, PROPERTIES_OK, PROPERTIES_SUBSCRIPTION, PROPERTIES_TEXT, PROPERTIES_TRUNCATED, PROPERTIES_TWICE,
    PROPERTIES_UNKNOWN, PROPERTIES_VALUE, PUBLISH_DUP, PUBLISH_QOS, HeaderSink, be16, sink_flags, sink_properties)
from gateway_native.mqtt_routes cimport MqttRoute, MqttRoutes, filter_matches, route_find
from gateway_native.mqtt_text cimport TEXT_NUL, TEXT_OK, TEXT_WILDCARD, text_check
from gateway_native.ring cimport (
    SLOT_WANTS_ACK, VERDICT_ACK, VERDICT_FAILED, Ring, RingState, ring_publish, ring_put, ring_verdict)

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_seq(const uint64_t*)
    void gw_store_seq(uint64_t*, uint64_t)

cdef enum:
    CONNECT = 1
    PUBLISH = 3
    PINGREQ = 12

    NOT_SENT_BY_CLIENTS = 0xFF      # in FLAGS_OF_TYPE

    FAULT_NONE = 0
    FAULT_FIRST_PACKET = 1
    FAULT_TYPE = 2
    FAULT_FLAGS = 3
    FAULT_LENGTH = 4
    FAULT_TOO_LARGE = 5
    FAULT_TRUNCATED = 6
    FAULT_QOS_3 = 7
    FAULT_QOS_2 = 8
    FAULT_DUP = 9
    FAULT_TOPIC_EMPTY = 10
    FAULT_TOPIC_UTF8 = 11
    FAULT_TOPIC_NUL = 12
    FAULT_TOPIC_WILDCARD = 13
    FAULT_PACKET_ID = 14
    FAULT_PROPERTY_UNKNOWN = 15
    FAULT_PROPERTY_TWICE = 16
    FAULT_PROPERTY_VALUE = 17
    FAULT_PROPERTY_TEXT = 18
    FAULT_TOPIC_ALIAS = 19
    FAULT_SUBSCRIPTION_ID = 20
    FAULT_INFLIGHT = 21
    FAULT_UNROUTED = 22
    FAULT_MEMORY = 23
    FAULT_RECORD = 24

# MQTT 5 reason code, and the sentence that a log line says after "closed:".
FAULTS = (
    (0x00, "nothing is wrong"),
    (0x82, "the first packet is not CONNECT"),
    (0x82, "a packet of a type that clients do not send"),
    (0x81, "reserved flags of the fixed header are wrong"),
    (0x81, "the length of a packet is malformed"),
    (0x95, "a packet is larger than allowed"),
    (0x81, "a field reaches beyond the end of its packet"),
    (0x81, "a publish has QoS 3"),
    (0x9B, "a publish has QoS 2; this gateway takes 0 and 1"),
    (0x81, "a publish with QoS 0 is marked as a duplicate"),
    (0x82, "a publish has an empty topic"),
    (0x81, "a topic is not UTF-8"),
    (0x81, "a topic contains U+0000"),
    (0x81, "a publish has a topic with + or #"),
    (0x82, "a publish with QoS 1 has packet identifier 0"),
    (0x81, "a publish has a property that a publish cannot have"),
    (0x82, "a publish has the same property twice"),
    (0x82, "a property of a publish has a value outside its range"),
    (0x81, "a property of a publish is not UTF-8, or contains U+0000"),
    (0x94, "a publish has a topic alias; this gateway takes none"),
    (0x82, "a publish has a subscription identifier"),
    (0x93, "more publishes are unacknowledged than allowed"),
    (0x90, "no route takes the topic of a publish with QoS 1"),
    (0x97, "no memory is left for a packet that arrives"),
    (0x95, "a publish would become a record larger than allowed"),
)

# Flags each packet type must have [MQTT-2.2.2-2]; PUBLISH has its own rules.
cdef uint8_t[16] FLAGS_OF_TYPE = [
    NOT_SENT_BY_CLIENTS, 0, NOT_SENT_BY_CLIENTS, 0, 0, 0, 2, 0,
    2, NOT_SENT_BY_CLIENTS, 2, NOT_SENT_BY_CLIENTS, 0, NOT_SENT_BY_CLIENTS, 0, 0,
]


class RemoteFault(Exception):
    """The peer broke the protocol, or asked for what is not offered; the only error that received bytes can cause.

    ``reason`` is the MQTT 5 reason code to answer with, ``cause`` what a log line says. Neither holds anything that
    the peer sent.
    """

    def __init__(self, reason, cause):
        super().__init__(f"{cause} (reason code 0x{reason:02X})")
        self.reason = reason
        self.cause = cause


# -- acknowledgements --------------------------------------------------------------------------------------------------

cdef bint acks_make_room(MqttConnection* connection) noexcept nogil:
    """Room for one more; False when there is no memory. Entries are unrolled into the new buffer."""
    cdef uint32_t capacity, head_run
    cdef MqttAck* larger
    if connection.acks_count < connection.acks_capacity:
        return True
    capacity = connection.acks_capacity * 2 if connection.acks_capacity else 8
    larger = <MqttAck*>malloc(capacity * sizeof(MqttAck))
    if larger == NULL:
        return False
    if connection.acks_count:
        head_run = connection.acks_capacity - connection.acks_first
        memcpy(larger, connection.acks + connection.acks_first, head_run * sizeof(MqttAck))
        memcpy(larger + head_run, connection.acks, connection.acks_first * sizeof(MqttAck))
    free(connection.acks)
    connection.acks = larger
    connection.acks_capacity = capacity
    connection.acks_first = 0
    return True


cdef void acks_push(
    MqttListener* listener, MqttConnection* connection, uint16_t packet_id, uint32_t partition, uint64_t sequence,
    uint8_t reason,
) noexcept nogil:
    """After acks_make_room. The interest is declared before the record is published, so no commit can be missed."""
    cdef uint32_t at = (connection.acks_first + connection.acks_count) & (connection.acks_capacity - 1)
    connection.acks[at].sequence = sequence
    connection.acks[at].partition = partition
    connection.acks[at].packet_id = packet_id
    connection.acks[at].reason = reason
    connection.acks_count += 1
    if listener.pending == 0:
        gw_store_seq(&listener.ring.ack_interest, 1)
    listener.pending += 1
    if reason:
        connection.refused = 1
    if not connection.listed:
        connection.listed = True
        connection.previous = NULL
        connection.next = listener.waiting
        if listener.waiting != NULL:
            listener.waiting.previous = connection
        listener.waiting = connection


cdef void acks_unlist(MqttListener* listener, MqttConnection* connection) noexcept nogil:
    if not connection.listed:
        return
    connection.listed = False
    if connection.previous != NULL:
        connection.previous.next = connection.next
    else:
        listener.waiting = connection.next
    if connection.next != NULL:
        connection.next.previous = connection.previous
    connection.next = connection.previous = NULL


cdef void acks_forget(MqttListener* listener, MqttConnection* connection, uint32_t count) noexcept nogil:
    """Take the first `count` off."""
    connection.acks_first = (connection.acks_first + count) & (connection.acks_capacity - 1)
    connection.acks_count -= count
    listener.pending -= count
    if connection.acks_count == 0:
        acks_unlist(listener, connection)
    if listener.pending == 0:
        gw_store_seq(&listener.ring.ack_interest, 0)


cdef size_t mqtt_release(
    MqttListener* listener, MqttConnection* connection, uint8_t* to, bint* failed,
) noexcept nogil:
    cdef uint8_t* begin = to
    cdef uint32_t mask = connection.acks_capacity - 1
    cdef uint32_t count = 0
    cdef MqttAck* ack
    cdef int verdict
    failed[0] = False
    while count < connection.acks_count:
        ack = &connection.acks[(connection.acks_first + count) & mask]
        if ack.reason == 0:
            verdict = ring_verdict(listener.ring, ack.partition, ack.sequence)
            if verdict != VERDICT_ACK:
                failed[0] = verdict == VERDICT_FAILED
                break
        to[0] = 0x40                        # PUBACK
        to[1] = 2
        to[2] = <uint8_t>(ack.packet_id >> 8)
        to[3] = <uint8_t>ack.packet_id
        to += 4
        if ack.reason:
            begin[to - begin - 3] = 3
            to[0] = ack.reason
            to += 1
        else:
            listener.acknowledged += 1
        count += 1
    if count:
        acks_forget(listener, connection, count)
    return to - begin


# -- PUBLISH -----------------------------------------------------------------------------------------------------------

cdef int fault(MqttConnection* connection, uint8_t which) noexcept nogil:
    connection.fault = which
    return STOP_FAULT


cdef uint8_t fault_of_properties(int wrong) noexcept nogil:
    if wrong == PROPERTIES_TRUNCATED:
        return FAULT_TRUNCATED
    if wrong == PROPERTIES_TWICE:
        return FAULT_PROPERTY_TWICE
    if wrong == PROPERTIES_VALUE:
        return FAULT_PROPERTY_VALUE
    if wrong == PROPERTIES_TEXT:
        return FAULT_PROPERTY_TEXT
    if wrong == PROPERTIES_ALIAS:
        return FAULT_TOPIC_ALIAS
    if wrong == PROPERTIES_SUBSCRIPTION:
        return FAULT_SUBSCRIPTION_ID
    return FAULT_PROPERTY_UNKNOWN


cdef uint8_t fault_of_topic(const uint8_t* topic, size_t size) noexcept nogil:
    cdef int wrong
    if size == 0:
        return FAULT_TOPIC_EMPTY
    wrong = text_check(topic, size, True)
    if wrong == TEXT_OK:
        return FAULT_NONE
    if wrong == TEXT_WILDCARD:
        return FAULT_TOPIC_WILDCARD
    return FAULT_TOPIC_NUL if wrong == TEXT_NUL else FAULT_TOPIC_UTF8


cdef int variable_integer(const uint8_t* at, size_t left, bint shortest, uint32_t* value) noexcept nogil:
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


cdef int unrouted(
    MqttListener* listener, MqttConnection* connection, uint16_t packet_id, const uint8_t* topic, size_t topic_bytes,
) noexcept nogil:
    """QoS 0 (packet_id 0) is dropped and counted. QoS 1 is answered in its turn; MQTT 3.1.1 knows no such answer."""
    listener.unrouted += 1
    listener.unrouted_topic_bytes = <uint32_t>min(topic_bytes, sizeof(listener.unrouted_topic))
    memcpy(listener.unrouted_topic, topic, listener.unrouted_topic_bytes)
    if packet_id == 0:
        return STOP_NONE
    if connection.version != 5:
        return fault(connection, FAULT_UNROUTED)
    acks_push(listener, connection, packet_id, 0, 0, 0x90)      # Topic Name invalid
    return STOP_NONE


# One PUBLISH, parsed as far as its record needs.
cdef struct Publish:
    const uint8_t* topic
    size_t topic_bytes
    const uint8_t* properties
    size_t properties_bytes
    const uint8_t* payload
    size_t payload_bytes
    uint16_t packet_id                  # 0 with QoS 0


cdef uint8_t publish_split(
    MqttConnection* connection, uint8_t first_byte, const uint8_t* body, size_t size, Publish* p,
) noexcept nogil:
    """Find the fields of a PUBLISH (MQTT 5 section 3.3). One of FAULT_*."""
    cdef uint8_t qos = (first_byte & PUBLISH_QOS) >> 1
    cdef const uint8_t* at = body + 2
    cdef const uint8_t* end = body + size
    cdef uint32_t length
    cdef int width
    p.properties = NULL
    p.properties_bytes = 0
    if qos > 1:
        return FAULT_QOS_2 if qos == 2 else FAULT_QOS_3
    if qos == 0 and first_byte & PUBLISH_DUP:
        return FAULT_DUP                    # [MQTT-3.3.1-2]
    if size < 2:
        return FAULT_TRUNCATED
    p.topic = at
    p.topic_bytes = be16(body)
    if <size_t>(end - at) < p.topic_bytes:
        return FAULT_TRUNCATED
    at += p.topic_bytes
    p.packet_id = 0
    if qos:
        if end - at < 2:
            return FAULT_TRUNCATED
        p.packet_id = be16(at)
        if p.packet_id == 0:
            return FAULT_PACKET_ID          # [MQTT-2.2.1-3]
        at += 2
    if connection.version == 5:
        width = variable_integer(at, end - at, True, &length)
        if width < 0:
            return FAULT_LENGTH
        if width == 0 or <size_t>(end - at) - width < length:
            return FAULT_TRUNCATED
        p.properties = at + width
        p.properties_bytes = length
        at += width + length
    p.payload = at
    p.payload_bytes = end - at
    return FAULT_NONE


cdef int publish(
    MqttListener* listener, MqttConnection* connection, uint8_t first_byte, const uint8_t* body, size_t size,
    int64_t time_ns,
) noexcept nogil:
    """Put one PUBLISH into the ring. STOP_NONE, STOP_ROOM or STOP_FAULT; on the last two nothing was taken."""
    cdef Publish p
    cdef HeaderSink sink
    cdef const MqttRoute* route
    cdef uint8_t wrong = publish_split(connection, first_byte, body, size, &p)
    cdef uint64_t headers_bytes = 0
    cdef uint64_t sequence
    cdef uint8_t* to
    cdef int wrong_properties
    if wrong:
        return fault(connection, wrong)
    sink.to = NULL              # measure first
    sink.count = 0
    sink.size = 0
    sink_flags(&sink, first_byte)
    if p.properties_bytes:
        wrong_properties = sink_properties(&sink, p.properties, p.properties_bytes)
        if wrong_properties != PROPERTIES_OK:
            return fault(connection, fault_of_properties(wrong_properties))
    wrong = fault_of_topic(p.topic, p.topic_bytes)
    if wrong:
        return fault(connection, wrong)
    if p.packet_id:
        if connection.acks_count >= connection.inflight_max:
            return fault(connection, FAULT_INFLIGHT)
        if not acks_make_room(connection):
            return fault(connection, FAULT_MEMORY)
    route = route_find(listener.routes, p.topic, p.topic_bytes)
    if route == NULL:
        return unrouted(listener, connection, p.packet_id, p.topic, p.topic_bytes)
    if sink.count:
        headers_bytes = headers_count_bytes(sink.count) + sink.size
    if p.topic_bytes + p.payload_bytes + headers_bytes > listener.record_bytes_max:
        return fault(connection, FAULT_RECORD)
    if listener.crowded:
        return STOP_ROOM                    # others wait already
    to = ring_put(listener.ring, route.partition, SLOT_WANTS_ACK if p.packet_id else 0, time_ns,
                  <uint32_t>p.topic_bytes, <uint32_t>p.payload_bytes, <uint32_t>headers_bytes, &sequence)
    if to == NULL:
        return STOP_ROOM
    memcpy(to, p.topic, p.topic_bytes)
    memcpy(to + p.topic_bytes, p.payload, p.payload_bytes)
    if sink.count:
        sink.to = put_headers_count(to + p.topic_bytes + p.payload_bytes, sink.count)
        sink_flags(&sink, first_byte)
        sink_properties(&sink, p.properties, p.properties_bytes)
    if p.packet_id:
        acks_push(listener, connection, p.packet_id, route.partition, sequence, 0)
    listener.records += 1
    listener.bytes += p.payload_bytes
    return STOP_NONE


# -- the packets of a buffer -------------------------------------------------------------------------------------------

cdef uint8_t fault_of_first_byte(MqttConnection* connection, uint8_t first_byte) noexcept nogil:
    """Judged as soon as it is there: garbage need not be awaited to its end."""
    cdef uint8_t flags
    if connection.version == 0:
        return FAULT_NONE if first_byte == CONNECT << 4 else FAULT_FIRST_PACKET     # [MQTT-3.1.0-1]
    if first_byte >> 4 == PUBLISH:
        return FAULT_NONE
    flags = FLAGS_OF_TYPE[first_byte >> 4]
    if flags == NOT_SENT_BY_CLIENTS or (first_byte >> 4 == 15 and connection.version != 5):
        return FAULT_TYPE
    return FAULT_NONE if first_byte & 15 == flags else FAULT_FLAGS


cdef int packet_begin(
    MqttListener* listener, MqttConnection* connection, const uint8_t* at, size_t left,
) noexcept nogil:
    """Read a fixed header into header_bytes and body_bytes. STOP_NONE when the packet is whole."""
    cdef uint8_t wrong = fault_of_first_byte(connection, at[0])
    cdef uint64_t limit = listener.packet_bytes_max
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
        return fault(connection, FAULT_TOO_LARGE)
    return STOP_NONE if connection.need <= left else STOP_END


cdef int mqtt_parse(
    MqttListener* listener, MqttConnection* connection, const uint8_t* data, size_t size, size_t* position,
) noexcept nogil:
    cdef const uint8_t* at
    cdef int stop = STOP_NONE
    cdef int64_t time_ns = listener.clock_ns
    cdef timespec now
    if time_ns == 0:
        clock_gettime(CLOCK_REALTIME, &now)
        time_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
    while stop == STOP_NONE:
        if position[0] == size:
            stop = STOP_END
            break
        at = data + position[0]
        stop = packet_begin(listener, connection, at, size - position[0])
        if stop != STOP_NONE:
            break
        if at[0] >> 4 == PUBLISH:
            stop = publish(listener, connection, at[0], at + connection.header_bytes, connection.body_bytes, time_ns)
        elif at[0] >> 4 == PINGREQ:
            if connection.body_bytes:
                stop = fault(connection, FAULT_LENGTH)
            else:
                connection.pings += 1
        else:
            stop = STOP_PACKET
        if stop == STOP_NONE:
            position[0] += connection.need
    ring_publish(listener.ring)
    connection.stop = <uint8_t>stop
    return stop


include "mqtt_objects.pxi"
