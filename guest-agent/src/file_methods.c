/*
 * file.*: those that are one call, done on a thread. Agent protocol, section 9.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "directories.h"
#include "file_record.h"
#include "file_remove.h"
#include "file_request.h"
#include "task.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE 1
#endif

enum {
    DIRECTORY_MODE = 0755,
    DIRECTORY_MODE_MAX = 01777, /* what mkdir(2) takes */
};

struct call {
    struct task task;
    struct credentials as;
    bool (*act)(struct call *call, struct failure *failed);
    char path[PATH_MAX];
    union {
        struct {
            bool follow;
            struct stat status;
            ssize_t target_size; /* -1: it is no symbolic link */
            char target[FILE_LINK_MAX];
        } stat;
        struct {
            bool parents;
            bool exist_ok;
            int64_t mode;
        } directory;
        struct {
            bool replace;
            char target[PATH_MAX];
        } move;
        struct {
            bool recursive;
        } remove;
    };
};

static bool fail(const struct call *call, int error, struct failure *failed)
{
    *failed = file_failure(error, call->path);
    return false;
}

static bool run(struct task *task, struct failure *failed)
{
    struct call *call = list_entry(task, struct call, task);

    return credentials_assume(&call->as) ? call->act(call, failed) : fail(call, errno, failed);
}

/* Decodes what all of them have, the path by this name. */
static struct call *call_new(struct request *request, const char *name, struct file_actor *actor,
                             bool (*act)(struct call *call, struct failure *failed))
{
    struct call *call = task_new(request, sizeof(*call));

    if (!call)
        return NULL;
    if (!param_actor(request, actor) || !param_path(request, name, actor, call->path)) {
        free(call);
        return NULL;
    }
    call->as = actor->as;
    call->act = act;
    call->task.run = run;
    call->task.hosted = true;
    return call;
}

static void call_start(struct request *request, struct call *call, bool decoded)
{
    if (decoded)
        task_start(request, &call->task);
    else
        free(call);
}

/* file.stat */

static bool act_stat(struct call *call, struct failure *failed)
{
    struct stat *status = &call->stat.status;

    call->stat.target_size = -1;
    if (fstatat(AT_FDCWD, call->path, status, call->stat.follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
        return fail(call, errno, failed);
    if (!S_ISLNK(status->st_mode))
        return true;
    call->stat.target_size = readlink(call->path, call->stat.target, FILE_LINK_MAX);
    return call->stat.target_size >= 0 || fail(call, errno, failed);
}

static void reply_stat(const struct task *task, struct mp_writer *writer)
{
    const struct call *call = (const struct call *)(const void *)task;
    ssize_t target_size = call->stat.target_size;

    mp_write_map(writer, FILE_STATUS_KEYS + (target_size >= 0));
    file_put_status(writer, &call->stat.status);
    if (target_size >= 0)
        file_put_bytes(writer, "target", call->stat.target, (size_t)target_size);
}

static void file_stat(struct request *request)
{
    struct file_actor actor;
    struct call *call = call_new(request, "path", &actor, act_stat);

    if (!call)
        return;
    call->task.reply = reply_stat;
    call_start(request, call, param_bool_or(request, "follow", &call->stat.follow, true));
}

/* file.make_directory */

static bool act_make_directory(struct call *call, struct failure *failed)
{
    struct stat status;

    if (call->directory.parents && !make_parents(call->path))
        return fail(call, errno, failed);
    if (mkdir(call->path, (mode_t)call->directory.mode) == 0)
        return true;
    int error = errno;
    bool there = error == EEXIST && call->directory.exist_ok && stat(call->path, &status) == 0 &&
                 S_ISDIR(status.st_mode);
    return there || fail(call, error, failed);
}

static void file_make_directory(struct request *request)
{
    struct file_actor actor;
    struct call *call = call_new(request, "path", &actor, act_make_directory);

    if (!call)
        return;
    call_start(request, call,
               param_bool_or(request, "parents", &call->directory.parents, false) &&
                   param_bool_or(request, "exist_ok", &call->directory.exist_ok, false) &&
                   param_int_or(request, "mode", 0, DIRECTORY_MODE_MAX, &call->directory.mode,
                                DIRECTORY_MODE));
}

/* file.move */

static bool act_move(struct call *call, struct failure *failed)
{
    unsigned flags = call->move.replace ? 0 : RENAME_NOREPLACE;

    if (syscall(SYS_renameat2, AT_FDCWD, call->path, AT_FDCWD, call->move.target, flags) == 0)
        return true;
    int error = errno;
    struct stat status;
    /* Most of what may be wrong is about the target. */
    if (error == ENOENT && lstat(call->path, &status) < 0)
        return fail(call, error, failed);
    *failed = file_failure(error, call->move.target);
    return false;
}

static void file_move(struct request *request)
{
    struct file_actor actor;
    struct call *call = call_new(request, "source", &actor, act_move);

    if (!call)
        return;
    call_start(request, call,
               param_path(request, "target", &actor, call->move.target) &&
                   param_bool_or(request, "replace", &call->move.replace, true));
}

/* file.remove */

static bool act_remove(struct call *call, struct failure *failed)
{
    return file_remove(call->path, call->remove.recursive, &call->task.unwanted, failed);
}

static void file_remove_method(struct request *request)
{
    struct file_actor actor;
    struct call *call = call_new(request, "path", &actor, act_remove);

    if (!call)
        return;
    call_start(request, call, param_bool_or(request, "recursive", &call->remove.recursive, false));
}

const struct method file_methods[] = {
    {"file.read", true, file_read_method},
    {"file.write", true, file_write_method},
    {"file.list", true, file_list_method},
    {"file.stat", true, file_stat},
    {"file.make_directory", true, file_make_directory},
    {"file.move", true, file_move},
    {"file.remove", true, file_remove_method},
    {"file.watch", true, file_watch_method},
    {NULL, false, NULL},
};
