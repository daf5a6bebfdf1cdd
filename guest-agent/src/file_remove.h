/*
 * Removing what a path names. Agent protocol, section 9.
 */
#ifndef ATOLL_FILE_REMOVE_H
#define ATOLL_FILE_REMOVE_H

#include <stdatomic.h>
#include <stdbool.h>

#include "failure.h"

/* Follows no symbolic link behind the last slash, and enters no other file system. The path may be changed. With
 * `recursive` a directory goes with all below it, else if it is empty. Stops when it is no longer wanted. */
bool file_remove(char *path, bool recursive, const atomic_bool *unwanted, struct failure *failed);

#endif
