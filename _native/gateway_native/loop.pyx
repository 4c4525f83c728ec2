"""When to commit, and what the two threads do. See loop.pxd."""

from libc.stdint cimport int64_t, uint64_t

from gateway_native.drain cimport CLAMP_MS, FORWARD_MS, drain_rings, nothing_to_take, rings_empty
from gateway_native.flusher cimport flush_commit
from gateway_native.partition cimport (
    NS_PER_MS,
    collect_partition,
    mark_dirty,
    prepare_commit,
    retry_full_disk,
    roll_partition,
)
from gateway_native.ring cimport AWAKE, NAPPING, SLEEPING
from gateway_native.rolling cimport close_partitions
from gateway_native.state cimport (
    COMMIT_DONE,
    COMMIT_IDLE,
    COMMIT_READY,
    WRITER_FINISHED,
    Partition,
    WriterState,
    bell,
    bump,
    gw_boottime_ns,
    gw_exchange,
    gw_fence,
    gw_load_acquire,
    gw_load_relaxed,
    gw_realtime_ns,
    gw_store_release,
    gw_store_seq,
    is_crowded,
    monotonic_ns,
)

cdef extern from "<unistd.h>" nogil:
    ssize_t read(int, void*, size_t)

cdef extern from "<time.h>" nogil:
    struct timespec:
        long tv_sec
        long tv_nsec

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd*, unsigned long, const timespec*, const void*)
    enum: POLLIN

cdef enum:
    NS_PER_S = 1000000000
    # Clients that each wait for their last acknowledgement before they publish again fall silent together: then commit at
    # once, if it pays, …
    QUIET_NS = 150000
    QUIET_WAITING_MIN = 8
    # … unless more spacing than usual was asked for, to spare the disk, or so many wait that the spacing holds up nobody:
    # they get 25,000 acknowledgements a second with it.
    QUIET_LINGER_NS_MAX = 5000000
    QUIET_WAITING_MAX = 128
    # Who publishes while others' records are being synced waits for nobody: that is no such group. A few are late.
    QUIET_LATE_PART = 4
    # Nor is one that goes on publishing unacknowledged. So the spacing is kept now and then: if nothing more comes for
    # most of it, so many commits may be prompt, as long as what comes next comes soon after each of them.
    PROMPT_COMMITS = 128
    SILENT_PART_OF_FOUR = 3
    SOON_PART = 2
    # Where nobody waits for an acknowledgement, few bytes may wait this long for company.
    RELAXED_SPACING_NS = 100000000
    RELAXED_BYTES = 393216      # more would keep the pictures of a hundred cameras waiting for longer than 30 ms
    # Likewise more bytes of many partitions: so much of the time that the last commit took.
    CROWDED_REST_PART = 2


# -- the wall clock ---------------------------------------------------------------------------------------------------

cdef void watch_clock(WriterState* w) noexcept nogil:
    """Notice when the wall clock jumps: it then moves against the clock that counts since boot."""
    cdef int64_t wall = w.manual.realtime_ns if w.manual is not NULL else gw_realtime_ns()
    cdef int64_t boot = <int64_t>w.manual.monotonic_ns if w.manual is not NULL else gw_boottime_ns()
    cdef int64_t moved = wall - boot - w.clock_offset
    if not w.clock_known:
        w.clock_known = True
        w.clock_offset = wall - boot
        return
    if -CLAMP_MS * NS_PER_MS <= moved <= CLAMP_MS * NS_PER_MS:
        # Slewing is followed, so that it never adds up to a step.
        w.clock_offset += moved
        return
    w.clock_offset += moved
    w.step_old_ns = wall - moved
    w.step_new_ns = wall
    if moved > <int64_t>FORWARD_MS * NS_PER_MS:
        w.forward_steps += 1
    bump(&w.steps_seen, 1)
    bell(w.health_fd)


# -- group commit -----------------------------------------------------------------------------------------------------

cdef void start_commit(WriterState* w, uint64_t now) noexcept nogil:
    """Hand everything that is dirty to the flusher."""
    cdef Partition* p = w.dirty
    cdef Partition* following
    judge_group(w, now)
    w.dirty = NULL
    w.commit_list = NULL
    w.commits_begun += 1
    w.dirty_count_last = w.dirty_count
    w.dirty_count = 0
    while p is not NULL:
        following = p.next_dirty
        if prepare_commit(w, p):
            p.next_commit = w.commit_list
            w.commit_list = p
        p.dirty = False
        if p.full_disk:
            mark_dirty(w, p)
        p = following
    w.dirty_bytes = 0
    w.dirty_waiting = 0
    w.last_commit_ns = now
    if w.commit_list is not NULL:
        bump(&w.commits, 1)
        gw_store_release(&w.commit_state, COMMIT_READY)
        bell(w.flusher_fd)
    else:
        w.commits_ended += 1
        w.collected_ns = now
        w.starved = False           # what failed gave its buffers back


