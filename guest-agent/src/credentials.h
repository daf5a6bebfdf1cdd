/*
 * Acting on files as a user, on one thread only. Agent protocol, section 9 (parameter `user`).
 */
#ifndef ATOLL_CREDENTIALS_H
#define ATOLL_CREDENTIALS_H

#include "user.h"

struct credentials {
    bool given; /* else the agent's own */
    uid_t uid;
    gid_t gid;
    int groups_count;
    gid_t groups[USER_GROUPS_MAX];
};

/* On the loop's thread. */
void credentials_init(struct credentials *credentials, const struct user *user);

/* From here on the kernel checks this thread's access to files as that of the user. False, with errno set, if the
 * agent is not privileged to do that. */
bool credentials_assume(const struct credentials *credentials);

/* Needed on the loop's thread only: one of a worker ends. */
void credentials_restore(const struct credentials *credentials);

#endif
