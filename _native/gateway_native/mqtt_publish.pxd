"""One PUBLISH: found out, checked, and put into the ring as a record. One PUBREL: the end of a QoS 2 exchange.

Inline functions only. Key: the topic, or what its route makes of it. Value: the payload. Headers: mqtt_headers.pxd.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from gateway_native.batch cimport headers_count_bytes, put_headers_count
from gateway_native.mqtt cimport *
from gateway_native.mqtt_acks cimport PUBACK, PUBCOMP, PUBREC, acks_inflight, acks_make_room, acks_push, acks_push_again
from gateway_native.mqtt_aliases cimport MqttAlias, alias_find, alias_set
from gateway_native.mqtt_drops cimport drops_add
from gateway_native.mqtt_headers cimport (
    AS_IT_IS, DECIMAL_BYTES_MAX, PROPERTIES_ALIAS, PROPERTIES_LENGTH, PROPERTIES_OK, PROPERTIES_SUBSCRIPTION,
    PROPERTIES_TEXT, PROPERTIES_TRUNCATED, PROPERTIES_TWICE, PROPERTIES_VALUE, PUBLISH_DUP, PUBLISH_QOS, PUBLISH_RETAIN,
    HeaderSink, be16, put_decimal, sink_flags, sink_header, sink_number, sink_properties, text_field, variable_integer)
from gateway_native.mqtt_routes cimport MqttRoute, MqttRoutes, key_bytes, key_put, route_find, rule_allows, stream_name
from gateway_native.mqtt_session cimport (
    MqttDelivery, MqttSession, session_find, session_make_room, session_put, session_reconsider, session_take)
from gateway_native.mqtt_text cimport TEXT_NUL, TEXT_OK, TEXT_WILDCARD, text_check
from gateway_native.mqtt_topics cimport (
    ROUTE_NONE, MqttName, MqttTopic, MqttTopicTable, names_find, text_hash, topics_find, topics_remember, topics_table)
from gateway_native.ring cimport SLOT_WANTS_ACK, ring_put

cdef enum:
    REASON_NOT_FOUND = 0x92         # packet identifier, in PUBREL and PUBCOMP
    REASON_FORBIDDEN = 0x87
    REASON_UNROUTED = 0x90          # Topic Name invalid
    REASON_OVERLOAD = 0x97          # quota exceeded

    # What a PUBREL may carry (MQTT 5 section 3.6.2.2).
    PUBREL_REASON_STRING = 0x1F
    PUBREL_USER = 0x26

# One PUBLISH, parsed as far as its record needs.
cdef struct Publish:
    const uint8_t* topic
    size_t topic_bytes
    const uint8_t* properties
    size_t properties_bytes
    const uint8_t* payload
    size_t payload_bytes
    uint16_t packet_id              # 0 with QoS 0
    uint8_t first_byte
    uint8_t qos
    # Where it goes.
    const MqttRoute* route          # NULL: no route takes its topic
    uint32_t partition
    uint64_t key_bytes


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


cdef inline void remember(MqttText* text, const uint8_t* topic, size_t topic_bytes) noexcept nogil:
    """For a log line."""
    text.size = <uint32_t>min(topic_bytes, <size_t>NAME_BYTES_MAX)
    memcpy(text.text, topic, text.size)


cdef inline uint8_t publish_split(
    MqttConnection* connection, uint8_t first_byte, const uint8_t* body, size_t size, Publish* p,
) noexcept nogil:
    """Find the fields of a PUBLISH (MQTT 5 section 3.3). One of FAULT_*."""
    cdef const uint8_t* at = body + 2
    cdef const uint8_t* end = body + size
    cdef uint32_t length
    cdef int width
    p.first_byte = first_byte
    p.qos = (first_byte & PUBLISH_QOS) >> 1
    p.properties = NULL
    p.properties_bytes = 0
    if p.qos == 3:
        return FAULT_QOS_3
    if p.qos == 2 and connection.session == NULL:
        return FAULT_QOS_2
    if p.qos == 0 and first_byte & PUBLISH_DUP:
        return FAULT_DUP                    # [MQTT-3.3.1-2]
    if size < 2:
        return FAULT_TRUNCATED
    p.topic = at
    p.topic_bytes = be16(body)
    if <size_t>(end - at) < p.topic_bytes:
        return FAULT_TRUNCATED
    at += p.topic_bytes
    p.packet_id = 0
    if p.qos:
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


cdef inline int publish_headers(
    HeaderSink* sink, const MqttGroup* group, const MqttConnection* connection, const Publish* p,
) noexcept nogil:
    """All headers of the record, in the order that mqtt_headers.pxd says. One of PROPERTIES_*."""
    cdef bint numbered = p.qos == 2 and connection.session.durable
    if p.first_byte & (PUBLISH_QOS | PUBLISH_RETAIN | PUBLISH_DUP):
        sink_flags(sink, p.first_byte)
    if connection.client_header or numbered:
        sink_header(sink, b"client", NULL, 0, connection.session.client, connection.session.client_bytes, AS_IT_IS)
    if numbered:
        sink_number(sink, b"packet-id", p.packet_id)
        sink_number(sink, b"delivery", group.sessions.delivery_next)
    if p.properties_bytes:
        return sink_properties(sink, p.properties, p.properties_bytes)
    return PROPERTIES_OK


cdef inline uint8_t publish_topic(MqttConnection* connection, Publish* p, uint16_t alias) noexcept nogil:
    """The topic that an alias stands for, when the packet names none (section 3.3.2.3.4). One of FAULT_*."""
    cdef const MqttAlias* found
    if p.topic_bytes:
        return FAULT_NONE
    if alias == 0:
        return FAULT_TOPIC_EMPTY
    found = alias_find(&connection.aliases, alias)
    if found == NULL:
        return FAULT_ALIAS_UNKNOWN
    p.topic = found.topic
    p.topic_bytes = found.topic_bytes
    return FAULT_NONE


cdef inline int find_partition(MqttGroup* group, Publish* p) noexcept nogil:
    """Of the stream that the route's template names. STOP_NONE, or STOP_STREAM with the name in `group.wanted`."""
    cdef const MqttName* name
    p.partition = group.routes.overflow
    group.wanted.size = stream_name(&p.route.stream, p.topic, p.topic_bytes, group.wanted.text)
    if group.wanted.size == 0:
        return STOP_NONE                    # too long
    name = names_find(&group.names, group.topics.seed, group.wanted.text, group.wanted.size)
    if name == NULL:
        return STOP_NONE if group.names.closed else STOP_STREAM
    p.partition = name.partition
    return STOP_NONE


