/*
 * Reading a tree in pieces. Agent protocol, section 8.
 */
#ifndef ATOLL_TREE_READ_H
#define ATOLL_TREE_READ_H

#include <dirent.h>
#include <limits.h>
#include <stdbool.h>

#include "failure.h"
#include "tree_links.h"
#include "tree_record.h"

enum { TREE_PATH_MAX = 8000 }; /* so that a link's record has room for two */

struct tree_level {
    DIR *entries;
    size_t path_size; /* of the directory's path below the top */
};

struct tree_reader {
    char top[PATH_MAX]; /* for messages */

    struct tree_level *levels; /* from the top to the directory that is being read */
    size_t depth;
    size_t capacity;
    char path[TREE_PATH_MAX + 1];
    struct tree_links links;

    int file; /* -1: none */
    bool dense; /* without holes */
    uint64_t file_size;
    uint64_t offset;
    uint64_t extent_end; /* up to where the file holds data */

    size_t pending_start; /* records and heads that did not fit */
    size_t pending_end;
    uint8_t pending[TREE_LENGTH_SIZE + TREE_RECORD_MAX + 2 * TREE_SEGMENT_HEAD];

    bool failed;
    struct failure failure;
};

/* On failure nothing is left behind. */
bool tree_reader_open(struct tree_reader *reader, const char *path, struct failure *failed);
void tree_reader_close(struct tree_reader *reader);

/* Fills `out` until the deadline (boot_ns), though not with nothing unless the room is small. `end` tells whether
 * that was the end. Look at reader->failed behind it. */
size_t tree_reader_pull(struct tree_reader *reader, uint8_t *out, size_t max, int64_t deadline, bool *end);

#endif
