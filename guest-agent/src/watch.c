#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "file_record.h"
#include "file_request.h"

enum {
    CONTENT = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_MODIFY | IN_ATTRIB,
    END = IN_DELETE_SELF | IN_MOVE_SELF | IN_UNMOUNT,
    RECORD_ROOM = FILE_LENGTH_SIZE + FILE_RECORD_MAX,
};

/* The kernel's limits on watches have errors of their own, whose text would mislead. */
static struct failure explain(int error, const char *path)
{
    if (error == EMFILE)
        return failure(FAIL_RESOURCE, "too many watches");
    if (error == ENOSPC)
        return failure(FAIL_RESOURCE, "more directories than can be watched");
    return file_failure(error, path);
}

static void fail(struct watch *watch, int error, const char *path)
{
    watch->failed = true;
    watch->failure = explain(error, path);
}

/* Records. */

static void put_record(struct watch *watch, const char *kind, const char *path, bool directory, uint32_t cookie)
{
    uint8_t record[RECORD_ROOM];
    struct mp_writer writer = file_record_begin(record, cookie ? 4 : 3);

    mp_put_str(&writer, "kind", kind);
    file_put_bytes(&writer, "path", path, strlen(path));
    mp_put_bool(&writer, "directory", directory);
    if (cookie)
        mp_put_int(&writer, "cookie", cookie);
    ring_put(&watch->records, record, file_record_end(record, &writer));
}

/* The table. */

static struct list *bucket_of(struct watch *watch, int number)
{
    return &watch->buckets[(unsigned)number % WATCH_BUCKETS];
}

static struct watched *find(struct watch *watch, int number)
{
    list_each(item, after, bucket_of(watch, number)) {
        struct watched *watched = list_entry(item, struct watched, bucket);

        if (watched->number == number)
            return watched;
    }
    return NULL;
}

static void stop_search(struct watch *watch)
{
    if (watch->entries)
        closedir(watch->entries);
    watch->entries = NULL;
    watch->found_in = NULL;
}

static void forget(struct watch *watch, struct watched *watched)
{
    if (watched == watch->found_in)
        stop_search(watch);
    list_remove(&watched->bucket);
    list_remove(&watched->unread);
    watch->count--;
    free(watched);
}

static bool is_below(const char *path, const char *directory)
{
    size_t size = strlen(directory);

    return strncmp(path, directory, size) == 0 && (path[size] == '\0' || path[size] == '/');
}

/* A directory was moved away with all below it: what happens there does not matter any more. */
static void forget_below(struct watch *watch, const char *directory)
{
    for (size_t i = 0; i < WATCH_BUCKETS; i++) {
        list_each(item, after, &watch->buckets[i]) {
            struct watched *watched = list_entry(item, struct watched, bucket);

            if (!is_below(watched->path, directory))
                continue;
            inotify_rm_watch(watch->inotify, watched->number);
            forget(watch, watched);
        }
    }
}

static struct watched *remember(struct watch *watch, int number, const char *path, bool tell)
{
    size_t size = strlen(path) + 1;
    struct watched *watched =
        watch->count < WATCH_DIRECTORIES_MAX ? malloc(sizeof(*watched) + size) : NULL;

    if (!watched)
        return NULL;
    *watched = (struct watched){.number = number, .tell = tell};
    memcpy(watched->path, path, size);
    list_init(&watched->unread);
    list_append(bucket_of(watch, number), &watched->bucket);
    watch->count++;
    return watched;
}

/* What is below the top, absolute; false if that is too long for the kernel. */
static bool full_path(const struct watch *watch, const char *path, char full[PATH_MAX])
{
    return snprintf(full, PATH_MAX, "%s%s%s", watch->top, *path ? "/" : "", path) < PATH_MAX;
}

/* It is gone again, is another one by now, or may not be read by this user: then it is left out. */
static bool passes_over(int error)
{
    return error == ENOENT || error == ENOTDIR || error == ELOOP || error == EACCES;
}