cdef inline int match_route(MqttGroup* group, MqttConnection* connection, Publish* p) noexcept nogil:
    """Check the topic, and find its route; a partition, too, unless a template names the stream. STOP_NONE or STOP_FAULT."""
    cdef uint8_t wrong = fault_of_topic(p.topic, p.topic_bytes)
    if wrong:
        return fault(connection, wrong)
    p.route = route_find(group.routes, p.topic, p.topic_bytes)
    p.partition = 0 if p.route == NULL else p.route.partition
    return STOP_NONE


cdef inline int find_target(MqttGroup* group, MqttConnection* connection, Publish* p) noexcept nogil:
    """Check the topic, find its route and partition. STOP_NONE, STOP_STREAM or STOP_FAULT."""
    cdef int stop = match_route(group, connection, p)
    if stop == STOP_NONE and p.route != NULL and p.route.stream.count:
        return find_partition(group, p)
    return stop


cdef inline int recall_target(MqttGroup* group, MqttConnection* connection, Publish* p) noexcept nogil:
    """As find_target, for topics that are remembered: those were checked when they were seen first."""
    cdef MqttTopicTable* table = topics_table(&group.topics, p.topic_bytes)
    cdef uint64_t hashed
    cdef MqttTopic* entry
    cdef int stop
    if table == NULL:
        group.topics.looked_up += 1
        return find_target(group, connection, p)
    hashed = text_hash(group.topics.seed, p.topic, p.topic_bytes)
    entry = topics_find(table, hashed, p.topic, p.topic_bytes)
    if entry != NULL:
        p.partition = entry.partition
        p.route = NULL if entry.route == ROUTE_NONE else &group.routes.routes[entry.route]
        return STOP_NONE
    stop = find_target(group, connection, p)
    if stop == STOP_NONE:
        group.topics.looked_up += 1
        topics_remember(table, hashed, p.topic, p.topic_bytes,
                        ROUTE_NONE if p.route == NULL else <uint32_t>(p.route - group.routes.routes), p.partition)
    return stop


