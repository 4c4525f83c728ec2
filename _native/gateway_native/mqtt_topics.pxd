"""What is remembered of topics: where each one leads to, and which partition each stream's name has.

Inline functions only. A topic's way through the routes is looked up once and then remembered, in two tables of fixed-size
entries: one for short topics, one for long ones; topics longer than an entry holds are looked up each time. An entry holds
the whole topic and nothing is trusted but equality, so a sender who makes hashes collide gains nothing but misses. Four
entries make a bucket; a new topic takes the place of one that was not used since the last such choice. A table begins
small and doubles, empty, while topics push each other out, up to its limit: its memory follows the topics there are, and
has a bound whatever is sent. Sizes are bytes.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    TOPIC_WAYS = 4                  # entries of a bucket
    TOPIC_HEAD_BYTES = 16           # of an entry before its topic
    TOPIC_SHORT_BYTES = 64          # of an entry for topics up to 48 bytes: a cache line
    TOPIC_LONG_BYTES = 256          # up to 240
    TOPIC_BUCKETS_MIN = 64
    TOPIC_SHORT_BUCKETS_MAX = 262144        # a million topics: 64 MiB
    TOPIC_LONG_BUCKETS_MAX = 16384          # 65,536 topics: 16 MiB

    ROUTE_NONE = 0xFFFFFFFF         # remembered: no route takes this topic

    NAMES_MIN = 64
    NAMES_MAX = 16384               # names of streams that may be remembered, those that lead to overflow included

cdef extern from *:
    """
    #define GW_ODD_1 0x9E3779B97F4A7C15ull
    #define GW_ODD_2 0xD6E8FEB86659FD93ull
    """
    const uint64_t ODD_1 "GW_ODD_1"     # 2^64 divided by the golden ratio
    const uint64_t ODD_2 "GW_ODD_2"

cdef struct MqttTopic:
    uint32_t tag                    # the upper half of its hash
    uint32_t partition
    uint32_t route                  # index, or ROUTE_NONE
    uint16_t topic_bytes            # 0: this entry is free
    uint8_t used                    # since the last time that a victim was looked for
    uint8_t reserved
    # The topic follows.

cdef struct MqttTopicTable:
    uint8_t* entries                # NULL before the first topic
    uint32_t entry_bytes
    uint32_t buckets                # a power of two
    uint32_t buckets_max
    uint32_t pushed_out             # since the table has this size
    uint32_t hand                   # where a bucket begins to look for a victim

cdef struct MqttTopics:
    MqttTopicTable short_ones
    MqttTopicTable long_ones
    uint64_t seed                   # of the hash: no sender knows which topics share a bucket
    uint64_t looked_up              # topics that were not remembered

cdef struct MqttName:
    uint8_t* text                   # NULL: this entry is free
    uint32_t text_bytes
    uint32_t partition

cdef struct MqttNames:
    MqttName* table                 # open addressing, at most half full
    uint32_t capacity               # a power of two, or 0
    uint32_t count
    bint closed                     # no more can be added: every other name leads to overflow


cdef inline uint64_t word_at(const uint8_t* text) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, text, 8)
    return word


cdef inline uint64_t hash_step(uint64_t state, uint64_t word) noexcept nogil:
    state = (state ^ word) * ODD_1
    return state ^ (state >> 32)


cdef inline uint64_t text_hash(uint64_t seed, const uint8_t* text, size_t size) noexcept nogil:
    """Eight bytes at a time, the last eight overlapping."""
    cdef uint64_t state = seed ^ (<uint64_t>size * ODD_2)
    cdef uint64_t word = 0
    cdef size_t at = 0
    if size < 8:
        while at < size:
            word = word << 8 | text[at]
            at += 1
        return hash_step(hash_step(state, word), ODD_2)
    while at + 8 < size:
        state = hash_step(state, word_at(text + at))
        at += 8
    return hash_step(hash_step(state, word_at(text + size - 8)), ODD_2)


cdef inline MqttTopicTable* topics_table(MqttTopics* topics, size_t topic_bytes) noexcept nogil:
    """Which table remembers topics of this length; NULL for none."""
    if topic_bytes <= TOPIC_SHORT_BYTES - TOPIC_HEAD_BYTES:
        return &topics.short_ones
    return &topics.long_ones if topic_bytes <= TOPIC_LONG_BYTES - TOPIC_HEAD_BYTES else NULL


cdef inline MqttTopic* bucket_at(const MqttTopicTable* table, uint64_t hashed) noexcept nogil:
    return <MqttTopic*>(table.entries + (hashed & (table.buckets - 1)) * TOPIC_WAYS * table.entry_bytes)


cdef inline MqttTopic* bucket_entry(const MqttTopicTable* table, MqttTopic* bucket, uint32_t way) noexcept nogil:
    return <MqttTopic*>(<uint8_t*>bucket + way * table.entry_bytes)


cdef inline MqttTopic* topics_find(
    MqttTopicTable* table, uint64_t hashed, const uint8_t* topic, size_t topic_bytes,
) noexcept nogil:
    """The entry of a topic (at least 1 byte), or NULL."""
    cdef MqttTopic* bucket
    cdef MqttTopic* entry
    cdef uint32_t way
    if table.entries == NULL:
        return NULL
    bucket = bucket_at(table, hashed)
    for way in range(TOPIC_WAYS):
        entry = bucket_entry(table, bucket, way)
        if entry.tag == <uint32_t>(hashed >> 32) and entry.topic_bytes == topic_bytes \
                and memcmp(<uint8_t*>entry + TOPIC_HEAD_BYTES, topic, topic_bytes) == 0:
            entry.used = 1
            return entry
    return NULL


cdef inline bint topics_resize(MqttTopicTable* table, uint32_t buckets) noexcept nogil:
    """Begin anew, with so many buckets. False, and as it was, when there is no memory."""
    # Not touched before it is used: the system gives large blocks page by page.
    cdef uint8_t* entries = <uint8_t*>calloc(<size_t>buckets * TOPIC_WAYS, table.entry_bytes)
    if entries == NULL:
        return False
    free(table.entries)
    table.entries = entries
    table.buckets = buckets
    table.pushed_out = 0
    return True


cdef inline MqttTopic* bucket_victim(MqttTopicTable* table, MqttTopic* bucket) noexcept nogil:
    """A free entry, or one not used lately, or the one where the hand stands."""
    cdef MqttTopic* entry
    cdef uint32_t way
    for way in range(TOPIC_WAYS):
        entry = bucket_entry(table, bucket, way)
        if entry.topic_bytes == 0:
            return entry
    table.pushed_out += 1
    table.hand += 1
    for way in range(TOPIC_WAYS):
        entry = bucket_entry(table, bucket, (table.hand + way) % TOPIC_WAYS)
        if not entry.used:
            return entry
        entry.used = 0
    return bucket_entry(table, bucket, table.hand % TOPIC_WAYS)


cdef inline void topics_remember(
    MqttTopicTable* table, uint64_t hashed, const uint8_t* topic, size_t topic_bytes, uint32_t route, uint32_t partition,
) noexcept nogil:
    """A topic that topics_find did not find, and that this table is for. Without memory it is not remembered."""
    cdef MqttTopic* entry
    if table.entries == NULL:
        if not topics_resize(table, TOPIC_BUCKETS_MIN):
            return
    elif table.pushed_out > table.buckets and table.buckets < table.buckets_max:
        topics_resize(table, table.buckets * 4 if table.buckets * 4 <= table.buckets_max else table.buckets_max)
    entry = bucket_victim(table, bucket_at(table, hashed))
    entry.tag = <uint32_t>(hashed >> 32)
    entry.partition = partition
    entry.route = route
    entry.topic_bytes = <uint16_t>topic_bytes
    entry.used = 0
    memcpy(<uint8_t*>entry + TOPIC_HEAD_BYTES, topic, topic_bytes)


cdef inline void topics_forget(MqttTopicTable* table) noexcept nogil:
    free(table.entries)
    table.entries = NULL
    table.buckets = table.pushed_out = 0


cdef inline void topics_forget_all(MqttTopics* topics) noexcept nogil:
    """Other routes hold from now on, or the group ends."""
    topics_forget(&topics.short_ones)
    topics_forget(&topics.long_ones)


cdef inline void topics_init(MqttTopics* topics, uint64_t seed) noexcept nogil:
    memset(topics, 0, sizeof(MqttTopics))
    topics.seed = seed
    topics.short_ones.entry_bytes = TOPIC_SHORT_BYTES
    topics.short_ones.buckets_max = TOPIC_SHORT_BUCKETS_MAX
    topics.long_ones.entry_bytes = TOPIC_LONG_BYTES
    topics.long_ones.buckets_max = TOPIC_LONG_BUCKETS_MAX


cdef inline uint64_t topics_memory(const MqttTopics* topics) noexcept nogil:
    """Bytes of both tables, whether or not the system has given them yet."""
    return TOPIC_WAYS * (<uint64_t>topics.short_ones.buckets * TOPIC_SHORT_BYTES
                         + <uint64_t>topics.long_ones.buckets * TOPIC_LONG_BYTES)


# -- names of streams ---------------------------------------------------------------------------------------------------


cdef inline MqttName* name_slot(MqttNames* names, uint64_t seed, const uint8_t* text, uint32_t size) noexcept nogil:
    """The entry of this name, or the free one where it would go; the table exists and has a free entry."""
    cdef uint64_t at = text_hash(seed, text, size) >> 32
    cdef MqttName* entry
    while True:
        entry = &names.table[at & (names.capacity - 1)]
        if entry.text == NULL or (entry.text_bytes == size and memcmp(entry.text, text, size) == 0):
            return entry
        at += 1


cdef inline const MqttName* names_find(
    MqttNames* names, uint64_t seed, const uint8_t* text, uint32_t size,
) noexcept nogil:
    """NULL when the name is not known."""
    cdef MqttName* entry
    if names.count == 0:
        return NULL
    entry = name_slot(names, seed, text, size)
    return NULL if entry.text == NULL else entry


cdef inline bint names_grow(MqttNames* names, uint64_t seed) noexcept nogil:
    cdef MqttName* old = names.table
    cdef uint32_t old_capacity = names.capacity
    cdef uint32_t capacity = 2 * old_capacity if old_capacity else NAMES_MIN
    cdef MqttName* larger = <MqttName*>calloc(capacity, sizeof(MqttName))
    cdef uint32_t i
    if larger == NULL:
        return False
    names.table = larger
    names.capacity = capacity
    for i in range(old_capacity):
        if old[i].text != NULL:
            name_slot(names, seed, old[i].text, old[i].text_bytes)[0] = old[i]
    free(old)
    return True


cdef inline bint names_add(
    MqttNames* names, uint64_t seed, const uint8_t* text, uint32_t size, uint32_t partition,
) noexcept nogil:
    """This name has that partition. False: no memory, or NAMES_MAX are known."""
    cdef MqttName* entry
    cdef uint8_t* copy
    if names.count >= NAMES_MAX or (2 * (names.count + 1) > names.capacity and not names_grow(names, seed)):
        return False
    entry = name_slot(names, seed, text, size)
    if entry.text == NULL:
        copy = <uint8_t*>malloc(size)
        if copy == NULL:
            return False
        memcpy(copy, text, size)
        entry.text = copy
        entry.text_bytes = size
        names.count += 1
    entry.partition = partition
    return True


cdef inline void names_forget(MqttNames* names) noexcept nogil:
    cdef uint32_t i
    for i in range(names.capacity):
        free(names.table[i].text)
    free(names.table)
    names.table = NULL
    names.capacity = names.count = 0
    names.closed = False