/* False if it was told of already: a search found it before the event that it was made was read. */
static bool add_directory(struct watch *watch, const char *path, bool tell)
{
    char full[PATH_MAX];

    if (!full_path(watch, path, full)) {
        fail(watch, ENAMETOOLONG, path);
        return true;
    }
    int number = inotify_add_watch(watch->inotify, full, CONTENT | END | IN_ONLYDIR | IN_DONT_FOLLOW);
    if (number < 0) {
        if (!passes_over(errno))
            fail(watch, errno, full);
        return true;
    }
    struct watched *watched = find(watch, number);
    if (watched && strcmp(watched->path, path) == 0)
        return !watched->tell;
    if (watched)
        forget(watch, watched); /* it has come here from elsewhere */
    watched = remember(watch, number, path, tell);
    if (watched)
        list_append(&watch->unread, &watched->unread);
    else
        fail(watch, ENOSPC, full);
    return true;
}

/* Searching directories for directories. */

static void begin_search(struct watch *watch)
{
    struct watched *watched = list_entry(watch->unread.next, struct watched, unread);
    char full[PATH_MAX];

    list_remove(&watched->unread);
    if (!full_path(watch, watched->path, full))
        return;
    watch->entries = opendir(full);
    watch->found_in = watch->entries ? watched : NULL;
    if (watch->entries)
        return;
    if (!passes_over(errno)) {
        fail(watch, errno, full);
    } else if (errno == ENOENT && *watched->path) { /* in an overflow it was lost that it went */
        inotify_rm_watch(watch->inotify, watched->number);
        forget(watch, watched);
    }
}

