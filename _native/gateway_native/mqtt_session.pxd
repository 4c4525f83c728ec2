"""QoS 2, the receiver's half: which packet identifiers of a client were received and not released yet (MQTT 5 section 4.3.3).

A publish is recorded when its identifier is not in the session's set, which then holds it until PUBREL. The set outlives
the connection, and, for a durable session, the process: every QoS 2 record of such a session carries the client, the
identifier and a *delivery number* as headers, every PUBREL becomes a record `release <identifier> <delivery number>`, and
both answers wait for the disk. Delivery numbers grow by one with each QoS 2 record of the group, so "the last publish of
this identifier was released" is a comparison of two numbers, in whichever order the two streams are read.

At a broker we are the receiver just the same: the client is then ourselves, and the session the one that the broker keeps.
It may have gone back in time (Mosquitto that was killed), or forgotten its identifiers (NATS that was restarted), and then
sends something new under an identifier of an earlier connection. It must mark what it sends again [MQTT-3.3.1-1]; so what
is not marked there is new, and rather recorded twice, if it did not keep to that, than lost.

An attached session belongs to the thread of its group. From elsewhere only its set may be looked at, under its `lock`,
which the owner therefore holds for each change. A detached one belongs to Python, once it is off the group's list, which
has a lock of its own. Sizes are bytes.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from gateway_native.ring cimport VERDICT_ACK, VERDICT_REFUSED, VERDICT_WAIT, RingState, ring_verdict

cdef extern from "atomics.h" nogil:
    void gw_store_release(uint64_t*, uint64_t)
    uint64_t gw_add_relaxed(uint64_t*, uint64_t)
    uint64_t gw_load_relaxed(const uint64_t*)
    uint64_t gw_exchange(uint64_t*, uint64_t)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    DELIVERIES_MIN = 8              # entries of the smallest table
    DELIVERIES_IDLE = 64            # an empty table larger than this is given back
    PARTITION_NONE = 0xFFFFFFFF     # for an index that was not given

# One publish, received and not released.
cdef struct MqttDelivery:
    uint64_t delivery               # its number
    uint64_t sequence               # of its record, in (ring, partition); 0: the record is known to be durable
    uint32_t partition
    uint16_t packet_id              # 0: this entry is free
    uint8_t earlier                 # received on an earlier connection to a broker

# What the sessions of a group share.
cdef struct MqttSessions:
    RingState* ring
    uint32_t partition              # of the internal stream of releases, or PARTITION_NONE
    uint64_t delivery_next          # the number that the next QoS 2 record gets; set at start, before the first
    uint64_t bytes                  # of all tables (atomic: a session may be dropped by another thread)
    uint64_t bytes_max
    uint64_t lock                   # of the list
    MqttSession* undecided          # every session that may have records that are not known to be durable

cdef struct MqttSession:
    MqttSessions* shared            # NULL before it was first attached
    MqttDelivery* table             # open addressing by identifier; at most three quarters full
    uint32_t capacity               # a power of two, or 0
    uint32_t count
    uint32_t count_max
    uint32_t undecided              # entries whose `sequence` is not 0
    uint64_t lock
    bint durable
    bint attached                   # a connection uses it
    const uint8_t* key              # of its release records
    uint32_t key_bytes
    const uint8_t* client           # value of the header `client`
    uint32_t client_bytes
    MqttSession* next               # in the list of undecided ones
    MqttSession* previous
    bint listed


cdef inline void spin_lock(uint64_t* lock) noexcept nogil:
    """For a handful of instructions; never held across a call that may block."""
    while gw_exchange(lock, 1):
        sched_yield()


cdef inline void spin_unlock(uint64_t* lock) noexcept nogil:
    gw_store_release(lock, 0)


cdef inline MqttDelivery* session_find(MqttSession* session, uint16_t packet_id) noexcept nogil:
    """The entry of this identifier, or NULL. Valid until the next change of the set."""
    cdef uint32_t mask = session.capacity - 1
    cdef uint32_t at
    if session.count == 0:
        return NULL
    at = packet_id & mask
    while session.table[at].packet_id:
        if session.table[at].packet_id == packet_id:
            return &session.table[at]
        at = (at + 1) & mask
    return NULL


cdef inline void session_list(MqttSession* session) noexcept nogil:
    if session.listed:
        return
    spin_lock(&session.shared.lock)
    session.listed = True
    session.previous = NULL
    session.next = session.shared.undecided
    if session.next != NULL:
        session.next.previous = session
    session.shared.undecided = session
    spin_unlock(&session.shared.lock)


cdef inline void session_unlink(MqttSession* session) noexcept nogil:
    """Under the list's lock."""
    session.listed = False
    if session.previous != NULL:
        session.previous.next = session.next
    else:
        session.shared.undecided = session.next
    if session.next != NULL:
        session.next.previous = session.previous
    session.next = session.previous = NULL


