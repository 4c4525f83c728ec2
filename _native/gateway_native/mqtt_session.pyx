"""Sessions as Python holds them. See mqtt_session.pxd for the contract."""

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cdef extern from "atomics.h" nogil:
    uint64_t gw_load_acquire(const uint64_t*)

PACKET_ID_MAX = 65_535


# A session takes itself off its group's list when it goes, so its group must still be there then.
@cython.no_gc_clear
cdef class Session:
    """What a client's QoS 2 publishes left behind: identifiers that were received and not released.

    key: of the records that say so. client: the client id as a header's value, escaped. durable: its QoS 2 survives a
    restart of the gateway. inflight_max: identifiers at once. At most one connection uses a session; it is attached by
    `Connection.open` and detached by `Connection.close`. `add` and `clear` are for detached ones; `unreleased` may be
    asked for by any thread at any time.
    """

    def __cinit__(self, bytes key not None, bytes client not None, *, bint durable, uint32_t inflight_max):
        if not 1 <= inflight_max <= PACKET_ID_MAX:
            raise ValueError(f"inflight_max is 1 to {PACKET_ID_MAX}, not {inflight_max}")
        if not client.isascii():
            raise ValueError("the client id of a session must be escaped: header values are ASCII")
        self.key, self.client = key, client
        self.state.key, self.state.key_bytes = key, <uint32_t>len(key)
        self.state.client, self.state.client_bytes = client, <uint32_t>len(client)
        self.state.durable = durable
        self.state.count_max = inflight_max

    def __dealloc__(self):
        session_drop(&self.state)

    cdef int attach(self, object group, MqttSessions* shared) except -1:
        """To a connection of this group, which may be another than last time, with the same ring."""
        if self.state.attached:
            raise RuntimeError("a session is attached to one connection at a time; close the other one first")
        self.adopt(group, shared)
        self.state.attached = True
        return 0

    cdef int adopt(self, object group, MqttSessions* shared) except -1:
        """All of attaching but the last step, which is the group's thread's if that is another one."""
        if self.state.durable and shared.partition == PARTITION_NONE:
            raise ValueError("a durable session needs its group's sessions_partition")
        if self.state.shared != shared:
            self.check_detached()
            self.move(group, shared)
        return 0

    cdef int move(self, object group, MqttSessions* shared) except -1:
        if self.state.shared != NULL and self.state.undecided and self.state.shared.ring != shared.ring:
            raise ValueError("a session with records that are not durable yet cannot move to a group with another ring")
        session_unlist(&self.state)
        session_charge(&self.state, self.state.capacity, True)
        self.state.shared = shared
        session_charge(&self.state, self.state.capacity, False)
        if self.state.undecided:
            session_list(&self.state)
        self.group = group
        return 0

    def add(self, uint32_t packet_id, uint64_t delivery) -> None:
        """An identifier whose record is on disk and which was not released: restored after a restart."""
        cdef MqttDelivery* entry
        if not 1 <= packet_id <= PACKET_ID_MAX:
            raise ValueError(f"a packet identifier is 1 to {PACKET_ID_MAX}, not {packet_id}")
        self.check_detached()
        entry = session_find(&self.state, packet_id)
        if entry != NULL:
            entry.delivery = max(entry.delivery, delivery)
            return
        if not session_make_room(&self.state):
            raise MemoryError("no memory for a session")
        session_put(&self.state, packet_id, delivery, 0, 0)

    def clear(self) -> None:
        """The session ends, or its client begins a new one: nothing was received."""
        self.check_detached()
        session_drop(&self.state)

    cdef int check_detached(self) except -1:
        if self.state.attached:
            raise RuntimeError("a session cannot be changed while a connection uses it")
        return 0

    @property
    def durable(self) -> bool:
        """Does its QoS 2 survive a restart? Settable while detached: a client may change its mind when it comes back."""
        return self.state.durable

    @durable.setter
    def durable(self, bint durable) -> None:
        self.check_detached()
        self.state.durable = durable

    @property
    def attached(self) -> bool:
        """Does a connection use it?"""
        return self.state.attached

    def __len__(self) -> int:
        """Identifiers received and not released, on disk or not yet."""
        return self.state.count

    @property
    def unreleased(self) -> list:
        """(packet identifier, delivery number) of what was received *and is on disk*, and not released.

        A publish whose record is still on its way is left out: after a crash it was never received.
        """
        cdef MqttDelivery* copy = NULL
        cdef uint32_t capacity = 0
        cdef uint32_t i
        cdef list found = []
        while True:
            spin_lock(&self.state.lock)
            if self.state.capacity <= capacity:
                break
            capacity = self.state.capacity
            spin_unlock(&self.state.lock)
            free(copy)
            copy = <MqttDelivery*>malloc(capacity * sizeof(MqttDelivery))
            if copy == NULL:
                raise MemoryError("no memory for a copy of a session")
        capacity = self.state.capacity
        if capacity:
            memcpy(copy, self.state.table, capacity * sizeof(MqttDelivery))
        spin_unlock(&self.state.lock)
        for i in range(capacity):
            if copy[i].packet_id and self.is_durable(&copy[i]):
                found.append((copy[i].packet_id, copy[i].delivery))
        free(copy)
        return found

    cdef bint is_durable(self, const MqttDelivery* entry) noexcept:
        return entry.sequence == 0 or (
            gw_load_acquire(&self.state.shared.ring.acked[entry.partition]) >= entry.sequence)
