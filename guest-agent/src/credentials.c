#include "credentials.h"

#include <errno.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The agent's own. */
static gid_t own_groups[NGROUPS_MAX];
static int own_groups_count;

void credentials_init(struct credentials *credentials, const struct user *user)
{
    credentials->uid = user->uid;
    credentials->gid = user->gid;
    credentials->groups_count = user->groups_count;
    memcpy(credentials->groups, user->groups, sizeof(credentials->groups));
    credentials->given = user->uid != geteuid() || user->gid != getegid();
    own_groups_count = getgroups(NGROUPS_MAX, own_groups);
}

/* Not through libc, whose wrapper would change all threads of the agent. */
static bool set_groups(int count, const gid_t *groups)
{
    return syscall(SYS_setgroups, count, groups) == 0;
}

/* Both calls return what was set before, and do not tell whether they failed. With a user other than root the kernel
 * takes away the privileges about files, and gives them back with root. */
static bool set_identity(uid_t uid, gid_t gid)
{
    setfsgid(gid);
    setfsuid(uid);
    return setfsuid((uid_t)-1) == (int)uid && setfsgid((gid_t)-1) == (int)gid;
}

bool credentials_assume(const struct credentials *credentials)
{
    if (!credentials->given)
        return true;
    if (!set_groups(credentials->groups_count, credentials->groups))
        return false;
    if (set_identity(credentials->uid, credentials->gid))
        return true;
    credentials_restore(credentials);
    errno = EPERM;
    return false;
}

void credentials_restore(const struct credentials *credentials)
{
    int error = errno;

    if (credentials->given) {
        set_identity(geteuid(), getegid());
        set_groups(own_groups_count, own_groups);
    }
    errno = error;
}
