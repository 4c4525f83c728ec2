"""One PUBLISH: found out, checked, and put into the ring as a record.

Inline functions only. Key: the topic. Value: the payload. Headers: mqtt_headers.pxd.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gateway_native.batch cimport headers_count_bytes, put_headers_count
from gateway_native.mqtt cimport *
from gateway_native.mqtt_acks cimport acks_make_room, acks_push
from gateway_native.mqtt_headers cimport (
    PROPERTIES_ALIAS, PROPERTIES_LENGTH, PROPERTIES_OK, PROPERTIES_SUBSCRIPTION, PROPERTIES_TEXT, PROPERTIES_TRUNCATED, PROPERTIES_TWICE,
    PROPERTIES_VALUE, PUBLISH_DUP, PUBLISH_QOS, PUBLISH_RETAIN, HeaderSink, be16, sink_flags, sink_properties, variable_integer)
from gateway_native.mqtt_routes cimport MqttRoute, route_find
from gateway_native.mqtt_text cimport TEXT_NUL, TEXT_OK, TEXT_WILDCARD, text_check
from gateway_native.ring cimport SLOT_WANTS_ACK, ring_put


cdef inline int fault(MqttConnection* connection, uint8_t which) noexcept nogil:
    connection.fault = which
    return STOP_FAULT


cdef inline uint8_t fault_of_properties(int wrong) noexcept nogil:
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
    if wrong == PROPERTIES_LENGTH:
        return FAULT_LENGTH
    return FAULT_PROPERTY_UNKNOWN


cdef inline uint8_t fault_of_topic(const uint8_t* topic, size_t size) noexcept nogil:
    cdef int wrong
    if size == 0:
        return FAULT_TOPIC_EMPTY
    wrong = text_check(topic, size, True)
    if wrong == TEXT_OK:
        return FAULT_NONE
    if wrong == TEXT_WILDCARD:
        return FAULT_TOPIC_WILDCARD
    return FAULT_TOPIC_NUL if wrong == TEXT_NUL else FAULT_TOPIC_UTF8


cdef inline int unrouted(
    MqttGroup* group, MqttConnection* connection, uint16_t packet_id, const uint8_t* topic, size_t topic_bytes,
) noexcept nogil:
    """QoS 0 (packet_id 0) is dropped and counted. QoS 1 is answered in its turn; MQTT 3.1.1 knows no such answer.

    A broker gets an ordinary acknowledgement: it may send what an older subscription asked for, and must not stop there.
    """
    group.unrouted += 1
    group.unrouted_topic_bytes = <uint32_t>min(topic_bytes, sizeof(group.unrouted_topic))
    memcpy(group.unrouted_topic, topic, group.unrouted_topic_bytes)
    if packet_id == 0:
        return STOP_NONE
    if group.role == ROLE_CLIENT:
        acks_push(group, connection, packet_id, 0, 0, 0)
        return STOP_NONE
    if connection.version != 5:
        return fault(connection, FAULT_UNROUTED)
    acks_push(group, connection, packet_id, 0, 0, 0x90)      # Topic Name invalid
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


cdef inline uint8_t publish_split(
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


cdef inline int publish(
    MqttGroup* group, MqttConnection* connection, uint8_t first_byte, const uint8_t* body, size_t size,
    int64_t time_ns,
) noexcept nogil:
    """Put one PUBLISH into the ring. STOP_NONE, STOP_ROOM or STOP_FAULT; on the last two nothing was taken.

    STOP_PACKET: a broker's that would become too large a record. It would only send it again, so the driver decides.
    """
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
    sink.from_server = group.role == ROLE_CLIENT
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
    route = route_find(group.routes, p.topic, p.topic_bytes)
    if route == NULL:
        return unrouted(group, connection, p.packet_id, p.topic, p.topic_bytes)
    if sink.count:
        headers_bytes = headers_count_bytes(sink.count) + sink.size
    if p.topic_bytes + p.payload_bytes + headers_bytes > group.record_bytes_max:
        return STOP_PACKET if group.role == ROLE_CLIENT else fault(connection, FAULT_RECORD)
    if group.crowded:
        return STOP_ROOM                    # others wait already
    to = ring_put(group.ring, route.partition, SLOT_WANTS_ACK if p.packet_id else 0, time_ns,
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
        acks_push(group, connection, p.packet_id, route.partition, sequence, 0)
    group.records += 1
    group.bytes += p.payload_bytes
    group.retained += first_byte & PUBLISH_RETAIN
    return STOP_NONE
