#ifndef ATOLL_CLOCK_H
#define ATOLL_CLOCK_H

#include <stdint.h>
#include <time.h>

enum { NS_PER_MS = 1000000 };
#define NS_PER_SECOND INT64_C(1000000000)

static inline int64_t clock_ns(clockid_t clock)
{
    struct timespec now;

    clock_gettime(clock, &now);
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

/* Since the guest's boot. */
static inline int64_t boot_ns(void)
{
    return clock_ns(CLOCK_BOOTTIME);
}

#endif
