/*
 * Kernel modules listed in a file, one path per line in the order of their dependencies.
 * Agent protocol, section 7.
 */
#ifndef ATOLL_MODULES_H
#define ATOLL_MODULES_H

#include <stdbool.h>

#include "failure.h"

struct module_list {
    char *text;
    char *next;
};

/* A list that does not exist is empty. */
bool modules_open(struct module_list *list, const char *path, struct failure *failed);
void modules_close(struct module_list *list);

/* Loads the next one; `more` tells whether there was one. */
bool modules_load_next(struct module_list *list, bool *more, struct failure *failed);

/* `new` tells whether it was not there yet. */
bool module_load(const char *path, bool *new, struct failure *failed);

/* Loads all. */
bool modules_load(const char *path, struct failure *failed);

#endif
