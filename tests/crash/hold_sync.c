/* Put between a program and the disk with LD_PRELOAD: every way to make data durable can be held back or made to fail.
 *
 * What to do is the first byte of the file that GATEWAY_SYNC_CONTROL names, read at each call:
 *     p   pass the call on
 *     h   hold it until the byte changes, then do what it then says
 *     f   fail with EIO, syncing nothing
 *     o   the same for one fdatasync of a segment's log; then pass everything on
 * Each call is a line in the file that GATEWAY_SYNC_JOURNAL names: its end (CLOCK_REALTIME, ns), its name, its result,
 * and the path of what was synced. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static char wanted(void)
{
    const char *path = getenv("GATEWAY_SYNC_CONTROL");
    char what = 'p';
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        if (read(fd, &what, 1) != 1)
            what = 'p';
        close(fd);
    }
    return what;
}

static void journal(const char *name, int fd, int result)
{
    const char *path = getenv("GATEWAY_SYNC_JOURNAL");
    char link[64], target[4096] = "?", line[4300];
    struct timespec now;
    ssize_t length;
    int out;
    if (!path)
        return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = fd >= 0 ? readlink(link, target, sizeof target - 1) : -1;
    if (length > 0)
        target[length] = 0;
    clock_gettime(CLOCK_REALTIME, &now);
    length = snprintf(line, sizeof line, "%lld %s %d %s\n", (long long)now.tv_sec * 1000000000 + now.tv_nsec, name,
                      result, target);
    out = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (out >= 0) {
        if (write(out, line, length) != length)
            abort();
        close(out);
    }
}

static int is_log(int fd)
{
    char link[64], target[4096];
    ssize_t length;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = fd >= 0 ? readlink(link, target, sizeof target - 1) : -1;
    return length > 4 && memcmp(target + length - 4, ".log", 4) == 0;
}

static void pass_from_now_on(void)
{
    int fd = open(getenv("GATEWAY_SYNC_CONTROL"), O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "p", 1) != 1)
        abort();
    close(fd);
}

/* 0: go on with the call; -1: fail it, errno is set. */
static int gate(int fd)
{
    char what;
    while ((what = wanted()) == 'h')
        usleep(5000);
    if (what == 'o' && is_log(fd))
        pass_from_now_on();
    else if (what != 'f')
        return 0;
    errno = EIO;
    return -1;
}

#define INTERPOSE_FD(name)                                                                                             \
    int name(int fd)                                                                                                   \
    {                                                                                                                  \
        static int (*real)(int);                                                                                       \
        int result;                                                                                                    \
        if (!real)                                                                                                     \
            real = (int (*)(int))dlsym(RTLD_NEXT, #name);                                                              \
        result = gate(fd) ? -1 : real(fd);                                                                               \
        int error = errno;                                                                                             \
        journal(#name, fd, result);                                                                                    \
        errno = error;                                                                                                 \
        return result;                                                                                                 \
    }

INTERPOSE_FD(fdatasync)
INTERPOSE_FD(fsync)
INTERPOSE_FD(syncfs)

int msync(void *address, size_t length, int flags)
{
    static int (*real)(void *, size_t, int);
    if (!real)
        real = (int (*)(void *, size_t, int))dlsym(RTLD_NEXT, "msync");
    int result = gate(-1) ? -1 : real(address, length, flags);
    journal("msync", -1, result);
    return result;
}

int sync_file_range(int fd, off64_t offset, off64_t length, unsigned int flags)
{
    static int (*real)(int, off64_t, off64_t, unsigned int);
    if (!real)
        real = (int (*)(int, off64_t, off64_t, unsigned int))dlsym(RTLD_NEXT, "sync_file_range");
    return gate(fd) ? -1 : real(fd, offset, length, flags);
}

void sync(void)
{
    gate(-1);
}
