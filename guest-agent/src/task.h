/*
 * Requests whose method may block: the work is done on a thread, then the request is answered.
 */
#ifndef ATOLL_TASK_H
#define ATOLL_TASK_H

#include <stdatomic.h>

#include "request.h"
#include "worker.h"

/* The first member of what a method allocates for its work: one free() releases both. */
struct task {
    struct work work;
    struct agent *agent;
    struct stream *stream; /* NULL once the host does not wait any more */
    atomic_bool unwanted;  /* that for the thread, which may stop early */
    bool hosted;           /* run() is called in a hosted agent, too */
    /* On the thread. False with `failed` set if it could not be done. */
    bool (*run)(struct task *task, struct failure *failed);
    /* On the loop: writes the reply. NULL: an empty map. */
    void (*reply)(const struct task *task, struct mp_writer *writer);
    /* On the loop, in the end, whether it was run or not. NULL: there is nothing to let go of. */
    void (*release)(struct task *task);
    bool success;
    struct failure failure;
};

/* Zeroed memory for a task of this size, or NULL after failing the request. */
void *task_new(struct request *request, size_t size);

/* Takes the task over. A hosted agent leaves its system alone: there run() is not called, unless task->hosted. */
void task_start(struct request *request, struct task *task);

#endif
