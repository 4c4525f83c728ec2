"""Acknowledgements on their way: one FIFO per connection, and the list of connections that have some.

Inline functions only. MQTT demands that a connection's acknowledgements leave in the order of its publishes
[MQTT-4.6.0-2], so one that must wait holds back those behind it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from gateway_native.mqtt cimport ROLE_SERVER, MqttAck, MqttConnection, MqttGroup
from gateway_native.ring cimport VERDICT_ACK, VERDICT_FAILED, VERDICT_REFUSED, ring_verdict

cdef enum:
    # Why a connection's next acknowledgement never leaves.
    ACKS_FINE = 0
    ACKS_FAILED = 1                 # its stream has failed
    ACKS_REFUSED = 2                # the disk is full, and MQTT 3.1.1 knows no way to say so

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
    MqttGroup* group, MqttConnection* connection, uint16_t packet_id, uint32_t partition, uint64_t sequence,
    uint8_t reason,
) noexcept nogil:
    """After acks_make_room. With sequence 0 it waits for nothing but its turn.

    The interest is declared before the record is published, so no commit can be missed.
    """
    cdef uint32_t at = (connection.acks_first + connection.acks_count) & (connection.acks_capacity - 1)
    connection.acks[at].sequence = sequence
    connection.acks[at].partition = partition
    connection.acks[at].packet_id = packet_id
    connection.acks[at].reason = reason
    connection.acks_count += 1
    if group.pending == 0:
        gw_store_seq(&group.ring.ack_interest, 1)
    group.pending += 1
    if reason or sequence == 0:
        connection.refused = 1
    if not connection.listed:
        connection.listed = True
        connection.previous = NULL
        connection.next = group.waiting
        if group.waiting != NULL:
            group.waiting.previous = connection
        group.waiting = connection


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


cdef inline void acks_mark_refused(MqttGroup* group, MqttConnection* connection) noexcept nogil:
    """Settle the answer to every publish that was refused, wherever in the line it waits."""
    cdef uint32_t mask = connection.acks_capacity - 1
    cdef uint32_t i
    cdef MqttAck* ack
    for i in range(connection.acks_count):
        ack = &connection.acks[(connection.acks_first + i) & mask]
        if ack.reason or ack.sequence == 0:
            continue
        if ring_verdict(group.ring, ack.partition, ack.sequence) == VERDICT_REFUSED:
            # A broker would take any PUBACK for the end of the matter, and never send the publish again.
            ack.reason = (REASON_QUOTA_EXCEEDED if connection.version == 5 and group.role == ROLE_SERVER
                          else REASON_DISCONNECT)
            group.refused += 1


cdef inline size_t acks_release(
    MqttGroup* group, MqttConnection* connection, uint8_t* to, int* trouble,
) noexcept nogil:
    """Write what may leave to `to` and return its size; `trouble` is one of ACKS_*."""
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
        if ack.reason == 0 and ack.sequence:
            verdict = ring_verdict(group.ring, ack.partition, ack.sequence)
            if verdict != VERDICT_ACK:
                trouble[0] = ACKS_FAILED if verdict == VERDICT_FAILED else ACKS_FINE
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
            group.acknowledged += 1
        count += 1
    if count:
        acks_forget(group, connection, count)
    return to - begin
