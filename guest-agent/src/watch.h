/*
 * Watching a file or a directory for changes by inotify(7). Agent protocol, section 9.
 *
 * What is known waits in three places, each bounded: records for the host, events that were read, and the kernel's own
 * queue. While the host takes no records nothing is read, and the kernel tells when its queue overflowed.
 */
#ifndef ATOLL_WATCH_H
#define ATOLL_WATCH_H

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "failure.h"
#include "list.h"
#include "ring.h"

enum {
    WATCH_DIRECTORIES_MAX = 65536,
    WATCH_RECORDS_SIZE = 65536,
    WATCH_EVENTS_SIZE = 16384,
    WATCH_BUCKETS = 1024,
};

/* A directory, or the file that is watched. */
struct watched {
    struct list bucket;
    struct list unread; /* among those that are to be searched for directories */
    int number;         /* of inotify */
    bool tell;          /* what is found in it is told as created */
    char path[];        /* relative to the top, empty for the top itself */
};

struct watch {
    int inotify;
    bool readable;
    bool recursive;
    bool over; /* the top is gone */
    bool failed;
    struct failure failure;
    char top[PATH_MAX];

    struct list buckets[WATCH_BUCKETS];
    size_t count;
    struct list unread;
    struct watched *found_in; /* the directory that is being searched */
    DIR *entries;

    size_t events_start;
    size_t events_end;
    _Alignas(8) uint8_t events[WATCH_EVENTS_SIZE];
    struct ring records;
};

/* On failure nothing is left behind. */
bool watch_open(struct watch *watch, const char *path, bool recursive, struct failure *failed);
void watch_close(struct watch *watch);

/* Goes on until the deadline (boot_ns), or until there is no room for records. True if there is more to do. Look at
 * watch->failed and watch->over behind it. */
bool watch_step(struct watch *watch, int64_t deadline);

/* Whether all directories that were there are watched. */
bool watch_searched(const struct watch *watch);

#endif