cdef inline void publish_receive(MqttGroup* group, MqttConnection* connection, uint16_t packet_id) noexcept nogil:
    """A QoS 2 publish of a broker's that is not recorded: its exchange goes on all the same. After session_make_room."""
    acks_push(group, connection, PUBREC, packet_id, 0, 0, 0)
    session_put(connection.session, packet_id, group.sessions.delivery_next, 0, 0)
    group.sessions.delivery_next += 1


cdef inline int publish_answer(
    MqttGroup* group, MqttConnection* connection, const Publish* p, uint8_t reason, uint8_t fault_3_1_1,
) noexcept nogil:
    """Not recorded: QoS 0 hears nothing, MQTT 5 the reason in its turn; MQTT 3.1.1 knows no such answer.

    A broker gets an ordinary acknowledgement: it may send what an older subscription asked for, and must not stop there.
    """
    if p.qos == 0:
        return STOP_NONE
    if group.role == ROLE_CLIENT:
        reason = 0
        if p.qos == 2:
            publish_receive(group, connection, p.packet_id)
            return STOP_NONE
    elif connection.version != 5:
        return fault(connection, fault_3_1_1)
    acks_push(group, connection, PUBACK if p.qos == 1 else PUBREC, p.packet_id, reason, 0, 0)
    return STOP_NONE


cdef inline uint8_t publish_admit(MqttConnection* connection, const Publish* p) noexcept nogil:
    """QoS 1 and 2: may one more be in flight, and is there room to remember it? One of FAULT_*."""
    cdef MqttSession* session = connection.session
    if not acks_make_room(connection):
        return FAULT_MEMORY
    if p.qos == 2:
        if session_find(session, p.packet_id) != NULL:
            # Was counted when it came first; resent again and again, it fills the line of answers all the same.
            return FAULT_NONE if connection.acks_count < ACKS_MAX else FAULT_INFLIGHT
        if session.count >= session.count_max:
            return FAULT_INFLIGHT
        if not session_make_room(session):
            return FAULT_MEMORY
    if connection.acks_count >= ACKS_MAX or acks_inflight(connection) >= connection.inflight_max:
        return FAULT_INFLIGHT
    return FAULT_NONE


cdef inline bint publish_again(MqttGroup* group, MqttConnection* connection, const Publish* p) noexcept nogil:
    """A QoS 2 publish that was received before [MQTT-4.3.3-10]: its PUBREC waits for the same record."""
    cdef const MqttDelivery* entry = session_find(connection.session, p.packet_id)
    if entry == NULL:
        return False
    acks_push_again(group, connection, p.packet_id, entry)
    group.duplicates += 1
    return True


cdef inline void publish_taken(
    MqttGroup* group, MqttConnection* connection, const Publish* p, uint64_t sequence,
) noexcept nogil:
    """It is in the ring."""
    if p.qos == 1:
        acks_push(group, connection, PUBACK, p.packet_id, 0, p.partition, sequence)
    elif p.qos == 2:
        acks_push(group, connection, PUBREC, p.packet_id, 0, p.partition, sequence)
        session_put(connection.session, p.packet_id, group.sessions.delivery_next, p.partition, sequence)
        group.sessions.delivery_next += 1
    if p.route.stream.count and p.partition == group.routes.overflow:
        group.overflowed += 1
    group.records += 1
    group.bytes += p.payload_bytes
    group.retained += p.first_byte & PUBLISH_RETAIN


cdef inline void publish_write(
    MqttGroup* group, const MqttConnection* connection, const Publish* p, HeaderSink* sink, uint8_t* to,
) noexcept nogil:
    """Key, value and headers."""
    if p.payload == p.topic + p.topic_bytes and p.route.key.count == 0:
        memcpy(to, p.topic, p.topic_bytes + p.payload_bytes)    # in QoS 0 of MQTT 3.1.1 they stand side by side
    else:
        if p.route.key.count:
            key_put(&p.route.key, p.topic, p.topic_bytes, to)
        else:
            memcpy(to, p.topic, p.topic_bytes)
        memcpy(to + p.key_bytes, p.payload, p.payload_bytes)
    if sink.count:
        sink.to = put_headers_count(to + p.key_bytes + p.payload_bytes, sink.count)
        publish_headers(sink, group, connection, p)


