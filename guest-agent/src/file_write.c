/*
 * file.write: a file from a stream. Agent protocol, section 9.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "file_place.h"
#include "file_request.h"
#include "task.h"
#include "temporary.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

enum {
    NEW_MODE = 0644,
    INCOMPLETE_MODE = 0600,
    KEPT_MODE = 01777, /* a program that is written anew loses its set-id bits, as by any writing */
    OPEN_NEW = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
    OPEN_THERE = O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC,
};

enum how {
    HOW_REPLACE,  /* what has the name is replaced when all is written */
    HOW_CREATE,   /* nothing may have the name */
    HOW_TRUNCATE, /* the file that is there is written, from its beginning */
    HOW_APPEND,   /* from its end */
    HOWS,
};

struct writing {
    struct task task;
    struct credentials as;
    enum how how;
    int64_t mode; /* -1: that of the file that is there, or of a new one */
    bool sync;
    char path[PATH_MAX];
    struct file_place place;
    char temporary[TEMPORARY_SIZE]; /* empty: there is none */
    int fd;
    int64_t bytes;
};

/* Beginning. */

static bool fail(const struct writing *writing, int error, struct failure *failed)
{
    *failed = file_failure(error, writing->path);
    return false;
}

static bool in_place(const struct writing *writing)
{
    return writing->how == HOW_TRUNCATE || writing->how == HOW_APPEND;
}

static bool open_in_place(struct writing *writing)
{
    const struct file_place *place = &writing->place;
    struct stat status;

    if (!place->exists) {
        writing->fd = openat(place->directory, place->name, OPEN_NEW, NEW_MODE);
        return writing->fd >= 0;
    }
    writing->fd = openat(place->directory, place->name,
                         OPEN_THERE | (writing->how == HOW_APPEND ? O_APPEND : 0));
    if (writing->fd < 0 || fstat(writing->fd, &status) < 0)
        return false;
    errno = ESTALE; /* something else took its place */
    if (!S_ISREG(status.st_mode))
        return false;
    return writing->how == HOW_APPEND || status.st_size == 0 || ftruncate(writing->fd, 0) == 0;
}

static bool open_beside(struct writing *writing)
{
    char name[TEMPORARY_SIZE];

    if (!temporary_choose(name))
        return false;
    writing->fd = openat(writing->place.directory, name, OPEN_NEW, INCOMPLETE_MODE);
    if (writing->fd < 0)
        return false;
    strcpy(writing->temporary, name);
    return true;
}

static bool begin(struct writing *writing, bool parents, struct failure *failed)
{
    if (!file_place_find(&writing->place, writing->path, parents, failed))
        return false;
    if (writing->how == HOW_CREATE && writing->place.taken)
        return fail(writing, EEXIST, failed);
    return (in_place(writing) ? open_in_place(writing) : open_beside(writing)) ||
           fail(writing, errno, failed);
}

/* Nothing is left of what is incomplete. */
static void writing_release(struct task *task)
{
    struct writing *writing = list_entry(task, struct writing, task);

    if (writing->fd >= 0)
        close(writing->fd);
    if (*writing->temporary)
        unlinkat(writing->place.directory, writing->temporary, 0);
    file_place_close(&writing->place);
}

/* Ending, on a thread. */

/* The owner is kept as far as the user may give files away. */
static bool settle(const struct writing *writing)
{
    const struct stat *former = &writing->place.status;
    bool replaced = writing->place.exists && *writing->temporary;
    mode_t mode = replaced ? former->st_mode & KEPT_MODE : NEW_MODE;

    if (replaced && fchown(writing->fd, former->st_uid, former->st_gid) < 0 && errno != EPERM)
        return false;
    if (writing->mode >= 0)
        mode = (mode_t)writing->mode;
    else if (!*writing->temporary)
        return true;
    return fchmod(writing->fd, mode) == 0;
}

static bool put_new_in_place(const struct writing *writing)
{
    const struct file_place *place = &writing->place;

    if (syscall(SYS_renameat2, place->directory, writing->temporary, place->directory, place->name,
                RENAME_NOREPLACE) == 0)
        return true;
    if (errno != EINVAL) /* the file system cannot do that */
        return false;
    return linkat(place->directory, writing->temporary, place->directory, place->name, 0) == 0 &&
           unlinkat(place->directory, writing->temporary, 0) == 0;
}