cdef void collect_commit(WriterState* w) noexcept nogil:
    """The flusher is done: reuse the buffers."""
    cdef Partition* p = w.commit_list
    while p is not NULL:
        collect_partition(w, p)
        p = p.next_commit
    w.commit_list = NULL
    w.commits_ended += 1
    w.collected_ns = monotonic_ns(w)
    w.waiting_in_commit = w.dirty_waiting
    w.first_arrival_ns = 0
    w.starved = False
    gw_store_release(&w.commit_state, COMMIT_IDLE)


cdef inline uint64_t relaxed_due(WriterState* w, uint64_t linger) noexcept nogil:
    """Nobody waits: the commit may wait for company. Counted from the end of the last one: after a slow one the next would
    else begin at once, with next to nothing in it."""
    cdef uint64_t due = w.last_commit_ns + linger
    if w.dirty_bytes < RELAXED_BYTES and linger < RELAXED_SPACING_NS:
        return w.collected_ns + RELAXED_SPACING_NS
    if is_crowded(w) and w.dirty_bytes < w.buffer_bytes_max // 2:
        # Many partitions cost a batch and a file to be synced each, however little comes for them.
        return max(due, w.collected_ns + (w.collected_ns - w.last_commit_ns) // CROWDED_REST_PART)
    return due


cdef inline bint is_group(WriterState* w) noexcept nogil:
    """As many wait as may be clients that each wait for their last acknowledgement."""
    return QUIET_WAITING_MIN <= w.dirty_waiting <= QUIET_WAITING_MAX \
        and w.waiting_in_commit * QUIET_LATE_PART <= w.dirty_waiting


cdef void judge_group(WriterState* w, uint64_t now) noexcept nogil:
    """A commit begins: was the spacing kept, and did those who wait fall silent meanwhile?"""
    if not w.dirty_waiting:
        return
    if now < w.last_commit_ns + w.dirty_linger_ns:
        w.prompt_commits -= w.prompt_commits > 0
    elif is_group(w) and (now - w.last_arrival_ns) * 4 >= w.dirty_linger_ns * SILENT_PART_OF_FOUR:
        w.prompt_commits = PROMPT_COMMITS
    else:
        w.prompt_commits = 0


cdef uint64_t commit_due(WriterState* w) noexcept nogil:
    """When the next commit may start (DESIGN: `linger` is the least spacing of commits, not a delay)."""
    cdef uint64_t linger = w.dirty_linger_ns
    cdef uint64_t due = w.last_commit_ns + linger
    if w.starved or gw_load_relaxed(&w.flush_wanted) != gw_load_relaxed(&w.flush_done) \
            or gw_load_relaxed(&w.stopping):
        return 0
    if not w.dirty_waiting:
        return relaxed_due(w, linger)
    if w.prompt_commits and linger <= QUIET_LINGER_NS_MAX and is_group(w) \
            and w.first_arrival_ns - w.collected_ns <= linger // SOON_PART:
        return min(due, w.last_arrival_ns + QUIET_NS)
    return due


cdef bint serve_flush(WriterState* w) noexcept nogil:
    """Take a flush request further; True once it is served.

    It asks for what was published when the writer saw it, not for an idle moment: under load there is none. That is
    drained first, then the commit that holds it must end.
    """
    cdef uint64_t wanted, i
    if w.flush_serving == gw_load_relaxed(&w.flush_done):
        wanted = gw_load_acquire(&w.flush_wanted)
        if wanted == w.flush_serving:
            return False
        w.flush_serving = wanted
        w.flush_drained = False
        w.flush_rings = gw_load_acquire(&w.ring_count)
        for i in range(w.flush_rings):
            w.flush_heads[i] = gw_load_acquire(&w.rings[i].head)
    if not w.flush_drained:
        for i in range(w.flush_rings):
            if w.positions[i] < w.flush_heads[i]:
                return False
        w.flush_drained = True
        w.flush_commit = w.commits_begun + (1 if w.dirty is not NULL else 0)
    if w.full_partitions:
        w.flush_commit = w.commits_begun + 1    # what waits for room on the disk comes with a later one
    if w.commits_ended < w.flush_commit:
        return False
    gw_store_release(&w.flush_done, w.flush_serving)
    return True


# -- the threads ------------------------------------------------------------------------------------------------------

cdef inline void wait_bell(int fd, int64_t timeout_ns) noexcept nogil:
    """Block until the bell rings, a signal arrives, or the time is over; timeout_ns -1: no limit."""
    cdef pollfd waiting
    cdef timespec timeout
    cdef uint64_t count
    timeout.tv_sec = timeout_ns // NS_PER_S
    timeout.tv_nsec = timeout_ns % NS_PER_S
    waiting.fd = fd
    waiting.events = POLLIN
    waiting.revents = 0
    if ppoll(&waiting, 1, &timeout if timeout_ns >= 0 else NULL, NULL) > 0:
        read(fd, &count, sizeof(count))


cdef void roll_wanted(WriterState* w) noexcept nogil:
    """Roll the partitions that somebody asked for."""
    cdef uint64_t wanted = gw_load_acquire(&w.rolls_wanted)
    cdef uint64_t i
    if wanted == w.rolls_seen:
        return
    w.rolls_seen = wanted
    for i in range(gw_load_acquire(&w.partition_count)):
        if gw_exchange(&w.partitions[i].roll_wanted, 0):
            roll_partition(w, w.partitions[i])


cdef void try_full_disks(WriterState* w) noexcept nogil:
    cdef uint64_t now = monotonic_ns(w)
    if now >= w.retry_ns or gw_load_relaxed(&w.retry_wanted):
        gw_exchange(&w.retry_wanted, 0)
        retry_full_disk(w, now)


cdef bint writer_step(WriterState* w) noexcept nogil:
    """One round: collect, retry, drain, commit. True if anything moved."""
    cdef bint moved = False
    cdef uint64_t now
    watch_clock(w)
    if gw_load_acquire(&w.commit_state) == COMMIT_DONE:
        collect_commit(w)
        moved = True
    if w.starved and w.dirty is NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
        w.starved = False
    if w.full_partitions or w.refusing_partitions:
        try_full_disks(w)
    roll_wanted(w)
    if not w.starved and drain_rings(w):
        moved = True
        w.last_arrival_ns = monotonic_ns(w)
        if w.first_arrival_ns == 0:
            w.first_arrival_ns = w.last_arrival_ns
    if w.dirty is not NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE:
        now = monotonic_ns(w)
        if now >= commit_due(w) and not only_full(w):
            start_commit(w, now)
    if serve_flush(w):
        moved = True
    return moved


cdef void writer_step_once(void* state) noexcept nogil:
    writer_step(<WriterState*>state)


cdef bint only_full(WriterState* w) noexcept nogil:
    """Nothing to commit: every dirty partition waits for room on the disk and has nothing appended."""
    cdef Partition* p = w.dirty
    while p is not NULL:
        if not p.full_disk or p.kept.first is not NULL or p.sealed is not NULL:
            return False
        p = p.next_dirty
    return True


cdef int64_t sleep_ns(WriterState* w) noexcept nogil:
    """How long the writer may sleep; -1: until something happens."""
    cdef uint64_t now = monotonic_ns(w)
    cdef uint64_t due = <uint64_t>-1
    if w.full_partitions or w.refusing_partitions:
        due = w.retry_ns
    if w.dirty is not NULL and gw_load_acquire(&w.commit_state) == COMMIT_IDLE and not only_full(w):
        due = min(due, commit_due(w))
    if due == <uint64_t>-1:
        return -1
    return <int64_t>(due - now) if due > now else 0


cdef bint may_nap(WriterState* w) noexcept nogil:
    """May what comes stay in the rings for now? There is a commit to come, or one to end, and nobody waits for either:
    then each waking would only put a few records more into their batches."""
    return w.dirty_waiting == 0 and gw_load_relaxed(&w.followed_count) == 0 \
        and (w.dirty is not NULL or gw_load_acquire(&w.commit_state) != COMMIT_IDLE)


cdef void writer_sleep(WriterState* w) noexcept nogil:
    """Sleep until a producer publishes, the flusher is done, someone asks, or a commit is due.

    Who asks for a flush, a roll or the end leaves the bell ringing, so that needs no look here.
    """
    cdef int64_t timeout = sleep_ns(w)
    if timeout == 0:
        return
    gw_store_seq(&w.writer_sleeping, NAPPING if may_nap(w) else SLEEPING)
    gw_fence()                      # a producer publishes, fences, then looks at `writer_sleeping`
    if gw_load_acquire(&w.commit_state) != COMMIT_DONE and (w.starved or nothing_to_take(w)):
        wait_bell(w.writer_fd, timeout)
    gw_store_seq(&w.writer_sleeping, AWAKE)


cdef bint is_finished(WriterState* w) noexcept nogil:
    """Asked to end, and everything is done; or it is to be left behind."""
    if gw_load_acquire(&w.commit_state) != COMMIT_IDLE:
        return False
    return gw_load_acquire(&w.abandoned) or (gw_load_acquire(&w.stopping) and rings_empty(w) and w.dirty is NULL)


cdef void finish(WriterState* w) noexcept nogil:
    close_partitions(w)
    gw_store_release(&w.writer_state, WRITER_FINISHED)
    bell(w.flusher_fd)


cdef void run_writer_loop(WriterState* w) noexcept nogil:
    while True:
        if not writer_step(w):
            if is_finished(w):
                break
            writer_sleep(w)
    finish(w)


cdef void run_flusher_loop(WriterState* w) noexcept nogil:
    while True:
        wait_bell(w.flusher_fd, -1)
        if gw_load_acquire(&w.commit_state) == COMMIT_READY:
            flush_commit(w)
        elif gw_load_acquire(&w.writer_state) == WRITER_FINISHED:
            return
