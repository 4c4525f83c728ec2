/* Bugs to plant, so that tests can show that they would be found. Compiled out of every normal build.
 *
 * With -DGATEWAY_PLANTED the environment's GATEWAY_PLANTED_BUG names the one that is there. tests/simulation/planted.py
 * says what each does. */
#ifndef GATEWAY_PLANTED_H
#define GATEWAY_PLANTED_H

#ifdef GATEWAY_PLANTED

#include <stdlib.h>
#include <string.h>

static inline int gw_planted(const char *bug)
{
    static char planted[64];
    static int known;
    if (!known) {
        const char *found = getenv("GATEWAY_PLANTED_BUG");
        if (found)
            strncpy(planted, found, sizeof(planted) - 1);
        known = 1;
    }
    return strcmp(planted, bug) == 0;
}

#else
#define gw_planted(bug) ((void)(bug), 0)
#endif

#endif
