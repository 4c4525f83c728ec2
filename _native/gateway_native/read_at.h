/* Reading at a position without a mapping, on every system that readers run on; whoever shares the descriptor waits. */
#ifndef GATEWAY_READ_AT_H
#define GATEWAY_READ_AT_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#include <io.h>
static inline int64_t gw_read_at(int fd, void *to, size_t bytes, int64_t position) {
    return _lseeki64(fd, position, 0) < 0 ? -1 : _read(fd, to, (unsigned)bytes);
}
#else
#include <unistd.h>
static inline int64_t gw_read_at(int fd, void *to, size_t bytes, int64_t position) {
    ssize_t got;
    do {
        got = pread(fd, to, bytes, (off_t)position);
    } while (got < 0 && errno == EINTR);
    return got;
}
#endif

#endif
