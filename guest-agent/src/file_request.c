#include "file_request.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { SHOWN_MAX = 160 };

struct failure file_failure(int error, const char *path)
{
    size_t size = strlen(path);
    size_t cut = size > SHOWN_MAX ? size - SHOWN_MAX : 0;

    return failure_os(error, NULL, "%s%s", cut ? "..." : "", path + cut);
}

bool param_actor(struct request *request, struct file_actor *actor)
{
    static struct user user; /* large */
    char spec[2 * USER_NAME_MAX];
    struct failure failed;

    if (!param_text_or(request, "user", spec, sizeof(spec), "") ||
        !param_text_or(request, "cwd", actor->start, PATH_MAX, ""))
        return false;
    if (!user_resolve(*spec ? spec : NULL, &user, &failed)) {
        request_fail(request, failed);
        return false;
    }
    credentials_init(&actor->as, &user);
    if (*actor->start == '\0')
        strcpy(actor->start, *user.home == '/' ? user.home : "/");
    if (*actor->start == '/')
        return true;
    request_fail(request, failure(FAIL_INVALID, "cwd: not absolute"));
    return false;
}

bool param_path(struct request *request, const char *name, const struct file_actor *actor,
                char path[PATH_MAX])
{
    char given[PATH_MAX];

    if (!param_text(request, name, given, PATH_MAX))
        return false;
    if (*given == '\0') {
        request_fail(request, failure(FAIL_INVALID, "%s: empty", name));
        return false;
    }
    if (*given == '/') {
        strcpy(path, given);
        return true;
    }
    if (snprintf(path, PATH_MAX, "%s/%s", actor->start, given) < PATH_MAX)
        return true;
    request_fail(request, file_failure(ENAMETOOLONG, given));
    return false;
}

bool file_split(char *path, char parent[PATH_MAX], const char **name)
{
    size_t size = strlen(path);

    while (size > 1 && path[size - 1] == '/')
        path[--size] = '\0';
    const char *slash = strrchr(path, '/');
    *name = slash ? slash + 1 : path;
    snprintf(parent, PATH_MAX, "%.*s", slash ? (int)(slash + 1 - path) : 1, slash ? path : ".");
    errno = EINVAL;
    return **name != '\0' && strcmp(*name, ".") != 0 && strcmp(*name, "..") != 0;
}
