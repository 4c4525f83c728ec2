"""What routes with `overload = "drop-newest"` dropped because the ring was full: per partition, until Python takes it.

Inline functions only. The owner of the group adds, any thread may take; `lock` is held for a handful of instructions.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from gateway_native.mqtt_session cimport spin_lock, spin_unlock

cdef struct MqttDrop:
    uint64_t count
    uint64_t bytes                  # keys, values and headers
    int64_t first_ns                # receive times, Unix epoch
    int64_t last_ns

cdef struct MqttDrops:
    MqttDrop* table                 # [partition]
    uint64_t lock
    uint64_t total                  # ever


cdef inline void drops_add(MqttDrops* drops, uint32_t partition, uint64_t size, int64_t time_ns) noexcept nogil:
    cdef MqttDrop* drop = &drops.table[partition]
    spin_lock(&drops.lock)
    if drop.count == 0:
        drop.first_ns = time_ns
    drop.last_ns = time_ns
    drop.count += 1
    drop.bytes += size
    drops.total += 1
    spin_unlock(&drops.lock)
