"""Rate limits: so many messages a second, with a burst of one second's worth. Nothing is dropped, only read later.

Inline functions only. A bucket is kept as the time at which everything taken so far would have been due at exactly the
limit's pace (the generic cell rate algorithm, ITU-T I.371): a message may pass while that lies less than the burst ahead.
Times are nanoseconds of the monotonic clock.
"""

from libc.stdint cimport int64_t

cdef enum:
    RATE_BURST_NS = 1000000000
    # A connection that ran out rests for at least so long: woken for each single message it would cost more than it saves.
    RATE_REST_NS = 5000000

cdef struct MqttRate:
    int64_t interval_ns             # between two messages at the limit; 0: there is no limit
    int64_t due_ns


cdef inline int64_t rate_resume(const MqttRate* rate, int64_t now_ns) noexcept nogil:
    """0 when a message may pass now, else when one may."""
    cdef int64_t ahead = rate.due_ns + rate.interval_ns - now_ns
    if rate.interval_ns == 0 or ahead <= RATE_BURST_NS:
        return 0
    return now_ns + max(ahead - RATE_BURST_NS, <int64_t>RATE_REST_NS)


cdef inline void rate_charge(MqttRate* rate, int64_t now_ns) noexcept nogil:
    """One message passed."""
    if rate.interval_ns:
        rate.due_ns = max(rate.due_ns, now_ns) + rate.interval_ns


cdef inline void rate_set(MqttRate* rate, double messages_per_s) noexcept nogil:
    """At most a thousand million a second, at least one in a burst. 0: no limit."""
    rate.due_ns = 0
    rate.interval_ns = 0
    if messages_per_s > 0:
        rate.interval_ns = <int64_t>min(max(1e9 / messages_per_s, 1.0), <double>RATE_BURST_NS)
