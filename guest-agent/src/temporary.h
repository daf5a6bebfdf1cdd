/*
 * Names under which files are made before they are complete.
 */
#ifndef ATOLL_TEMPORARY_H
#define ATOLL_TEMPORARY_H

#include <stdbool.h>

enum { TEMPORARY_SIZE = 32 };

/* Another one each time, which nobody else can foresee; false, with errno set, if there is no randomness. */
bool temporary_choose(char name[TEMPORARY_SIZE]);

#endif
