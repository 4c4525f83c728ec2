"""The segments of a partition as they begin and end: created, sealed, replaced after a failure, closed.

All of it runs on the writer thread. What returns int returns 0 or -errno.
"""

from libc.stdint cimport int64_t

from gateway_native.state cimport Partition, WriterState
from gateway_native.watermark cimport WatermarkFields

# A new active segment; for a new partition its directory and watermark file too.
cdef int create_segment(WriterState* w, Partition* p, int64_t base_offset) noexcept nogil
# Finish the active segment: exact length, complete indexes, summary. Its descriptors stay open until the flusher has synced
# them.
cdef int seal_segment(WriterState* w, Partition* p) noexcept nogil
# What the watermark says once everything appended is durable.
cdef void mark_appended(Partition* p, WatermarkFields* mark) noexcept nogil
# After a failed write or sync: every segment that holds what is not durable ends at the durable offset or is set aside, and
# there is no active one. No commit of this partition is under way. Failures are counted; FORMAT.md says why they may.
cdef void seal_at_durable(WriterState* w, Partition* p) noexcept nogil
# Leave every active segment at its exact length, synced, and say in the watermark that it was left so.
cdef void close_partitions(WriterState* w) noexcept nogil
# Free what the partition holds. The threads are gone, or never knew it.
cdef void free_partition(WriterState* w, Partition* p) noexcept nogil
