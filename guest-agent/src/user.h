/*
 * Who a command runs as. Agent protocol, section 6 (parameter `user`).
 */
#ifndef ATOLL_USER_H
#define ATOLL_USER_H

#include <limits.h>
#include <stdbool.h>
#include <sys/types.h>

#include "failure.h"

enum {
    USER_NAME_MAX = 256,
    USER_GROUPS_MAX = 256,
};

struct user {
    uid_t uid;
    gid_t gid;
    int groups_count;
    gid_t groups[USER_GROUPS_MAX];
    char name[USER_NAME_MAX];
    char home[PATH_MAX];
    char shell[PATH_MAX];
};

/* Resolves NAME, UID, NAME:GROUP or UID:GID; NULL means the agent's own user. */
bool user_resolve(const char *spec, struct user *user, struct failure *failed);

#endif
