/*
 * file.read: a file on a stream. Agent protocol, section 9.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "clock.h"
#include "file_record.h"
#include "file_request.h"

/* A fifo that took the file's place must not block, nor /proc/kmsg. */
enum { OPEN_FILE = O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC };

struct reading {
    struct jobs *jobs;
    int fd;
    uint64_t left; /* that the host asked for */
    char path[PATH_MAX];
    struct stat status;
    struct failure failure;
};

static bool fail(struct reading *reading, int error)
{
    reading->failure = file_failure(error, reading->path);
    return false;
}

static bool check_type(struct reading *reading)
{
    if (S_ISDIR(reading->status.st_mode))
        return fail(reading, EISDIR);
    if (S_ISREG(reading->status.st_mode))
        return true;
    reading->failure = failure(FAIL_INVALID, "%s: neither file nor directory", reading->path);
    return false;
}

/* Something else is not opened: that might do something. */
static bool open_file(struct reading *reading, int64_t offset)
{
    if (stat(reading->path, &reading->status) < 0)
        return fail(reading, errno);
    if (!check_type(reading))
        return false;
    reading->fd = open(reading->path, OPEN_FILE);
    if (reading->fd < 0 || fstat(reading->fd, &reading->status) < 0)
        return fail(reading, errno);
    if (!check_type(reading))
        return false;
    return offset == 0 || lseek(reading->fd, offset, SEEK_SET) >= 0 || fail(reading, errno);
}

static bool open_as(struct reading *reading, const struct credentials *as, int64_t offset)
{
    if (!credentials_assume(as))
        return fail(reading, errno);
    bool opened = open_file(reading, offset);
    credentials_restore(as);
    return opened;
}

static void reading_free(struct reading *reading)
{
    if (reading->fd >= 0)
        close(reading->fd);
    free(reading);
}

static size_t reading_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct reading *reading = stream->owner;
    size_t used = 0;

    while (used < max && reading->left > 0) {
        size_t want = max - used < reading->left ? max - used : (size_t)reading->left;
        ssize_t got = read(reading->fd, out + used, want);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            fail(reading, errno);
            stream->failure = &reading->failure;
            return 0;
        }
        reading->left = got > 0 ? reading->left - (uint64_t)got : 0;
        used += (size_t)got;
        if (boot_ns() >= reading->jobs->deadline)
            break;
    }
    *end = reading->left == 0;
    return used;
}

static void reading_closed(struct stream *stream)
{
    reading_free(stream->owner);
}

static void reply_status(struct request *request, const struct stat *status)
{
    struct mp_writer writer = request_writer(request);

    mp_write_map(&writer, FILE_STATUS_KEYS);
    file_put_status(&writer, status);
    request_reply(request, &writer, false);
}

void file_read_method(struct request *request)
{
    static const struct stream_ops ops = {.pull = reading_pull, .closed = reading_closed};
    struct stream *stream = request->stream;
    struct file_actor actor;
    char path[PATH_MAX];
    int64_t offset;
    int64_t length;

    if (!param_actor(request, &actor) || !param_path(request, "path", &actor, path) ||
        !param_int_or(request, "offset", 0, INT64_MAX, &offset, 0) ||
        !param_int_or(request, "length", 0, INT64_MAX, &length, -1))
        return;
    struct reading *reading = calloc(1, sizeof(*reading));
    if (!reading) {
        request_fail(request, failure(FAIL_RESOURCE, "memory"));
        return;
    }
    reading->jobs = &request->agent->jobs;
    reading->fd = -1;
    reading->left = length < 0 ? UINT64_MAX : (uint64_t)length;
    strcpy(reading->path, path);
    if (!open_as(reading, &actor.as, offset)) {
        request_fail(request, reading->failure);
        reading_free(reading);
        return;
    }
    reply_status(request, &reading->status);
    stream->ops = &ops;
    stream->owner = reading;
    mux_ready(stream);
}
