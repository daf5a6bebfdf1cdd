/*
 * Work that may block, done on a thread of its own while the event loop goes on.
 */
#ifndef ATOLL_WORKER_H
#define ATOLL_WORKER_H

#include "loop.h"

struct work {
    struct source done;
    /* On the thread: may touch only what belongs to the work. */
    void (*run)(struct work *work);
    /* On the loop, behind it: may free the work. */
    void (*finish)(struct work *work);
};

/* False, with errno set, if it could not be started. */
bool work_start(const struct loop *loop, struct work *work);

#endif