cdef inline void session_unlist(MqttSession* session) noexcept nogil:
    if session.shared == NULL:
        return
    spin_lock(&session.shared.lock)
    if session.listed:
        session_unlink(session)
    spin_unlock(&session.shared.lock)


cdef inline void session_charge(MqttSession* session, uint32_t capacity, bint back) noexcept nogil:
    cdef uint64_t size = <uint64_t>capacity * sizeof(MqttDelivery)
    if session.shared != NULL:
        gw_add_relaxed(&session.shared.bytes, -size if back else size)


cdef inline void session_place(MqttDelivery* table, uint32_t capacity, const MqttDelivery* entry) noexcept nogil:
    """Into a table that has room and does not hold the identifier."""
    cdef uint32_t at = entry.packet_id & (capacity - 1)
    while table[at].packet_id:
        at = (at + 1) & (capacity - 1)
    table[at] = entry[0]


cdef inline bint session_make_room(MqttSession* session) noexcept nogil:
    """Room for one more; False when there is no memory, or the group's sessions may have no more."""
    cdef uint32_t capacity = session.capacity
    cdef MqttDelivery* larger
    cdef MqttDelivery* old = session.table
    cdef uint32_t i
    if session.count < capacity - capacity // 4:
        return True
    capacity = capacity * 2 if capacity else DELIVERIES_MIN
    if session.shared != NULL and gw_load_relaxed(&session.shared.bytes) \
            + <uint64_t>(capacity - session.capacity) * sizeof(MqttDelivery) > session.shared.bytes_max:
        return False
    larger = <MqttDelivery*>calloc(capacity, sizeof(MqttDelivery))
    if larger == NULL:
        return False
    for i in range(session.capacity):
        if old[i].packet_id:
            session_place(larger, capacity, &old[i])
    session_charge(session, capacity - session.capacity, False)
    spin_lock(&session.lock)
    session.table = larger
    session.capacity = capacity
    spin_unlock(&session.lock)
    free(old)
    return True


cdef inline void session_put(
    MqttSession* session, uint16_t packet_id, uint64_t delivery, uint32_t partition, uint64_t sequence,
) noexcept nogil:
    """After session_make_room; the identifier is not in the set. sequence 0: the record is durable."""
    cdef MqttDelivery entry
    entry.delivery = delivery
    entry.sequence = sequence
    entry.partition = partition
    entry.packet_id = packet_id
    entry.earlier = False
    spin_lock(&session.lock)
    session_place(session.table, session.capacity, &entry)
    session.count += 1
    spin_unlock(&session.lock)
    if sequence:
        session.undecided += 1
        session_list(session)


cdef inline void session_decided(MqttSession* session, MqttDelivery* entry) noexcept nogil:
    """Its record is durable. The session stays listed: the next publish would only list it again."""
    entry.sequence = 0
    session.undecided -= 1


