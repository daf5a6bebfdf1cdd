#include "file_place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "directories.h"
#include "file_request.h"

enum { FD_PATH_SIZE = 32 };

static bool same_file(const struct stat *one, const struct stat *other)
{
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* The path without symbolic links. The kernel follows them, by its own rules: not all may be followed in directories
 * that everybody may write to. */
static bool resolve(struct file_place *place, const char *path, char resolved[PATH_MAX])
{
    char link[FD_PATH_SIZE];
    struct stat status;
    int fd = open(path, O_PATH | O_CLOEXEC);

    if (fd < 0)
        return false;
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, resolved, PATH_MAX - 1);
    int error = size < 0 || fstat(fd, &place->status) < 0 ? errno : 0;
    close(fd);
    resolved[size < 0 ? 0 : size] = '\0';
    if (error == 0 && (lstat(resolved, &status) < 0 || !same_file(&status, &place->status)))
        error = ESTALE; /* it has gone elsewhere meanwhile */
    errno = error;
    return error == 0;
}

static bool open_directory(struct file_place *place, char *path)
{
    char parent[PATH_MAX];
    const char *name;

    if (!file_split(path, parent, &name))
        return false;
    if (strlen(name) > NAME_MAX) {
        errno = ENAMETOOLONG;
        return false;
    }
    strcpy(place->name, name);
    place->directory = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    /* Whoever may not list it may still write there. */
    if (place->directory < 0 && errno == EACCES)
        place->directory = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return place->directory >= 0;
}

/* There is no file yet, or a symbolic link that leads nowhere. */
static bool find_new(struct file_place *place, const char *path, bool parents)
{
    size_t size = strlen(path);
    struct stat status;
    char copy[PATH_MAX];

    strcpy(copy, path);
    if (path[size - 1] == '/') {
        errno = EISDIR;
        return false;
    }
    if ((parents && !make_parents(copy)) || !open_directory(place, copy))
        return false;
    place->taken = fstatat(place->directory, place->name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    return true;
}

static bool find_existing(struct file_place *place, const char *path, struct failure *failed)
{
    char resolved[PATH_MAX];

    if (S_ISDIR(place->status.st_mode)) {
        *failed = file_failure(EISDIR, path);
        return false;
    }
    if (!S_ISREG(place->status.st_mode)) {
        *failed = failure(FAIL_INVALID, "%s: neither file nor directory", path);
        return false;
    }
    place->exists = place->taken = true;
    if (resolve(place, path, resolved) && open_directory(place, resolved))
        return true;
    *failed = file_failure(errno, path);
    return false;
}

bool file_place_find(struct file_place *place, const char *path, bool parents, struct failure *failed)
{
    *place = (struct file_place){.directory = -1};
    if (stat(path, &place->status) == 0)
        return find_existing(place, path, failed);
    if (errno == ENOENT && find_new(place, path, parents))
        return true;
    *failed = file_failure(errno, path);
    return false;
}

void file_place_close(struct file_place *place)
{
    if (place->directory >= 0)
        close(place->directory);
    place->directory = -1;
}
