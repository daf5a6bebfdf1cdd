/*
 * file.watch: changes on a stream. Agent protocol, section 9.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "file_request.h"
#include "watch.h"

struct watching {
    struct source source; /* the same descriptor as watch.inotify, which closes it */
    struct agent *agent;
    struct stream *stream;
    struct credentials as;
    struct job job;
    bool replied;
    struct watch watch;
};

static void schedule(struct watching *watching)
{
    job_schedule(&watching->agent->jobs, &watching->job);
}

static void reply(struct watching *watching)
{
    struct request request = {.agent = watching->agent, .stream = watching->stream};
    struct mp_writer writer = request_writer(&request);

    watching->replied = true;
    mp_write_map(&writer, 0);
    request_reply(&request, &writer, false);
}

/* From here on every change is told of, so this is the moment to reply. */
static void watching_step(struct job *job, int64_t deadline)
{
    struct watching *watching = list_entry(job, struct watching, job);
    struct watch *watch = &watching->watch;
    bool more = false;

    if (credentials_assume(&watching->as)) {
        more = watch_step(watch, deadline);
        credentials_restore(&watching->as);
    } else {
        watch->failed = true;
        watch->failure = file_failure(errno, watch->top);
    }
    if (watch->failed) {
        mux_reset(watching->stream, &watch->failure);
        return;
    }
    if (more)
        schedule(watching);
    if (!watching->replied && watch_searched(watch))
        reply(watching);
    if (watch->records.used > 0 || watch->over)
        mux_ready(watching->stream);
}

static void watching_event(struct source *source, uint32_t events)
{
    struct watching *watching = list_entry(source, struct watching, source);

    if (!(events & EPOLLIN))
        return;
    watching->watch.readable = true;
    schedule(watching);
}

static size_t watching_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct watching *watching = stream->owner;
    struct ring *records = &watching->watch.records;
    size_t size = records->used < max ? records->used : max;

    ring_copy(records, 0, out, size);
    ring_drop(records, size);
    *end = watching->watch.over && records->used == 0;
    if (size > 0)
        schedule(watching); /* there is room again */
    return size;
}

static void watching_closed(struct stream *stream)
{
    struct watching *watching = stream->owner;

    job_cancel(&watching->job);
    watch_close(&watching->watch);
    free(watching);
}

static bool open_as(struct watching *watching, const char *path, bool recursive, struct failure *failed)
{
    if (!credentials_assume(&watching->as)) {
        *failed = file_failure(errno, path);
        return false;
    }
    bool opened = watch_open(&watching->watch, path, recursive, failed);
    credentials_restore(&watching->as);
    if (!opened)
        return false;
    watching->source = (struct source){watching->watch.inotify, watching_event};
    if (loop_watch(&watching->agent->loop, &watching->source))
        return true;
    *failed = file_failure(errno, path);
    watch_close(&watching->watch);
    return false;
}

void file_watch_method(struct request *request)
{
    static const struct stream_ops ops = {.pull = watching_pull, .closed = watching_closed};
    struct file_actor actor;
    struct failure failed;
    char path[PATH_MAX];
    bool recursive;

    if (!param_actor(request, &actor) || !param_path(request, "path", &actor, path) ||
        !param_bool_or(request, "recursive", &recursive, false))
        return;
    struct watching *watching = calloc(1, sizeof(*watching));
    if (!watching) {
        request_fail(request, failure(FAIL_RESOURCE, "memory"));
        return;
    }
    watching->agent = request->agent;
    watching->stream = request->stream;
    watching->as = actor.as;
    watching->job.step = watching_step;
    list_init(&watching->job.link);
    if (!open_as(watching, path, recursive, &failed)) {
        free(watching);
        request_fail(request, failed);
        return;
    }
    request->stream->ops = &ops;
    request->stream->owner = watching;
    schedule(watching);
}
