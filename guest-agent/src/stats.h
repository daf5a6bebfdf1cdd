/*
 * The counters of system.stats. Agent protocol, section 5.2.
 */
#ifndef ATOLL_STATS_H
#define ATOLL_STATS_H

#include "msgpack.h"

/* Writes the reply, a map. What the kernel does not tell is 0. */
void stats_write(struct mp_writer *writer);

#endif
