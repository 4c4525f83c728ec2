"""Acknowledgements on their way: one FIFO per connection, and the list of connections that have some.

PUBACK, PUBREC and PUBCOMP share the line. Inline functions only. MQTT demands that a connection's acknowledgements leave in the order of its publishes
[MQTT-4.6.0-2], so one that must wait holds back those behind it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from gateway_native.mqtt cimport ROLE_SERVER, MqttAck, MqttConnection, MqttGroup
from gateway_native.mqtt_session cimport MqttDelivery, session_settle, sessions_refuse
from gateway_native.ring cimport (
    VERDICT_ACK, VERDICT_FAILED, VERDICT_REFUSED, VERDICT_WAIT, ring_confirm_refusals, ring_refusals_pending,
    ring_verdict)

cdef enum:
    # Why a connection's next acknowledgement never leaves.
    ACKS_FINE = 0
    ACKS_FAILED = 1                 # its stream has failed
    ACKS_REFUSED = 2                # the disk is full, and this packet knows no way to say so

    PUBACK = 0x40                   # first bytes of the packets
    PUBREC = 0x50
    PUBCOMP = 0x70

    REASON_FAILURE = 0x80           # this and above
    REASON_QUOTA_EXCEEDED = 0x97
    REASON_DISCONNECT = 0xff        # our own: no packet, but the end of the connection

cdef extern from "atomics.h" nogil:
    void gw_store_seq(uint64_t*, uint64_t)


cdef inline bint acks_make_room(MqttConnection* connection) noexcept nogil:
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


cdef inline void acks_push(
    MqttGroup* group, MqttConnection* connection, uint8_t kind, uint16_t packet_id, uint8_t reason,
    uint32_t partition, uint64_t sequence,
) noexcept nogil:
    """After acks_make_room. With sequence 0 it waits for nothing but its turn.

    The interest is declared before the record is published, so no commit can be missed.
    """
    cdef uint32_t at = (connection.acks_first + connection.acks_count) & (connection.acks_capacity - 1)
    connection.acks[at].sequence = sequence
    connection.acks[at].partition = partition
    connection.acks[at].packet_id = packet_id
    connection.acks[at].reason = reason
    connection.acks[at].kind = kind
    connection.acks_count += 1
    if kind == PUBREC and reason < REASON_FAILURE:
        connection.received += 1
    if group.pending == 0:
        gw_store_seq(&group.ring.ack_interest, 1)
    group.pending += 1
    if sequence == 0:
        connection.refused = 1
    if not connection.listed:
        connection.listed = True
        connection.previous = NULL
        connection.next = group.waiting
        if group.waiting != NULL:
            group.waiting.previous = connection
        group.waiting = connection


cdef inline void acks_push_again(
    MqttGroup* group, MqttConnection* connection, uint16_t packet_id, const MqttDelivery* entry,
) noexcept nogil:
    """PUBREC for a publish that came before, after acks_make_room. Its record may be decided by now, while nobody waited
    for it; then no commit will tell."""
    acks_push(group, connection, PUBREC, packet_id, 0, entry.partition, entry.sequence)
    if entry.sequence and ring_verdict(group.ring, entry.partition, entry.sequence) != VERDICT_WAIT:
        connection.refused = 1


cdef inline void acks_unlist(MqttGroup* group, MqttConnection* connection) noexcept nogil:
    if not connection.listed:
        return
    connection.listed = False
    if connection.previous != NULL:
        connection.previous.next = connection.next
    else:
        group.waiting = connection.next
    if connection.next != NULL:
        connection.next.previous = connection.previous
    connection.next = connection.previous = NULL


cdef inline void acks_forget(MqttGroup* group, MqttConnection* connection, uint32_t count) noexcept nogil:
    """Take the first `count` off."""
    connection.acks_first = (connection.acks_first + count) & (connection.acks_capacity - 1)
    connection.acks_count -= count
    group.pending -= count
    if connection.acks_count == 0:
        acks_unlist(group, connection)
    if group.pending == 0:
        gw_store_seq(&group.ring.ack_interest, 0)


cdef inline uint32_t acks_inflight(const MqttConnection* connection) noexcept nogil:
    """Publishes that count against the receive maximum: until PUBACK, PUBCOMP, or a PUBREC that says no (section 4.9)."""
    return connection.acks_count - connection.received + (
        0 if connection.session == NULL else connection.session.count)


cdef inline void acks_refuse(MqttGroup* group, MqttConnection* connection, MqttAck* ack) noexcept nogil:
    """Its record was refused.

    PUBCOMP has no reason code for that: its client asks again after it has reconnected. A broker would take any PUBACK for
    the end of the matter, and never send the publish again.
    """
    cdef bint can_hear = connection.version == 5 and group.role == ROLE_SERVER and ack.kind != PUBCOMP
    if ack.kind == PUBREC:
        connection.received -= 1
    ack.reason = REASON_QUOTA_EXCEEDED if can_hear else REASON_DISCONNECT
    ack.sequence = 0
    group.refused += 1


cdef inline void acks_settle_refusals(MqttGroup* group) noexcept nogil:
    """Before the writer takes records again of a stream whose disk was full, every refused publish gets its answer."""
    cdef MqttConnection* connection = group.waiting
    cdef MqttAck* ack
    cdef uint32_t i
    if not ring_refusals_pending(group.ring):
        return
    sessions_refuse(&group.sessions)
    while connection != NULL:
        for i in range(connection.acks_count):
            ack = &connection.acks[(connection.acks_first + i) & (connection.acks_capacity - 1)]
            if ack.sequence and ring_verdict(group.ring, ack.partition, ack.sequence) == VERDICT_REFUSED:
                acks_refuse(group, connection, ack)
        connection = connection.next
    ring_confirm_refusals(group.ring)


cdef inline void acks_count_one(MqttGroup* group, MqttConnection* connection, const MqttAck* ack) noexcept nogil:
    """This one leaves."""
    if ack.kind == PUBREC and ack.reason < REASON_FAILURE:
        connection.received -= 1
        if connection.session != NULL:
            session_settle(connection.session, ack.packet_id, ack.partition, ack.sequence)
    if ack.kind != PUBCOMP and ack.reason < REASON_FAILURE:
        group.acknowledged += 1


cdef inline size_t acks_release(
    MqttGroup* group, MqttConnection* connection, uint8_t* to, int* trouble,
) noexcept nogil:
    """Write what may leave to `to`, at most ACK_BYTES_MAX for each, and return its size; `trouble` is one of ACKS_*."""
    cdef uint8_t* begin = to
    cdef uint32_t mask = connection.acks_capacity - 1
    cdef uint32_t count = 0
    cdef MqttAck* ack
    cdef int verdict
    trouble[0] = ACKS_FINE
    while count < connection.acks_count:
        ack = &connection.acks[(connection.acks_first + count) & mask]
        if ack.reason == REASON_DISCONNECT:
            trouble[0] = ACKS_REFUSED
            break
        if ack.sequence:
            verdict = ring_verdict(group.ring, ack.partition, ack.sequence)
            if verdict != VERDICT_ACK:
                trouble[0] = ACKS_FAILED if verdict == VERDICT_FAILED else ACKS_FINE
                break
        to[0] = ack.kind
        to[1] = 3 if ack.reason else 2
        to[2] = <uint8_t>(ack.packet_id >> 8)
        to[3] = <uint8_t>ack.packet_id
        to[4] = ack.reason                  # overwritten by the next one if there is none
        to += 2 + to[1]
        acks_count_one(group, connection, ack)
        count += 1
    if count:
        acks_forget(group, connection, count)
    return to - begin