static bool put_in_place(struct writing *writing)
{
    const struct file_place *place = &writing->place;

    if (!*writing->temporary)
        return true;
    bool put = writing->how == HOW_CREATE
                   ? put_new_in_place(writing)
                   : renameat(place->directory, writing->temporary, place->directory, place->name) == 0;
    if (put)
        *writing->temporary = '\0';
    return put;
}

static bool close_file(struct writing *writing)
{
    int fd = writing->fd;

    writing->fd = -1;
    return close(fd) == 0;
}

/* A directory that may not be listed cannot be told to go to the disk; its file has. */
static bool sync_directory(const struct writing *writing)
{
    return fsync(writing->place.directory) == 0 || errno == EBADF || errno == EINVAL;
}

static bool run_end(struct task *task, struct failure *failed)
{
    struct writing *writing = list_entry(task, struct writing, task);

    return (credentials_assume(&writing->as) && settle(writing) &&
            (!writing->sync || fsync(writing->fd) == 0) && close_file(writing) && put_in_place(writing) &&
            (!writing->sync || sync_directory(writing))) ||
           fail(writing, errno, failed);
}

static void reply_end(const struct task *task, struct mp_writer *writer)
{
    const struct writing *writing = (const struct writing *)(const void *)task;

    mp_write_map(writer, 1);
    mp_put_int(writer, "bytes", writing->bytes);
}

/* The stream. */

static bool write_all(struct writing *writing, const uint8_t *bytes, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t put = write(writing->fd, bytes + done, size - done);

        if (put < 0 && errno != EINTR)
            return false;
        done += put > 0 ? (size_t)put : 0;
    }
    writing->bytes += (int64_t)size;
    return true;
}

static void end_writing(struct writing *writing, struct stream *stream)
{
    struct request request = {.agent = writing->task.agent, .stream = stream};

    task_start(&request, &writing->task);
}

static void writing_data(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct writing *writing = stream->owner;

    if (!write_all(writing, bytes, size)) {
        struct failure failed = file_failure(errno, writing->path);

        mux_reset(stream, &failed);
        return;
    }
    mux_consumed(stream, size);
    if (end)
        end_writing(writing, stream);
}

static void writing_closed(struct stream *stream)
{
    struct writing *writing = stream->owner;

    writing_release(&writing->task);
    free(writing);
}

/* The request. */

static bool param_how(struct request *request, enum how *how)
{
    static const char *const names[HOWS] = {"replace", "create", "truncate", "append"};
    char given[16];

    if (!param_text_or(request, "how", given, sizeof(given), names[HOW_REPLACE]))
        return false;
    for (*how = 0; *how < HOWS; (*how)++) {
        if (strcmp(given, names[*how]) == 0)
            return true;
    }
    request_fail(request, failure(FAIL_INVALID, "how: none of replace, create, truncate, append"));
    return false;
}

static bool decode(struct request *request, struct writing *writing, bool *parents)
{
    struct file_actor actor;

    if (!param_actor(request, &actor) || !param_path(request, "path", &actor, writing->path) ||
        !param_how(request, &writing->how) || !param_int_or(request, "mode", 0, 07777, &writing->mode, -1) ||
        !param_bool_or(request, "parents", parents, false) ||
        !param_bool_or(request, "sync", &writing->sync, false))
        return false;
    writing->as = actor.as;
    return true;
}

static bool begin_as(struct writing *writing, bool parents, struct failure *failed)
{
    if (!credentials_assume(&writing->as))
        return fail(writing, errno, failed);
    bool begun = begin(writing, parents, failed);
    credentials_restore(&writing->as);
    return begun;
}

static struct writing *writing_new(struct request *request, bool *parents)
{
    struct writing *writing = task_new(request, sizeof(*writing));

    if (!writing)
        return NULL;
    writing->fd = -1;
    writing->place.directory = -1;
    writing->task.agent = request->agent;
    writing->task.hosted = true;
    writing->task.run = run_end;
    writing->task.reply = reply_end;
    writing->task.release = writing_release;
    if (decode(request, writing, parents))
        return writing;
    free(writing);
    return NULL;
}

void file_write_method(struct request *request)
{
    static const struct stream_ops ops = {.data = writing_data, .closed = writing_closed};
    bool parents;
    struct failure failed;
    struct writing *writing = writing_new(request, &parents);

    if (!writing)
        return;
    if (!begin_as(writing, parents, &failed)) {
        writing_release(&writing->task);
        free(writing);
        request_fail(request, failed);
        return;
    }
    request->stream->ops = &ops;
    request->stream->owner = writing;
    if (request->stream->remote_end)
        end_writing(writing, request->stream);
}
