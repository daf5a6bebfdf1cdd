/*
 * Where a file that is to be written lies: the directory, and its name there, behind all symbolic links.
 */
#ifndef ATOLL_FILE_PLACE_H
#define ATOLL_FILE_PLACE_H

#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

#include "failure.h"

struct file_place {
    int directory; /* -1: none was found */
    char name[NAME_MAX + 1];
    bool taken;  /* something has the name */
    bool exists; /* a file does */
    struct stat status; /* of that */
};

/* With `parents` directories that are missing are made. */
bool file_place_find(struct file_place *place, const char *path, bool parents, struct failure *failed);
void file_place_close(struct file_place *place);

#endif
