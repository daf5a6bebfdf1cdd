#include "job.h"

#include "clock.h"

/* How long a turn of the loop may take for each job, and for all that is done at once. */
enum { STEP_MS = 5 };

void jobs_init(struct jobs *jobs)
{
    *jobs = (struct jobs){0};
    list_init(&jobs->all);
}

static int64_t deadline(void)
{
    return boot_ns() + (int64_t)STEP_MS * NS_PER_MS;
}

void jobs_turn(struct jobs *jobs)
{
    struct list due; /* those that schedule themselves again have their next step in the next turn */

    list_init(&due);
    list_each(item, after, &jobs->all) {
        list_remove(item);
        list_append(&due, item);
    }
    while (!list_empty(&due)) {
        struct job *job = list_entry(due.next, struct job, link);

        list_remove(&job->link);
        job->step(job, deadline());
    }
    jobs->deadline = deadline();
}

bool jobs_pending(const struct jobs *jobs)
{
    return !list_empty(&jobs->all);
}

void job_schedule(struct jobs *jobs, struct job *job)
{
    if (list_empty(&job->link))
        list_append(&jobs->all, &job->link);
}

void job_cancel(struct job *job)
{
    list_remove(&job->link);
}
