/*
 * fs.mount, fs.unmount. Agent protocol, section 5.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "directories.h"
#include "task.h"

enum { TYPE_MAX = 64, OPTIONS_MAX = 4096 };

struct mounting {
    struct task task;
    char type[TYPE_MAX];
    char source[PATH_MAX];
    char target[PATH_MAX];
    char options[OPTIONS_MAX]; /* without those that are flags */
    unsigned long flags;
};

struct unmounting {
    struct task task;
    char target[PATH_MAX];
    int flags;
};

/* Options that the kernel takes as flags, for every type of file system. */
static const struct flag {
    const char *name;
    unsigned long flag;
} flags[] = {
    {"ro", MS_RDONLY},     {"nosuid", MS_NOSUID},     {"nodev", MS_NODEV}, {"noexec", MS_NOEXEC},
    {"noatime", MS_NOATIME}, {"relatime", MS_RELATIME}, {"sync", MS_SYNCHRONOUS},
};

static unsigned long find_flag(const char *name)
{
    for (size_t i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
        if (strcmp(flags[i].name, name) == 0)
            return flags[i].flag;
    }
    return 0;
}

/* Takes the flags out of the options, in place. */
static unsigned long split_options(char *options)
{
    unsigned long found = 0;
    char *kept = options;
    char *rest = options;
    char *option;

    while ((option = strsep(&rest, ","))) {
        unsigned long flag = find_flag(option);
        size_t length = strlen(option);

        found |= flag;
        if (flag || length == 0)
            continue;
        if (kept != options)
            *kept++ = ',';
        memmove(kept, option, length);
        kept += length;
    }
    *kept = '\0';
    return found;
}

static bool param_absolute(struct request *request, const char *name, char path[PATH_MAX])
{
    if (!param_text(request, name, path, PATH_MAX))
        return false;
    if (*path == '/')
        return true;
    request_fail(request, failure(FAIL_INVALID, "%s: not an absolute path", name));
    return false;
}

static bool run_mount(struct task *task, struct failure *failed)
{
    struct mounting *mounting = list_entry(task, struct mounting, task);

    if (!make_directories(mounting->target)) {
        *failed = failure_os(errno, NULL, "mkdir %s", mounting->target);
        return false;
    }
    if (mount(mounting->source, mounting->target, mounting->type, mounting->flags, mounting->options) == 0)
        return true;
    *failed = failure_os(errno, NULL, "mount %s on %s", mounting->source, mounting->target);
    return false;
}

static bool decode_mount(struct request *request, struct mounting *mounting)
{
    bool read_only;

    if (!param_text(request, "type", mounting->type, sizeof(mounting->type)) ||
        !param_text(request, "source", mounting->source, sizeof(mounting->source)) ||
        !param_absolute(request, "target", mounting->target) ||
        !param_text_or(request, "options", mounting->options, sizeof(mounting->options), "") ||
        !param_bool_or(request, "read_only", &read_only, false))
        return false;
    mounting->flags = split_options(mounting->options) | (read_only ? MS_RDONLY : 0);
    return true;
}

static void fs_mount(struct request *request)
{
    struct mounting *mounting = task_new(request, sizeof(*mounting));

    if (!mounting)
        return;
    if (!decode_mount(request, mounting)) {
        free(mounting);
        return;
    }
    mounting->task.run = run_mount;
    task_start(request, &mounting->task);
}

static bool run_unmount(struct task *task, struct failure *failed)
{
    const struct unmounting *unmounting = list_entry(task, struct unmounting, task);

    if (umount2(unmounting->target, unmounting->flags) == 0)
        return true;
    *failed = failure_os(errno, NULL, "unmount %s", unmounting->target);
    return false;
}

static void fs_unmount(struct request *request)
{
    struct unmounting *unmounting = task_new(request, sizeof(*unmounting));
    bool lazy;

    if (!unmounting)
        return;
    if (!param_absolute(request, "target", unmounting->target) ||
        !param_bool_or(request, "lazy", &lazy, false)) {
        free(unmounting);
        return;
    }
    unmounting->flags = UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0);
    unmounting->task.run = run_unmount;
    task_start(request, &unmounting->task);
}

const struct method mount_methods[] = {
    {"fs.mount", true, fs_mount},
    {"fs.unmount", true, fs_unmount},
    {NULL, false, NULL},
};
