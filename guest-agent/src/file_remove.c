#include "file_remove.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file_request.h"

enum { OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC };

/* A directory that is being emptied. */
struct level {
    DIR *entries;
    bool removed; /* something, since it was read from its beginning */
    char name[NAME_MAX + 1];
};

struct remover {
    const char *top; /* for messages */
    int parent;      /* where the top is */
    dev_t device;
    struct level *levels;
    size_t depth;
    size_t capacity;
    const atomic_bool *unwanted;
    struct failure failure;
};

/* About this name in the deepest directory; of no name, about that itself. */
static bool fail(struct remover *remover, int error, const char *name)
{
    char path[2 * PATH_MAX];
    size_t used = (size_t)snprintf(path, sizeof(path), "%s", remover->top);

    for (size_t i = 1; i < remover->depth && used < PATH_MAX; i++)
        used += (size_t)snprintf(path + used, sizeof(path) - used, "/%s", remover->levels[i].name);
    if (*name && remover->depth > 0 && used < PATH_MAX)
        snprintf(path + used, sizeof(path) - used, "/%s", name);
    remover->failure = file_failure(error, path);
    return false;
}

/* The directory in which the deepest one is. */
static int parent_of(const struct remover *remover)
{
    return remover->depth > 1 ? dirfd(remover->levels[remover->depth - 2].entries) : remover->parent;
}

static bool add_level(struct remover *remover, DIR *entries, const char *name)
{
    if (remover->depth == remover->capacity) {
        size_t capacity = remover->capacity ? 2 * remover->capacity : 8;
        struct level *grown = realloc(remover->levels, capacity * sizeof(*grown));

        if (!grown)
            return false;
        remover->levels = grown;
        remover->capacity = capacity;
    }
    struct level *level = &remover->levels[remover->depth++];
    level->entries = entries;
    level->removed = false;
    snprintf(level->name, sizeof(level->name), "%s", name);
    return true;
}

/* A directory on which something is mounted could not be removed in the end: what is mounted there stays whole. */
static bool enter(struct remover *remover, int parent, const char *name)
{
    int fd = openat(parent, name, OPEN_DIRECTORY);
    struct stat status;

    if (fd < 0)
        return errno == ENOENT || fail(remover, errno, name);
    bool known = fstat(fd, &status) == 0;
    if (known && status.st_dev != remover->device) {
        known = false;
        errno = EBUSY;
    }
    DIR *entries = known ? fdopendir(fd) : NULL;
    if (entries && add_level(remover, entries, name))
        return true;
    int error = errno;
    if (entries)
        closedir(entries);
    else
        close(fd);
    return fail(remover, error, name);
}

/* The deepest directory has been read to its end. Where names were removed meanwhile some may have been passed over. */
static bool leave(struct remover *remover)
{
    struct level *level = &remover->levels[remover->depth - 1];

    if (unlinkat(parent_of(remover), level->name, AT_REMOVEDIR) < 0 && errno != ENOENT) {
        if (errno != ENOTEMPTY || !level->removed)
            return fail(remover, errno, "");
        level->removed = false;
        rewinddir(level->entries);
        return true;
    }
    closedir(level->entries);
    remover->depth--;
    if (remover->depth > 0)
        remover->levels[remover->depth - 1].removed = true;
    return true;
}

static bool remove_entry(struct remover *remover, const char *name)
{
    struct level *level = &remover->levels[remover->depth - 1];
    int directory = dirfd(level->entries);

    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return true;
    if (unlinkat(directory, name, 0) == 0) {
        level->removed = true;
        return true;
    }
    if (errno == EISDIR)
        return enter(remover, directory, name);
    return errno == ENOENT || fail(remover, errno, name);
}

static bool step(struct remover *remover)
{
    errno = 0;
    const struct dirent *entry = readdir(remover->levels[remover->depth - 1].entries);

    if (*remover->unwanted)
        return fail(remover, ECANCELED, "");
    if (entry)
        return remove_entry(remover, entry->d_name);
    return errno ? fail(remover, errno, "") : leave(remover);
}

static bool remove_below(struct remover *remover, const char *name)
{
    struct stat status;

    if (fstat(remover->parent, &status) < 0)
        return fail(remover, errno, "");
    remover->device = status.st_dev;
    bool going = enter(remover, remover->parent, name);
    while (going && remover->depth > 0)
        going = step(remover);
    while (remover->depth > 0)
        closedir(remover->levels[--remover->depth].entries);
    free(remover->levels);
    return going;
}

bool file_remove(char *path, bool recursive, const atomic_bool *unwanted, struct failure *failed)
{
    struct remover remover = {.top = path, .unwanted = unwanted};
    char parent[PATH_MAX];
    const char *name;

    remover.parent = file_split(path, parent, &name) ? open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
    if (remover.parent < 0) {
        *failed = file_failure(errno, path);
        return false;
    }
    bool removed = unlinkat(remover.parent, name, 0) == 0;
    if (!removed && errno == EISDIR && recursive)
        removed = remove_below(&remover, name);
    else if (!removed)
        removed = (errno == EISDIR && unlinkat(remover.parent, name, AT_REMOVEDIR) == 0) ||
                  fail(&remover, errno, "");
    close(remover.parent);
    *failed = remover.failure;
    return removed;
}
