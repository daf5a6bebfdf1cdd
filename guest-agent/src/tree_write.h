/*
 * Writing a tree that comes in pieces. Agent protocol, section 8.
 *
 * Below the top no symbolic link is followed: whoever owns the directories cannot lead the agent elsewhere.
 * All but directories are made under a temporary name beside their own, which they get when they are complete.
 */
#ifndef ATOLL_TREE_WRITE_H
#define ATOLL_TREE_WRITE_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>
#include <time.h>

#include "failure.h"
#include "temporary.h"
#include "tree_record.h"

/* What is to be done with a directory when nothing more goes into it. */
enum tree_care {
    TREE_SETTLE,    /* made here: the metadata of its record are set */
    TREE_KEEP_TIME, /* entered again: its time is what it was then */
    TREE_LEAVE,     /* it was there */
};

/* A directory that is being written into. */
struct tree_place {
    int fd;
    size_t path_size; /* of its path below the top */
    enum tree_care care;
    bool special; /* what is made in it does not simply get the mode and owner asked for */
    struct tree_record record;
    struct timespec mtime; /* when it was entered */
};

/* Where a record goes: a directory, and a name in it. */
struct tree_spot {
    int directory;
    bool special;     /* as that of the directory */
    const char *name; /* in writer->path, except for the top */
    size_t path_size; /* of writer->path with the name */
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
    char path[TREE_RECORD_MAX]; /* of the deepest one, with the name of the spot behind it */

    struct tree_spot spot; /* of the last record; it holds until the next one */
    char temporary[TEMPORARY_SIZE];
    bool partial; /* the temporary name is taken in the spot's directory */

    int file;
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

/* `name` may be empty. On failure nothing is left behind. Closing removes what is incomplete, except directories. */
bool tree_writer_open(struct tree_writer *writer, const char *path, const char *name,
                      const struct tree_owner *owner, struct failure *failed);
void tree_writer_close(struct tree_writer *writer);

/* Writes until the deadline (boot_ns), and returns how many bytes were taken. Look at writer->failed behind it. */
size_t tree_writer_take(struct tree_writer *writer, const uint8_t *bytes, size_t size, int64_t deadline);

/* No more bytes come. */
bool tree_writer_finish(struct tree_writer *writer);

#endif
