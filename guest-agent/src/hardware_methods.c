/*
 * module.load, cpu.online: what makes plugged hardware usable. Agent protocol, section 5.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "file.h"
#include "modules.h"
#include "task.h"

enum { MODULES_MAX = 256 };

#define CPU_CLASS "/sys/devices/system/cpu"
#define MODULES "/usr/lib/modules/"

struct loading {
    struct task task;
    char directory[sizeof(MODULES "/") + sizeof(((struct utsname *)0)->release)];
    size_t count;
    int64_t loaded;
    char *paths[MODULES_MAX]; /* inside `text` */
    char text[WIRE_PAYLOAD_MAX + 1];
};

static bool run_load(struct task *task, struct failure *failed)
{
    struct loading *loading = list_entry(task, struct loading, task);
    char path[PATH_MAX];

    for (size_t i = 0; i < loading->count; i++) {
        bool new;

        if ((size_t)snprintf(path, sizeof(path), "%s%s", loading->directory, loading->paths[i]) >= sizeof(path)) {
            *failed = failure_os(ENAMETOOLONG, NULL, "%s", loading->paths[i]);
            return false;
        }
        if (!module_load(path, &new, failed))
            return false;
        loading->loaded += new;
    }
    return true;
}

static void reply_loaded(const struct task *task, struct mp_writer *writer)
{
    const struct loading *loading = (const struct loading *)(const void *)task;

    mp_write_map(writer, 1);
    mp_put_int(writer, "loaded", loading->loaded);
}

/* Whether no part of the path leads upwards. */
static bool stays_below(const char *path)
{
    for (const char *part = path; part; part = strchr(part, '/')) {
        part += *part == '/';
        if (strncmp(part, "..", 2) == 0 && (part[2] == '/' || part[2] == '\0'))
            return false;
    }
    return *path != '\0';
}

/* The part of the path below the directory of modules, or NULL. */
static char *relative_path(const struct loading *loading, char *path)
{
    size_t length = strlen(loading->directory);

    if (*path == '/') {
        if (strncmp(path, loading->directory, length) != 0)
            return NULL;
        path += length;
    }
    return stays_below(path) ? path : NULL;
}

static bool decode_paths(struct request *request, struct loading *loading)
{
    struct mp_reader array;
    struct mp_bytes bytes;
    char *text = loading->text;

    if (!mp_find(request->params, "paths", &array) || !mp_read_array(&array, &loading->count) ||
        loading->count > MODULES_MAX) {
        request_fail(request, failure(FAIL_INVALID, "paths: missing, not an array, or too long"));
        return false;
    }
    for (size_t i = 0; i < loading->count; i++) {
        bool is_text = mp_read_bytes(&array, &bytes) && !memchr(bytes.data, 0, bytes.size);

        if (is_text) {
            memcpy(text, bytes.data, bytes.size);
            text[bytes.size] = '\0';
            loading->paths[i] = relative_path(loading, text);
            text += bytes.size + 1;
        }
        if (!is_text || !loading->paths[i]) {
            request_fail(request, failure(FAIL_INVALID, "paths: not below %s", loading->directory));
            return false;
        }
    }
    return true;
}

static void load_modules(struct request *request)
{
    struct loading *loading = task_new(request, sizeof(*loading));
    struct utsname name;

    if (!loading)
        return;
    uname(&name);
    snprintf(loading->directory, sizeof(loading->directory), MODULES "%s/", name.release);
    if (!decode_paths(request, loading)) {
        free(loading);
        return;
    }
    loading->task.run = run_load;
    loading->task.reply = reply_loaded;
    task_start(request, &loading->task);
}

/* A vCPU that cannot be taken offline has no such attribute. */
static bool bring_online(const char *name, struct failure *failed)
{
    char path[sizeof(CPU_CLASS) + NAME_MAX + 16];
    char state[8];

    snprintf(path, sizeof(path), CPU_CLASS "/%s/online", name);
    if (!file_read_line(path, state, sizeof(state)) || strcmp(state, "0") != 0 || file_write(path, "1"))
        return true;
    *failed = failure_os(errno, NULL, "%s", path);
    return false;
}

static bool run_online(struct task *task, struct failure *failed)
{
    DIR *entries = opendir(CPU_CLASS);
    const struct dirent *entry;
    bool online = entries != NULL;

    (void)task;
    if (!entries)
        *failed = failure_os(errno, NULL, CPU_CLASS);
    while (online && (entry = readdir(entries))) {
        if (strncmp(entry->d_name, "cpu", 3) == 0 && isdigit((unsigned char)entry->d_name[3]))
            online = bring_online(entry->d_name, failed);
    }
    if (entries)
        closedir(entries);
    return online;
}

static void reply_vcpus(const struct task *task, struct mp_writer *writer)
{
    (void)task;
    mp_write_map(writer, 1);
    mp_put_int(writer, "vcpus", sysconf(_SC_NPROCESSORS_ONLN));
}

static void cpu_online(struct request *request)
{
    struct task *task = task_new(request, sizeof(*task));

    if (!task)
        return;
    task->run = run_online;
    task->reply = reply_vcpus;
    task_start(request, task);
}

const struct method hardware_methods[] = {
    {"module.load", true, load_modules},
    {"cpu.online", false, cpu_online},
    {NULL, false, NULL},
};
