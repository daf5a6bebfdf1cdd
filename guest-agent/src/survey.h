/*
 * --survey: what a guest has written over its read-only root. Agent protocol, section 11.
 *
 * A process of its own, started like any command, that writes records to its output. It reads the two trees that an
 * overlay lies over, not the overlay: what is alike in both is never looked at.
 */
#ifndef ATOLL_SURVEY_H
#define ATOLL_SURVEY_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>

#include "failure.h"

enum {
    SURVEY_XATTRS_MAX = 16384, /* bytes of a file's extended attributes that are told */
    SURVEY_EXTENTS_MAX = 64,
    SURVEY_RECORD_MAX = 65536,
};

/* The two trees; `upper` is -1 where nothing was written, `lower` where there is no root below. */
struct survey {
    FILE *out;
    bool all; /* all files that show, also those that nobody has written */
    bool no_extents;
    bool failed;
    struct failure failure;
    char path[PATH_MAX];
    uint8_t record[SURVEY_RECORD_MAX];
};

/* What is told of a file beside its status. */
struct survey_file {
    struct stat status;
    char target[PATH_MAX];
    size_t target_size;
    uint8_t xattrs[SURVEY_XATTRS_MAX];
    size_t xattrs_size;
    uint8_t place[24 + SURVEY_EXTENTS_MAX * 28];
    size_t place_size; /* 0 if unknown */
    bool opaque;
};

/* Notes what went wrong first, at the path that is looked at; false. */
bool survey_fail(struct survey *survey, int error);

/* Looks at a file in a directory; with `upper`, also at where it lies. False if it is not there, or `failed` is set. */
bool survey_look(struct survey *survey, int directory, const char *name, bool upper, struct survey_file *file);

/* Writes a record; `here` is what shows, `base` what the root has; NULL for nothing. */
void survey_put(struct survey *survey, const struct survey_file *here, const struct survey_file *base);

/* Writes records of all that `upper` changes in `lower`. Both are descriptors of directories, and stay open. */
bool survey_walk(struct survey *survey, int upper, int lower);

/* Writes the contents of files whose paths, each with a final zero, come from `in`. */
bool survey_read(struct survey *survey, int upper, int lower, FILE *in);

/* The program: MODE UPPER LOWER. The exit status. */
int survey_main(char **argv);

#endif
