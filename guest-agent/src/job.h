/*
 * Work that is done in small steps, one in each turn of the event loop.
 */
#ifndef ATOLL_JOB_H
#define ATOLL_JOB_H

#include <stdint.h>

#include "list.h"

struct job {
    struct list link;
    /* Works until the deadline (boot_ns) at most. May free the job. */
    void (*step)(struct job *job, int64_t deadline);
};

struct jobs {
    struct list all;  /* those that have something to do */
    int64_t deadline; /* of what is done at once in this turn */
};

void jobs_init(struct jobs *jobs);

/* Gives each job a step and begins a turn. */
void jobs_turn(struct jobs *jobs);

bool jobs_pending(const struct jobs *jobs);

/* The job has something to do: once. */
void job_schedule(struct jobs *jobs, struct job *job);
void job_cancel(struct job *job);

#endif