cdef inline void session_empty(MqttSession* session) noexcept nogil:
    """Give the table back."""
    cdef MqttDelivery* old = session.table
    session_charge(session, session.capacity, True)
    spin_lock(&session.lock)
    session.table = NULL
    session.capacity = session.count = 0
    spin_unlock(&session.lock)
    session.undecided = 0
    free(old)


cdef inline void session_drop(MqttSession* session) noexcept nogil:
    """The set is empty, and the group's list forgets the session."""
    session_unlist(session)
    session_empty(session)


cdef inline void session_take(MqttSession* session, MqttDelivery* entry) noexcept nogil:
    """Out of the set. What follows in its run of entries moves up, so that look-ups need no tombstones."""
    cdef MqttDelivery* table = session.table
    cdef uint32_t mask = session.capacity - 1
    cdef uint32_t hole = <uint32_t>(entry - table)
    cdef uint32_t at = hole
    if entry.sequence:
        session_decided(session, entry)
    spin_lock(&session.lock)
    while True:
        at = (at + 1) & mask
        if table[at].packet_id == 0:
            break
        # How far it stands from where it wants to be, against how far the hole is.
        if ((at - table[at].packet_id) & mask) >= ((at - hole) & mask):
            table[hole] = table[at]
            hole = at
    table[hole].packet_id = 0
    session.count -= 1
    spin_unlock(&session.lock)
    if session.count == 0 and session.capacity > DELIVERIES_IDLE:
        session_empty(session)


cdef inline void session_settle(
    MqttSession* session, uint16_t packet_id, uint32_t partition, uint64_t sequence,
) noexcept nogil:
    """The answer to this publish may leave: its record is durable. Another of the same identifier may follow it already."""
    cdef MqttDelivery* entry = session_find(session, packet_id)
    if entry != NULL and entry.sequence == sequence and entry.partition == partition and sequence:
        session_decided(session, entry)


cdef inline void session_reconsider(MqttSession* session, uint16_t packet_id) noexcept nogil:
    """A broker sends a publish of this identifier that is not marked as a duplicate."""
    cdef MqttDelivery* entry = session_find(session, packet_id)
    if entry != NULL and entry.earlier:
        session_take(session, entry)


cdef inline void session_reconnected(MqttSession* session) noexcept nogil:
    """A new connection to the broker begins."""
    cdef uint32_t i
    spin_lock(&session.lock)
    for i in range(session.capacity):
        session.table[i].earlier = True
    spin_unlock(&session.lock)


cdef inline void session_look(MqttSession* session) noexcept nogil:
    """Take out what the full disk refused, and settle what is durable."""
    cdef uint32_t at = 0
    cdef MqttDelivery* entry
    cdef int verdict
    while at < session.capacity:
        entry = &session.table[at]
        if entry.packet_id and entry.sequence:
            verdict = ring_verdict(session.shared.ring, entry.partition, entry.sequence)
            if verdict == VERDICT_REFUSED:
                session_take(session, entry)
                continue                # another may have moved up into its place
            if verdict == VERDICT_ACK:
                session_decided(session, entry)
        at += 1


cdef inline void sessions_refuse(MqttSessions* shared) noexcept nogil:
    """Before refusals are confirmed: whether or not their client is connected, refused publishes were not received."""
    cdef MqttSession* session
    cdef MqttSession* following
    spin_lock(&shared.lock)
    session = shared.undecided
    while session != NULL:
        following = session.next
        session_look(session)
        if session.undecided == 0:
            session_unlink(session)
        session = following
    spin_unlock(&shared.lock)


cdef class Session:
    cdef MqttSession state
    cdef readonly bytes key
    cdef readonly bytes client
    cdef object group                       # keeps what `state.shared` points to alive
    cdef int attach(self, object group, MqttSessions* shared) except -1
    cdef int adopt(self, object group, MqttSessions* shared) except -1
    cdef int move(self, object group, MqttSessions* shared) except -1
    cdef int check_detached(self) except -1
    cdef bint is_durable(self, const MqttDelivery* entry) noexcept
