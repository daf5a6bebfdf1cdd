/*
 * Writing a tree that comes in pieces. Agent protocol, section 8.
 *
 * Below the top no symbolic link is followed: whoever owns the directories cannot lead the agent elsewhere.
 */
#ifndef ATOLL_TREE_WRITE_H
#define ATOLL_TREE_WRITE_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "failure.h"
#include "tree_record.h"

/* A directory that is being written into. */
struct tree_place {
    int fd;
    size_t path_size;      /* of its path below the top */
    bool settle;           /* it has a record, whose metadata are set at the end; else only its time is kept */
    bool special;          /* what is made in it does not simply get the mode and owner asked for */
    struct tree_record record;
    struct timespec mtime; /* of one without a record */
};

struct tree_writer {
    struct tree_parser parser;
    char top[PATH_MAX + TREE_NAME_MAX + 2]; /* for messages */
    int parent; /* where the top is, under this name */
    char name[TREE_NAME_MAX + 1];
    bool privileged; /* may give files away */
    bool has_owner;
    uid_t uid;
    gid_t gid;

    struct tree_place *places; /* from the top to where records are written */
    size_t depth;
    size_t capacity;
    char path[TREE_RECORD_MAX]; /* of the deepest one */

    int file;
    bool file_special;
    struct tree_record file_record;
    uint64_t file_end; /* behind the last byte written */

    int64_t entries;
    int64_t bytes;
    bool failed;
    struct failure failure;
};

/* What is written belongs to this user, or to nobody else than the records say. */
struct tree_owner {
    bool given;
    uid_t uid;
    gid_t gid;
};

/* `name` may be empty. On failure nothing is left behind. */
bool tree_writer_open(struct tree_writer *writer, const char *path, const char *name,
                      const struct tree_owner *owner, struct failure *failed);
void tree_writer_close(struct tree_writer *writer);

/* Writes until the deadline (boot_ns), and returns how many bytes were taken. Look at writer->failed behind it. */
size_t tree_writer_take(struct tree_writer *writer, const uint8_t *bytes, size_t size, int64_t deadline);

/* No more bytes come. */
bool tree_writer_finish(struct tree_writer *writer);

#endif
