/* A copy into a mapping that turns SIGBUS into an error.
 *
 * Preallocated blocks keep a mapped write from meeting a full disk, but not a bad sector that has to be read first, nor
 * somebody who cuts the file. The handler jumps back only while this thread copies; any other SIGBUS goes to whoever
 * handled it before. */
#ifndef GATEWAY_SIGBUS_H
#define GATEWAY_SIGBUS_H

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>

static __thread sigjmp_buf gw_bus_return;
static __thread volatile sig_atomic_t gw_bus_armed;
static struct sigaction gw_bus_previous;

static void gw_bus_handler(int number, siginfo_t *info, void *context)
{
    if (gw_bus_armed) {
        gw_bus_armed = 0;
        siglongjmp(gw_bus_return, 1);
    }
    if (gw_bus_previous.sa_flags & SA_SIGINFO) {
        if (gw_bus_previous.sa_sigaction)
            gw_bus_previous.sa_sigaction(number, info, context);
    } else if (gw_bus_previous.sa_handler != SIG_DFL && gw_bus_previous.sa_handler != SIG_IGN) {
        gw_bus_previous.sa_handler(number);
    } else {
        signal(SIGBUS, SIG_DFL); /* the faulting instruction runs again and ends the process as it would have */
    }
}

/* Put the handler in front of the present one; again after somebody else took its place. Not thread-safe. */
static inline int gw_bus_install(void)
{
    struct sigaction ours, now;
    if (sigaction(SIGBUS, NULL, &now) != 0)
        return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == gw_bus_handler)
        return 0;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = gw_bus_handler;
    ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK; /* not deferred: the jump restores no mask */
    sigemptyset(&ours.sa_mask);
    gw_bus_previous = now;
    return sigaction(SIGBUS, &ours, NULL) == 0 ? 0 : -errno;
}

/* 0, or -EIO when the mapping could not take the bytes; then any part of them may be there. */
static inline int gw_bus_copy(uint8_t *to, const uint8_t *from, size_t size)
{
    if (sigsetjmp(gw_bus_return, 0))
        return -EIO;
    gw_bus_armed = 1;
    memcpy(to, from, size);
    gw_bus_armed = 0;
    return 0;
}

#endif