cdef inline int publish_put(
    MqttGroup* group, MqttConnection* connection, const Publish* p, HeaderSink* sink, int64_t time_ns,
) noexcept nogil:
    """The record, measured by `sink`, into the ring."""
    cdef uint64_t headers_bytes = headers_count_bytes(sink.count) + sink.size if sink.count else 0
    cdef uint64_t sequence
    cdef uint8_t* to
    if p.key_bytes + p.payload_bytes + headers_bytes > group.record_bytes_max:
        return STOP_PACKET if group.role == ROLE_CLIENT else fault(connection, FAULT_RECORD)
    if group.crowded and not p.route.drop:
        return STOP_ROOM                    # others wait already
    to = ring_put(group.ring, p.partition, SLOT_WANTS_ACK if p.qos else 0, time_ns,
                  <uint32_t>p.key_bytes, <uint32_t>p.payload_bytes, <uint32_t>headers_bytes, &sequence)
    if to == NULL:
        if not p.route.drop:
            return STOP_ROOM
        drops_add(&group.drops, p.partition, p.key_bytes + p.payload_bytes + headers_bytes, time_ns)
        return publish_answer(group, connection, p, REASON_OVERLOAD, FAULT_OVERLOAD)
    publish_write(group, connection, p, sink, to)
    publish_taken(group, connection, p, sequence)
    return STOP_NONE


cdef inline int publish_look(
    MqttGroup* group, MqttConnection* connection, Publish* p, HeaderSink* sink,
) noexcept nogil:
    """Measure and check all of it, find where it goes. STOP_NONE, STOP_STREAM or STOP_FAULT."""
    cdef uint8_t wrong
    cdef int wrong_properties
    sink.to = NULL              # only measure
    sink.count = 0
    sink.size = 0
    sink.alias = 0
    sink.alias_max = connection.aliases.max
    sink.from_server = group.role == ROLE_CLIENT
    if p.properties_bytes or connection.client_header or p.first_byte & (PUBLISH_QOS | PUBLISH_RETAIN | PUBLISH_DUP):
        wrong_properties = publish_headers(sink, group, connection, p)
        if wrong_properties != PROPERTIES_OK:
            return fault(connection, fault_of_properties(wrong_properties))
    wrong = publish_topic(connection, p, sink.alias)
    if wrong:
        return fault(connection, wrong)
    if group.routes.costly:
        return recall_target(group, connection, p)
    return match_route(group, connection, p)    # without templates: those are costly


cdef inline int publish(
    MqttGroup* group, MqttConnection* connection, uint8_t first_byte, const uint8_t* body, size_t size,
    int64_t time_ns,
) noexcept nogil:
    """Put one PUBLISH into the ring. STOP_NONE, _ROOM, _STREAM, _PACKET or _FAULT; on all but the first nothing was taken.

    STOP_PACKET: a broker's that would become too large a record. It would only send it again, so the driver decides.
    """
    cdef Publish p
    cdef HeaderSink sink
    cdef uint8_t wrong = publish_split(connection, first_byte, body, size, &p)
    cdef int stop
    if wrong:
        return fault(connection, wrong)
    stop = publish_look(group, connection, &p, &sink)
    if stop != STOP_NONE:
        return stop
    # Set only now that its topic is known to be one; setting it once more after a full ring changes nothing.
    if sink.alias and not alias_set(&connection.aliases, sink.alias, p.topic, <uint16_t>p.topic_bytes):
        return fault(connection, FAULT_ALIAS_BYTES)
    if p.qos:
        if p.qos == 2 and not first_byte & PUBLISH_DUP:
            session_reconsider(connection.session, p.packet_id)
        wrong = publish_admit(connection, &p)
        if wrong:
            return fault(connection, wrong)
        if p.qos == 2 and publish_again(group, connection, &p):
            return STOP_NONE
    if connection.allow != NULL and not rule_allows(connection.allow, p.topic, p.topic_bytes):
        group.forbidden += 1
        remember(&group.forbidden_topic, p.topic, p.topic_bytes)
        return publish_answer(group, connection, &p, REASON_FORBIDDEN, FAULT_FORBIDDEN)
    if p.route == NULL:
        group.unrouted += 1
        remember(&group.unrouted_topic, p.topic, p.topic_bytes)
        return publish_answer(group, connection, &p, REASON_UNROUTED, FAULT_UNROUTED)
    p.key_bytes = p.topic_bytes
    if p.route.key.count:
        p.key_bytes = key_bytes(&p.route.key, p.topic, p.topic_bytes)
    return publish_put(group, connection, &p, &sink, time_ns)


