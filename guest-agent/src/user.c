#include "user.h"

#include <errno.h>
#include <grp.h>
#include <pwd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RECORD_MAX = 65536 }; /* a group may have many members */

static bool parse_number(const char *text, uint32_t *number)
{
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*end != '\0' || errno != 0 || value >= UINT32_MAX) /* (uid_t)-1 means "unchanged" */
        return false;
    *number = (uint32_t)value;
    return true;
}

static bool copy_text(char *out, size_t size, const char *text)
{
    return (size_t)snprintf(out, size, "%s", text) < size;
}

/* An id needs no record: files of images often belong to such. Engines of containers give it the group 0. */
static void set_unrecorded(struct user *user, uid_t uid)
{
    user->uid = uid;
    user->gid = uid == geteuid() ? getegid() : 0;
    snprintf(user->name, sizeof(user->name), "%u", (unsigned)uid);
    strcpy(user->home, "/");
    strcpy(user->shell, "/bin/sh");
}

static bool set_recorded(struct user *user, const struct passwd *record)
{
    const char *shell = *record->pw_shell ? record->pw_shell : "/bin/sh";

    user->uid = record->pw_uid;
    user->gid = record->pw_gid;
    return copy_text(user->name, sizeof(user->name), record->pw_name) &&
           copy_text(user->home, sizeof(user->home), *record->pw_dir ? record->pw_dir : "/") &&
           copy_text(user->shell, sizeof(user->shell), shell);
}

/* 0, or an errno. */
static int find_user(const char *spec, struct user *user)
{
    static char buffer[RECORD_MAX];
    struct passwd record;
    struct passwd *found = NULL;
    uid_t uid;
    bool numeric = parse_number(spec, &uid);
    int error = numeric ? getpwuid_r(uid, &record, buffer, sizeof(buffer), &found)
                        : getpwnam_r(spec, &record, buffer, sizeof(buffer), &found);

    if (found)
        return set_recorded(user, found) ? 0 : ENAMETOOLONG;
    if (numeric) {
        set_unrecorded(user, uid);
        return 0;
    }
    /* A root without /etc/passwd still has its superuser. */
    if (strcmp(spec, "root") == 0) {
        set_unrecorded(user, 0);
        strcpy(user->name, "root");
        return 0;
    }
    return error && error != ENOENT ? error : ESRCH;
}

static int find_group(const char *spec, gid_t *gid)
{
    static char buffer[RECORD_MAX];
    struct group record;
    struct group *found = NULL;

    if (parse_number(spec, gid))
        return 0;
    int error = getgrnam_r(spec, &record, buffer, sizeof(buffer), &found);
    if (!found)
        return error && error != ENOENT ? error : ESRCH;
    *gid = found->gr_gid;
    return 0;
}

/* Who names a group has no other. */
static bool find_groups(struct user *user, bool named)
{
    if (named) {
        user->groups[0] = user->gid;
        user->groups_count = 1;
        return true;
    }
    user->groups_count = USER_GROUPS_MAX;
    return getgrouplist(user->name, user->gid, user->groups, &user->groups_count) >= 0;
}

static bool not_resolved(int error, const char *what, const char *name, struct failure *failed)
{
    if (error == ESRCH)
        *failed = failure(FAIL_OS, "no such %s: %s", what, name);
    else
        *failed = failure_os(error, NULL, "%s %s", what, name);
    failed->error = error;
    failed->stage = "user";
    return false;
}

bool user_resolve(const char *spec, struct user *user, struct failure *failed)
{
    char name[2 * USER_NAME_MAX];

    if (!spec)
        snprintf(name, sizeof(name), "%u", (unsigned)geteuid());
    else if (!copy_text(name, sizeof(name), spec)) {
        *failed = failure(FAIL_INVALID, "user: too long");
        return false;
    }
    char *group = strchr(name, ':');
    if (group)
        *group++ = '\0';
    if (group && !*group) /* as engines of containers have it */
        group = NULL;
    const char *who = *name ? name : "0";

    int error = find_user(who, user);
    if (error)
        return not_resolved(error, "user", who, failed);
    error = group ? find_group(group, &user->gid) : 0;
    if (error)
        return not_resolved(error, "group", group, failed);
    if (!find_groups(user, group != NULL))
        return not_resolved(E2BIG, "groups of user", who, failed);
    return true;
}
