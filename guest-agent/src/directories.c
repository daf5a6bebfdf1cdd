#include "directories.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { MODE = 0755 };

static bool make(const char *path)
{
    return mkdir(path, MODE) == 0 || errno == EEXIST;
}

/* The slash before the last name, whatever slashes follow that. */
static const char *last_slash(const char *path)
{
    size_t size = strlen(path);

    while (size > 1 && path[size - 1] == '/')
        size--;
    while (size > 0 && path[size - 1] != '/')
        size--;
    return size > 0 ? path + size - 1 : path;
}

bool make_parents(char *path)
{
    const char *last = last_slash(path);

    for (char *slash = strchr(path + 1, '/'); slash && slash <= last; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        bool made = make(path);
        *slash = '/';
        if (!made)
            return false;
    }
    return true;
}

bool make_directories(char *path)
{
    return make_parents(path) && make(path);
}