# -- PUBREL -------------------------------------------------------------------------------------------------------------


cdef inline uint8_t fault_of_release(MqttConnection* connection, const uint8_t* body, size_t size) noexcept nogil:
    """Is this a PUBREL (MQTT 5 section 3.6, MQTT 3.1.1 section 3.6)? One of FAULT_*."""
    cdef const uint8_t* at = body + 3
    cdef const uint8_t* end = body + size
    cdef uint32_t length
    cdef int width
    if size < 2:
        return FAULT_TRUNCATED
    if be16(body) == 0:
        return FAULT_PACKET_ID
    if size == 2:
        return FAULT_NONE
    if connection.version != 5:
        return FAULT_LENGTH
    if body[2] != 0 and body[2] != REASON_NOT_FOUND:
        return FAULT_REASON
    if size == 3:
        return FAULT_NONE
    width = variable_integer(at, end - at, True, &length)
    if width < 0:
        return FAULT_LENGTH
    if width == 0 or <size_t>(end - at) - width != length:
        return FAULT_TRUNCATED
    return fault_of_release_properties(at + width, end)


cdef inline uint8_t fault_of_release_properties(const uint8_t* at, const uint8_t* end) noexcept nogil:
    cdef bint explained = False
    cdef uint8_t identifier
    cdef int texts
    cdef const uint8_t* text
    cdef size_t size
    while at < end:
        identifier = at[0]
        at += 1
        if identifier == PUBREL_REASON_STRING:
            if explained:
                return FAULT_PROPERTY_TWICE
            explained = True
        elif identifier != PUBREL_USER:
            return FAULT_PROPERTY_UNKNOWN
        for texts in range(2 if identifier == PUBREL_USER else 1):
            at = text_field(at, end, &text, &size)
            if at == NULL:
                return FAULT_TRUNCATED
            if text_check(text, size, False) != TEXT_OK:
                return FAULT_PROPERTY_TEXT
    return FAULT_NONE


cdef inline uint64_t put_release(
    MqttGroup* group, const MqttSession* session, uint16_t packet_id, int64_t time_ns,
) noexcept nogil:
    """The record `release <packet id> <delivery>` into the internal stream: every delivery of this identifier up to
    that number is settled. Its sequence, or 0 when the ring is full."""
    cdef uint8_t[8 + 2 * (DECIMAL_BYTES_MAX + 1)] value
    cdef uint32_t size = 8
    cdef uint64_t sequence
    cdef uint8_t* to
    memcpy(value, b"release ", 8)
    size += put_decimal(&value[size], packet_id)
    value[size] = c' '
    size += 1
    size += put_decimal(&value[size], group.sessions.delivery_next - 1)
    if group.crowded:
        return 0
    to = ring_put(group.ring, group.sessions.partition, SLOT_WANTS_ACK, time_ns, session.key_bytes, size, 0, &sequence)
    if to == NULL:
        return 0
    memcpy(to, session.key, session.key_bytes)
    memcpy(to + session.key_bytes, value, size)
    return sequence


cdef inline int release(
    MqttGroup* group, MqttConnection* connection, const uint8_t* body, size_t size, int64_t time_ns,
) noexcept nogil:
    """One PUBREL, of a connection with a session. STOP_NONE, STOP_ROOM or STOP_FAULT; on the last two nothing was taken.

    An unknown identifier is recorded, too: after a restart it may be one whose release was not durable.
    """
    cdef MqttSession* session = connection.session
    cdef uint8_t wrong = fault_of_release(connection, body, size)
    cdef uint8_t reason = 0
    cdef uint64_t sequence = 0
    cdef uint16_t packet_id
    cdef MqttDelivery* entry
    if wrong == FAULT_NONE and connection.acks_count >= ACKS_MAX:
        wrong = FAULT_INFLIGHT
    if wrong == FAULT_NONE and not acks_make_room(connection):
        wrong = FAULT_MEMORY
    if wrong:
        return fault(connection, wrong)
    packet_id = be16(body)
    if session.durable:
        sequence = put_release(group, session, packet_id, time_ns)
        if sequence == 0:
            return STOP_ROOM
    entry = session_find(session, packet_id)
    if entry != NULL:
        session_take(session, entry)
    elif connection.version == 5:
        reason = REASON_NOT_FOUND
    acks_push(group, connection, PUBCOMP, packet_id, reason, group.sessions.partition if sequence else 0, sequence)
    return STOP_NONE
