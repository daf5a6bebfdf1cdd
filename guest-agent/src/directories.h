/*
 * Making directories.
 */
#ifndef ATOLL_DIRECTORIES_H
#define ATOLL_DIRECTORIES_H

#include <stdbool.h>

/* Makes those above the last name of the path, where they are missing; false with errno set. The path is as it was
 * on return. */
bool make_parents(char *path);

/* And the last one. */
bool make_directories(char *path);

#endif
