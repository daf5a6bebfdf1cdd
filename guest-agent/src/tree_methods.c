/*
 * tree.read, tree.write: trees on streams. Agent protocol, section 8.
 */
#include <stdlib.h>

#include "request.h"
#include "tree_read.h"
#include "tree_write.h"
#include "user.h"

struct reading {
    struct jobs *jobs;
    struct tree_reader reader;
};

struct writing {
    struct jobs *jobs;
    struct stream *stream;
    struct tree_writer writer;
    struct job job;      /* writes what waits */
    struct ring waiting; /* what came faster than it could be written in a turn */
    bool end;            /* the host has sent all */
    bool written;        /* and all was written */
};

static bool param_absolute(struct request *request, char path[PATH_MAX])
{
    if (!param_text(request, "path", path, PATH_MAX))
        return false;
    if (*path == '/')
        return true;
    request_fail(request, failure(FAIL_INVALID, "path: not absolute"));
    return false;
}

static void reply_open(struct request *request)
{
    struct mp_writer writer = request_writer(request);

    mp_write_map(&writer, 0);
    request_reply(request, &writer, false);
}

/* Reading. */

static size_t reading_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct reading *reading = stream->owner;
    struct tree_reader *reader = &reading->reader;
    size_t size = tree_reader_pull(reader, out, max, reading->jobs->deadline, end);

    if (reader->failed)
        stream->failure = &reader->failure;
    return size;
}

static void reading_closed(struct stream *stream)
{
    struct reading *reading = stream->owner;

    tree_reader_close(&reading->reader);
    free(reading);
}

static void tree_read(struct request *request)
{
    static const struct stream_ops ops = {.pull = reading_pull, .closed = reading_closed};
    struct failure failed;
    char path[PATH_MAX];

    if (!param_absolute(request, path))
        return;
    struct reading *reading = calloc(1, sizeof(*reading));
    if (!reading) {
        request_fail(request, failure(FAIL_RESOURCE, "memory"));
        return;
    }
    if (!tree_reader_open(&reading->reader, path, &failed)) {
        free(reading);
        request_fail(request, failed);
        return;
    }
    reading->jobs = &request->agent->jobs;
    reply_open(request);
    request->stream->ops = &ops;
    request->stream->owner = reading;
    mux_ready(request->stream);
}

/* Writing. */

/* When there is nothing left to write, that is told; a failure resets the stream, which frees all this. */
static void writing_go_on(struct writing *writing)
{
    struct tree_writer *writer = &writing->writer;
    bool all = writing->end && writing->waiting.used == 0;

    if (!writer->failed && writing->waiting.used > 0)
        job_schedule(writing->jobs, &writing->job);
    if (!writer->failed && all && tree_writer_finish(writer)) {
        writing->written = true;
        mux_ready(writing->stream);
    }
    if (writer->failed)
        mux_reset(writing->stream, &writer->failure);
}

static void writing_step(struct job *job, int64_t deadline)
{
    struct writing *writing = list_entry(job, struct writing, job);
    size_t size;
    const uint8_t *bytes = ring_peek(&writing->waiting, &size);
    size_t taken = tree_writer_take(&writing->writer, bytes, size, deadline);

    ring_drop(&writing->waiting, taken);
    mux_consumed(writing->stream, taken);
    writing_go_on(writing);
}

static void writing_data(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct writing *writing = stream->owner;
    size_t taken = 0;

    writing->end = end;
    if (writing->waiting.used == 0)
        taken = tree_writer_take(&writing->writer, bytes, size, writing->jobs->deadline);
    mux_consumed(stream, taken);
    if (!writing->writer.failed && taken < size) {
        if (!ring_reserve(&writing->waiting)) {
            struct failure failed = failure(FAIL_RESOURCE, "memory");

            mux_reset(stream, &failed);
            return;
        }
        ring_put(&writing->waiting, bytes + taken, size - taken);
    }
    writing_go_on(writing);
}

static size_t writing_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    const struct writing *writing = stream->owner;
    struct mp_writer writer;

    if (!writing->written)
        return 0;
    mp_writer_init(&writer, out, max);
    mp_write_map(&writer, 2);
    mp_put_int(&writer, "entries", writing->writer.entries);
    mp_put_int(&writer, "bytes", writing->writer.bytes);
    *end = true;
    return mp_written(&writer);
}

static void writing_closed(struct stream *stream)
{
    struct writing *writing = stream->owner;

    job_cancel(&writing->job);
    tree_writer_close(&writing->writer);
    ring_free(&writing->waiting);
    free(writing);
}

static bool param_owner(struct request *request, struct tree_owner *owner)
{
    char spec[2 * USER_NAME_MAX];
    static struct user user; /* large */
    struct failure failed;

    *owner = (struct tree_owner){0};
    if (!param_text_or(request, "user", spec, sizeof(spec), ""))
        return false;
    if (*spec == '\0')
        return true;
    if (!user_resolve(spec, &user, &failed)) {
        request_fail(request, failed);
        return false;
    }
    *owner = (struct tree_owner){true, user.uid, user.gid};
    return true;
}

static bool param_name(struct request *request, char name[TREE_NAME_MAX + 1])
{
    if (!param_text_or(request, "name", name, TREE_NAME_MAX + 1, ""))
        return false;
    if (*name == '\0' || tree_is_name(name))
        return true;
    request_fail(request, failure(FAIL_INVALID, "name: not that of a file"));
    return false;
}

static struct writing *writing_new(struct request *request, const char *path, const char *name,
                                   const struct tree_owner *owner)
{
    struct writing *writing = calloc(1, sizeof(*writing));
    struct failure failed = failure(FAIL_RESOURCE, "memory");

    if (writing && tree_writer_open(&writing->writer, path, name, owner, &failed))
        return writing;
    free(writing);
    request_fail(request, failed);
    return NULL;
}

static void tree_write(struct request *request)
{
    static const struct stream_ops ops = {
        .data = writing_data,
        .pull = writing_pull,
        .closed = writing_closed,
    };
    struct stream *stream = request->stream;
    struct tree_owner owner;
    char name[TREE_NAME_MAX + 1];
    char path[PATH_MAX];

    if (!param_absolute(request, path) || !param_name(request, name) || !param_owner(request, &owner))
        return;
    if (stream->remote_end) {
        request_fail(request, failure(FAIL_INVALID, "tree: cut short"));
        return;
    }
    struct writing *writing = writing_new(request, path, name, &owner);
    if (!writing)
        return;
    writing->jobs = &request->agent->jobs;
    writing->stream = stream;
    writing->job.step = writing_step;
    list_init(&writing->job.link);
    ring_init(&writing->waiting, MUX_WINDOW);
    reply_open(request);
    stream->ops = &ops;
    stream->owner = writing;
}

const struct method tree_methods[] = {
    {"tree.read", true, tree_read},
    {"tree.write", true, tree_write},
    {NULL, false, NULL},
};