static bool is_directory(const struct watch *watch, const struct dirent *entry)
{
    struct stat status;

    if (entry->d_type != DT_UNKNOWN)
        return entry->d_type == DT_DIR;
    return fstatat(dirfd(watch->entries), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISDIR(status.st_mode);
}

/* The path of a name in a directory; false if it is too long. */
static bool join(const struct watched *watched, const char *name, char path[PATH_MAX])
{
    return snprintf(path, PATH_MAX, "%s%s%s", watched->path, *watched->path && *name ? "/" : "", name) < PATH_MAX;
}

static void search_on(struct watch *watch)
{
    const struct dirent *entry = readdir(watch->entries);
    char path[PATH_MAX];

    if (!entry) {
        stop_search(watch);
        return;
    }
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
        return;
    if (!join(watch->found_in, entry->d_name, path)) {
        fail(watch, ENAMETOOLONG, entry->d_name);
        return;
    }
    bool directory = is_directory(watch, entry);
    bool tell = watch->found_in->tell;
    if (tell)
        put_record(watch, "created", path, directory, 0);
    if (directory)
        add_directory(watch, path, tell);
}

/* After an overflow: directories may have been made that nobody told of. */
static void search_again(struct watch *watch)
{
    stop_search(watch);
    for (size_t i = 0; i < WATCH_BUCKETS && watch->recursive; i++) {
        list_each(item, after, &watch->buckets[i]) {
            struct watched *watched = list_entry(item, struct watched, bucket);

            watched->tell = false;
            list_remove(&watched->unread);
            list_append(&watch->unread, &watched->unread);
        }
    }
}

/* Events. */

static const char *kind_of(uint32_t mask)
{
    if (mask & IN_CREATE)
        return "created";
    if (mask & IN_DELETE)
        return "removed";
    if (mask & IN_MOVED_FROM)
        return "moved_from";
    return mask & IN_MOVED_TO ? "moved_to" : "modified";
}

static void handle_change(struct watch *watch, const struct watched *watched, const struct inotify_event *event)
{
    const char *name = event->len > 0 ? event->name : "";
    bool directory = event->mask & IN_ISDIR;
    char path[PATH_MAX];

    if (*name == '\0' && *watched->path)
        return; /* about a directory that its parent tells of, too */
    if (!join(watched, name, path)) {
        fail(watch, ENAMETOOLONG, name);
        return;
    }
    bool came = watch->recursive && directory && (event->mask & (IN_CREATE | IN_MOVED_TO));
    if (!came || add_directory(watch, path, true))
        put_record(watch, kind_of(event->mask), path, directory, event->cookie);
    if (watch->recursive && directory && (event->mask & IN_MOVED_FROM))
        forget_below(watch, path);
}

static void handle_event(struct watch *watch, const struct inotify_event *event)
{
    if (event->mask & IN_Q_OVERFLOW) {
        put_record(watch, "overflow", "", false, 0);
        search_again(watch);
        return;
    }
    struct watched *watched = find(watch, event->wd);
    if (!watched)
        return;
    if ((event->mask & (END | IN_IGNORED)) && *watched->path == '\0' && !watch->over) {
        put_record(watch, "removed", "", event->mask & IN_ISDIR, 0);
        watch->over = true;
    } else if (event->mask & IN_IGNORED) {
        forget(watch, watched);
    } else if (event->mask & CONTENT) {
        handle_change(watch, watched, event);
    }
}

static void next_event(struct watch *watch)
{
    const struct inotify_event *event = (const void *)(watch->events + watch->events_start);

    watch->events_start += sizeof(*event) + event->len;
    handle_event(watch, event);
}

static void read_events(struct watch *watch)
{
    ssize_t got = read(watch->inotify, watch->events, sizeof(watch->events));

    watch->events_start = 0;
    watch->events_end = got > 0 ? (size_t)got : 0;
    if (got < 0 && errno == EAGAIN)
        watch->readable = false;
    else if (got < 0 && errno != EINTR)
        fail(watch, errno, watch->top);
}

/* The whole. */

/* False if there is nothing to do. Directories first, so that what happens in them is seen. */
static bool step_once(struct watch *watch)
{
    if (watch->entries)
        search_on(watch);
    else if (!list_empty(&watch->unread))
        begin_search(watch);
    else if (watch->events_start < watch->events_end)
        next_event(watch);
    else if (watch->readable)
        read_events(watch);
    else
        return false;
    return true;
}

bool watch_step(struct watch *watch, int64_t deadline)
{
    while (!watch->failed && !watch->over) {
        if (ring_room(&watch->records) < RECORD_ROOM || !step_once(watch))
            return false;
        if (boot_ns() >= deadline)
            return true;
    }
    return false;
}

bool watch_searched(const struct watch *watch)
{
    return !watch->entries && list_empty(&watch->unread);
}

static bool add_top(struct watch *watch)
{
    struct stat status;
    int number = inotify_add_watch(watch->inotify, watch->top, CONTENT | END);

    if (number < 0 || stat(watch->top, &status) < 0)
        return false;
    struct watched *top = remember(watch, number, "", false);
    if (!top) {
        errno = ENOMEM;
        return false;
    }
    watch->recursive = watch->recursive && S_ISDIR(status.st_mode);
    if (watch->recursive)
        list_append(&watch->unread, &top->unread);
    return true;
}

/* Names are put behind a slash. */
static void set_top(struct watch *watch, const char *path)
{
    size_t size = strlen(path);

    while (size > 1 && path[size - 1] == '/')
        size--;
    memcpy(watch->top, path, size);
    watch->top[size] = '\0';
}

bool watch_open(struct watch *watch, const char *path, bool recursive, struct failure *failed)
{
    watch->recursive = recursive;
    set_top(watch, path);
    list_init(&watch->unread);
    for (size_t i = 0; i < WATCH_BUCKETS; i++)
        list_init(&watch->buckets[i]);
    ring_init(&watch->records, WATCH_RECORDS_SIZE);
    watch->inotify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    if (watch->inotify >= 0 && ring_reserve(&watch->records) && add_top(watch))
        return true;
    *failed = explain(errno, path);
    watch_close(watch);
    return false;
}

void watch_close(struct watch *watch)
{
    stop_search(watch);
    for (size_t i = 0; i < WATCH_BUCKETS; i++) {
        list_each(item, after, &watch->buckets[i])
            forget(watch, list_entry(item, struct watched, bucket));
    }
    ring_free(&watch->records);
    if (watch->inotify >= 0)
        close(watch->inotify);
    watch->inotify = -1;
}
