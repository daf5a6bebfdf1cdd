/*
 * What requests about files have in common. Agent protocol, section 9.
 */
#ifndef ATOLL_FILE_REQUEST_H
#define ATOLL_FILE_REQUEST_H

#include <limits.h>

#include "credentials.h"
#include "request.h"

/* Who does it, and where relative paths begin. */
struct file_actor {
    struct credentials as;
    char start[PATH_MAX];
};

bool param_actor(struct request *request, struct file_actor *actor);
/* Absolute. */
bool param_path(struct request *request, const char *name, const struct file_actor *actor,
                char path[PATH_MAX]);

/* A failed system call about a file: of a long path the end is shown, which tells more. */
struct failure file_failure(int error, const char *path);

/* Splits a path, from which slashes at its end are taken: its last name, and "." if there is no slash before it. False,
 * with errno set, if that is no name: "/", "." or "..". */
bool file_split(char *path, char parent[PATH_MAX], const char **name);

/* Methods that have a file of their own. */
void file_read_method(struct request *request);
void file_list_method(struct request *request);
void file_write_method(struct request *request);
void file_watch_method(struct request *request);

#endif
