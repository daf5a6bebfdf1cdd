#include "task.h"

#include <errno.h>
#include <stdlib.h>

static void task_closed(struct stream *stream)
{
    struct task *task = stream->owner;

    task->stream = NULL;
    task->unwanted = true;
}

static void answer(struct task *task)
{
    struct request request = {.agent = task->agent, .stream = task->stream};
    struct mp_writer writer = request_writer(&request);

    if (!task->stream)
        return;
    task->stream->ops = NULL;
    if (!task->success) {
        request_fail(&request, task->failure);
    } else if (!task->reply) {
        request_reply_empty(&request);
    } else {
        task->reply(task, &writer);
        request_reply(&request, &writer, true);
    }
}

static void run(struct work *work)
{
    struct task *task = list_entry(work, struct task, work);

    task->success = task->run(task, &task->failure);
}

static void finish(struct work *work)
{
    struct task *task = list_entry(work, struct task, work);

    answer(task);
    if (task->release)
        task->release(task);
    free(task);
}

void *task_new(struct request *request, size_t size)
{
    void *task = calloc(1, size);

    if (!task)
        request_fail(request, failure_os(ENOMEM, NULL, "request"));
    return task;
}

void task_start(struct request *request, struct task *task)
{
    static const struct stream_ops ops = {.closed = task_closed};

    task->work.run = run;
    task->work.finish = finish;
    task->agent = request->agent;
    task->stream = request->stream;
    task->stream->ops = &ops;
    task->stream->owner = task;
    if (task->agent->mode == AGENT_HOSTED && !task->hosted) {
        task->success = true;
        finish(&task->work);
    } else if (!work_start(&task->agent->loop, &task->work)) {
        task->failure = failure_os(errno, NULL, "thread");
        finish(&task->work);
    }
}
