#include "tree_write.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "clock.h"

enum {
    OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
    OPEN_NEW = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
    PLAIN_MODE = 0777, /* bits that can be given when a file is made */
    NEW_DIRECTORY_MODE = 0700,
    SHOWN_MAX = 160, /* of a path, in messages */
};

/* Of a long path the end is shown: it tells more. */
static bool fail_os(struct tree_writer *writer, int error, const struct mp_bytes *path)
{
    char whole[sizeof(writer->top) + TREE_RECORD_MAX];
    int size = snprintf(whole, sizeof(whole), "%s%s%.*s", writer->top, path->size ? "/" : "", (int)path->size,
                        (const char *)path->data);
    int cut = size > SHOWN_MAX ? size - SHOWN_MAX : 0;

    writer->failed = true;
    writer->failure = failure_os(error, NULL, "%s%s", cut ? "..." : "", size ? whole + cut : "/");
    return false;
}

/* About what the last record goes to. */
static bool fail_spot(struct tree_writer *writer, int error)
{
    return fail_os(writer, error, &(struct mp_bytes){(const uint8_t *)writer->path, writer->spot.path_size});
}

static bool fail_record(struct tree_writer *writer, const char *wrong)
{
    writer->failed = true;
    writer->failure = failure(FAIL_INVALID, "tree: %s", wrong);
    return false;
}

/* Metadata. */

static void times(int64_t mtime, struct timespec both[2])
{
    int64_t seconds = mtime / NS_PER_SECOND - (mtime % NS_PER_SECOND < 0);

    both[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
    both[1] = (struct timespec){.tv_sec = seconds, .tv_nsec = (long)(mtime - seconds * NS_PER_SECOND)};
}

static uid_t owner_of(const struct tree_writer *writer, const struct tree_record *record)
{
    return writer->has_owner ? writer->uid : record->uid;
}

static gid_t group_of(const struct tree_writer *writer, const struct tree_record *record)
{
    return writer->has_owner ? writer->gid : record->gid;
}

/* Whether what has just been made has to be given to its owner: system calls count. */
static bool give_away(const struct tree_writer *writer, const struct tree_record *record, bool special)
{
    return writer->privileged &&
           (special || owner_of(writer, record) != geteuid() || group_of(writer, record) != getegid());
}

static bool needs_mode(const struct tree_record *record, bool special)
{
    return special || (record->mode & ~(unsigned)PLAIN_MODE) != 0;
}

/* Of a file or a directory; set-id bits come last, since a change of owner clears them. */
static bool settle_open(const struct tree_writer *writer, int fd, const struct tree_record *record, bool owner,
                        bool mode)
{
    struct timespec both[2];

    times(record->mtime, both);
    return (!owner || fchown(fd, owner_of(writer, record), group_of(writer, record)) == 0) &&
           (!mode || fchmod(fd, record->mode) == 0) && futimens(fd, both) == 0;
}

/* Of a symbolic link or a fifo, which are not opened. */
static bool settle_at(const struct tree_writer *writer, int directory, const char *name,
                      const struct tree_record *record, bool owner)
{
    struct timespec both[2];

    times(record->mtime, both);
    return (!owner || fchownat(directory, name, owner_of(writer, record), group_of(writer, record),
                               AT_SYMLINK_NOFOLLOW) == 0) &&
           utimensat(directory, name, both, AT_SYMLINK_NOFOLLOW) == 0;
}

/* Directories. */

static struct mp_bytes place_path(const struct tree_writer *writer)
{
    return (struct mp_bytes){(const uint8_t *)writer->path, writer->places[writer->depth - 1].path_size};
}

/* In a directory with the set-group-id bit or a default ACL, what is made gets another group or mode. */
static bool is_special(int fd, const struct stat *status)
{
    return (status->st_mode & S_ISGID) || fgetxattr(fd, "system.posix_acl_default", NULL, 0) > 0;
}

static bool push(struct tree_writer *writer, int fd, size_t path_size)
{
    struct stat status;

    if (writer->depth == writer->capacity) {
        size_t capacity = writer->capacity ? 2 * writer->capacity : 16;
        struct tree_place *grown = realloc(writer->places, capacity * sizeof(*grown));

        if (!grown)
            return false;
        writer->places = grown;
        writer->capacity = capacity;
    }
    if (fstat(fd, &status) < 0)
        return false;
    writer->places[writer->depth++] = (struct tree_place){
        .fd = fd,
        .path_size = path_size,
        .care = TREE_KEEP_TIME,
        .special = is_special(fd, &status),
        .mtime = status.st_mtim,
    };
    return true;
}

static bool pop(struct tree_writer *writer)
{
    const struct tree_place *place = &writer->places[writer->depth - 1];
    const struct timespec both[2] = {{.tv_nsec = UTIME_OMIT}, place->mtime};
    struct mp_bytes path = place_path(writer);
    bool settled = true;

    if (place->care == TREE_SETTLE)
        settled = settle_open(writer, place->fd, &place->record, writer->privileged, true);
    else if (place->care == TREE_KEEP_TIME)
        settled = futimens(place->fd, both) == 0;
    int error = errno;

    close(place->fd);
    writer->depth--;
    return settled || fail_os(writer, error, &path);
}

static bool contains(const struct tree_writer *writer, const struct mp_bytes *path)
{
    size_t size = writer->places[writer->depth - 1].path_size;

    return size == 0 || (size <= path->size && memcmp(writer->path, path->data, size) == 0 &&
                         (size == path->size || path->data[size] == '/'));
}

/* Opens the next directory on the way from the deepest place to `path`. */
static bool step_down(struct tree_writer *writer, const struct mp_bytes *path)
{
    const struct tree_place *place = &writer->places[writer->depth - 1];
    size_t from = place->path_size + (place->path_size > 0);
    const uint8_t *slash = memchr(path->data + from, '/', path->size - from);
    size_t to = slash ? (size_t)(slash - path->data) : path->size;

    memcpy(writer->path, path->data, to);
    writer->path[to] = '\0';
    int fd = openat(place->fd, writer->path + from, OPEN_DIRECTORY);
    if (fd >= 0 && push(writer, fd, to))
        return true;
    int error = errno;
    if (fd >= 0)
        close(fd);
    return fail_os(writer, error, &(struct mp_bytes){path->data, to});
}

/* Makes the directory of this path the deepest place. Those that are left are complete, as far as is known; one that
 * is entered again keeps its time. */
static bool enter(struct tree_writer *writer, const struct mp_bytes *path)
{
    while (!contains(writer, path)) {
        if (!pop(writer))
            return false;
    }
    while (writer->places[writer->depth - 1].path_size < path->size) {
        if (!step_down(writer, path))
            return false;
    }
    return true;
}

static bool find_spot(struct tree_writer *writer, const struct mp_bytes *path)
{
    size_t from = path->size;

    if (path->size == 0) {
        writer->spot = (struct tree_spot){.directory = writer->parent, .special = true, .name = writer->name};
        return true;
    }
    while (from > 0 && path->data[from - 1] != '/')
        from--;
    if (!enter(writer, &(struct mp_bytes){path->data, from - (from > 0)}))
        return false;
    memcpy(writer->path, path->data, path->size);
    writer->path[path->size] = '\0';
    const struct tree_place *place = &writer->places[writer->depth - 1];
    writer->spot = (struct tree_spot){place->fd, place->special, writer->path + from, path->size};
    return true;
}

static int make_directory(const struct tree_spot *spot, bool *made)
{
    *made = mkdirat(spot->directory, spot->name, NEW_DIRECTORY_MODE) == 0;
    return *made || errno == EEXIST ? openat(spot->directory, spot->name, OPEN_DIRECTORY) : -1;
}

/* One that is there is used as it is; anything else is replaced. */
static bool write_directory(struct tree_writer *writer, const struct tree_record *record)
{
    const struct tree_spot *spot = &writer->spot;
    bool made;
    int fd = make_directory(spot, &made);

    if (fd < 0 && errno == ELOOP)
        errno = ENOTDIR; /* a symbolic link, which may be what the guest's programs lie behind */
    if (fd < 0 || !push(writer, fd, record->path.size)) {
        int error = errno;

        if (fd >= 0)
            close(fd);
        return fail_spot(writer, error);
    }
    writer->places[writer->depth - 1].care = made ? TREE_SETTLE : TREE_LEAVE;
    writer->places[writer->depth - 1].record = *record;
    return true;
}

/* What has been made under the temporary name is complete. */
static bool put_in_place(struct tree_writer *writer)
{
    const struct tree_spot *spot = &writer->spot;

    if (renameat(spot->directory, writer->temporary, spot->directory, spot->name) < 0)
        return false;
    writer->partial = false;
    return true;
}

/* Files. */

static bool write_file(struct tree_writer *writer, const struct tree_record *record)
{
    writer->file = openat(writer->spot.directory, writer->temporary, OPEN_NEW, record->mode & PLAIN_MODE);
    if (writer->file < 0)
        return fail_spot(writer, errno);
    writer->partial = true;
    writer->file_record = *record;
    writer->file_end = 0;
    return true;
}

static bool write_content(struct tree_writer *writer, const struct tree_part *part)
{
    const struct mp_bytes *content = &part->content;

    for (size_t done = 0; done < content->size;) {
        ssize_t put =
            pwrite(writer->file, content->data + done, content->size - done, (off_t)(part->offset + done));

        if (put < 0 && errno != EINTR)
            return fail_spot(writer, errno);
        done += put > 0 ? (size_t)put : 0;
    }
    writer->file_end = part->offset + content->size;
    writer->bytes += (int64_t)content->size;
    return true;
}

static bool end_file(struct tree_writer *writer)
{
    const struct tree_record *record = &writer->file_record;
    int fd = writer->file;
    bool special = writer->spot.special;
    bool whole = (writer->file_end == record->size || ftruncate(fd, (off_t)record->size) == 0) &&
                 settle_open(writer, fd, record, give_away(writer, record, special), needs_mode(record, special));
    int error = errno;

    writer->file = -1;
    if (close(fd) < 0 && whole)
        return fail_spot(writer, errno);
    if (!whole)
        return fail_spot(writer, error);
    return put_in_place(writer) || fail_spot(writer, errno);
}

/* Others. */

/* A symbolic link or a fifo. */
static bool write_special(struct tree_writer *writer, const struct tree_record *record, int made)
{
    const struct tree_spot *spot = &writer->spot;

    writer->partial = made == 0;
    return (made == 0 &&
            settle_at(writer, spot->directory, writer->temporary, record,
                      give_away(writer, record, spot->special)) &&
            put_in_place(writer)) ||
           fail_spot(writer, errno);
}

static bool write_symlink(struct tree_writer *writer, const struct tree_record *record)
{
    char target[TREE_TARGET_MAX + 1];

    memcpy(target, record->target.data, record->target.size);
    target[record->target.size] = '\0';
    return write_special(writer, record, symlinkat(target, writer->spot.directory, writer->temporary));
}

static bool write_fifo(struct tree_writer *writer, const struct tree_record *record)
{
    return write_special(writer, record,
                         mkfifoat(writer->spot.directory, writer->temporary, record->mode & PLAIN_MODE));
}

/* The directory in which a path's last name is, from the top on; -1 with errno set. */
static int open_directory_of(const struct tree_writer *writer, const struct mp_bytes *path, char name[TREE_NAME_MAX + 1])
{
    int fd = fcntl(writer->places[0].fd, F_DUPFD_CLOEXEC, 0);
    const uint8_t *at = path->data;
    const uint8_t *end = at + path->size;
    const uint8_t *slash;

    while ((slash = memchr(at, '/', (size_t)(end - at))) && fd >= 0) {
        memcpy(name, at, (size_t)(slash - at));
        name[slash - at] = '\0';
        int inner = openat(fd, name, OPEN_DIRECTORY);
        int error = errno;
        close(fd);
        errno = error;
        fd = inner;
        at = slash + 1;
    }
    if (fd < 0)
        return -1;
    memcpy(name, at, (size_t)(end - at));
    name[end - at] = '\0';
    return fd;
}

/* Two names of one file: the new one stays where it is instead of going away. */
static bool put_link_in_place(struct tree_writer *writer)
{
    return put_in_place(writer) &&
           (unlinkat(writer->spot.directory, writer->temporary, 0) == 0 || errno == ENOENT);
}

static bool write_link(struct tree_writer *writer, const struct tree_record *record)
{
    char name[TREE_NAME_MAX + 1];
    struct stat status;

    if (record->path.size == record->target.size &&
        memcmp(record->path.data, record->target.data, record->path.size) == 0)
        return fail_record(writer, "a link to itself");
    int directory = open_directory_of(writer, &record->target, name);
    if (directory < 0 || fstatat(directory, name, &status, AT_SYMLINK_NOFOLLOW) < 0) {
        int error = errno;

        if (directory >= 0)
            close(directory);
        return fail_os(writer, error, &record->target);
    }
    bool regular = S_ISREG(status.st_mode);
    writer->partial = regular && linkat(directory, name, writer->spot.directory, writer->temporary, 0) == 0;
    int error = errno;
    close(directory);
    if (!regular)
        return fail_record(writer, "a link to no file");
    if (!writer->partial)
        return fail_spot(writer, error);
    return put_link_in_place(writer) || fail_spot(writer, errno);
}

static bool write_record(struct tree_writer *writer, const struct tree_record *record)
{
    static bool (*const write[TREE_TYPES])(struct tree_writer *, const struct tree_record *) = {
        [TREE_FILE] = write_file, [TREE_DIRECTORY] = write_directory, [TREE_SYMLINK] = write_symlink,
        [TREE_LINK] = write_link, [TREE_FIFO] = write_fifo,
    };

    if (!find_spot(writer, &record->path))
        return false;
    /* The top may be "." of a directory that is there: nothing else can take its place. */
    if (record->type != TREE_DIRECTORY && strcmp(writer->spot.name, ".") == 0)
        return fail_spot(writer, EISDIR);
    writer->entries++;
    return write[record->type](writer, record);
}

/* The whole. */

static bool handle(struct tree_writer *writer, enum tree_event event, const struct tree_part *part)
{
    switch (event) {
    case TREE_RECORD:
        return write_record(writer, &part->record);
    case TREE_CONTENT:
        return write_content(writer, part);
    case TREE_FILE_END:
        return end_file(writer);
    case TREE_MALFORMED:
        return fail_record(writer, part->wrong);
    case TREE_MORE:
        break;
    }
    return true;
}

size_t tree_writer_take(struct tree_writer *writer, const uint8_t *bytes, size_t size, int64_t deadline)
{
    struct mp_reader input = {bytes, bytes + size};
    struct tree_part part;

    while (!writer->failed && input.at < input.end) {
        enum tree_event event = tree_parse(&writer->parser, &input, &part);

        if (!handle(writer, event, &part) || boot_ns() >= deadline)
            break;
    }
    return (size_t)(input.at - bytes);
}

bool tree_writer_finish(struct tree_writer *writer)
{
    if (!tree_complete(&writer->parser))
        return fail_record(writer, "cut short");
    while (writer->depth > 0) {
        if (!pop(writer))
            return false;
    }
    return true;
}

/* In messages a "/" is put between the two: none may stand at the end. */
static void name_top(struct tree_writer *writer, const char *path, const char *name)
{
    size_t size = strlen(path);

    while (size > 0 && path[size - 1] == '/')
        size--;
    snprintf(writer->top, sizeof(writer->top), "%.*s%s%s", (int)size, path, *name ? "/" : "", name);
}

/* Opens the directory in which the top is, and finds the top's name. */
static bool open_top(struct tree_writer *writer, const char *path, const char *name)
{
    char parent[PATH_MAX];
    size_t size = strlen(path);

    writer->parent = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (writer->parent >= 0) {
        strcpy(writer->name, *name ? name : ".");
        name_top(writer, path, name);
        return true;
    }
    if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP)
        return false;
    while (size > 1 && path[size - 1] == '/')
        size--;
    size_t from = size;
    while (path[from - 1] != '/')
        from--;
    if (size - from > TREE_NAME_MAX) {
        errno = ENAMETOOLONG;
        return false;
    }
    name_top(writer, path, "");
    memcpy(writer->name, path + from, size - from);
    writer->name[size - from] = '\0';
    memcpy(parent, path, from);
    parent[from] = '\0';
    writer->parent = open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return writer->parent >= 0;
}

bool tree_writer_open(struct tree_writer *writer, const char *path, const char *name,
                      const struct tree_owner *owner, struct failure *failed)
{
    writer->file = -1;
    writer->privileged = geteuid() == 0;
    writer->has_owner = owner->given;
    writer->uid = owner->uid;
    writer->gid = owner->gid;
    tree_parser_init(&writer->parser);
    if (temporary_choose(writer->temporary) && open_top(writer, path, name))
        return true;
    *failed = failure_os(errno, NULL, "%s", path);
    return false;
}

void tree_writer_close(struct tree_writer *writer)
{
    if (writer->file >= 0)
        close(writer->file);
    if (writer->partial)
        unlinkat(writer->spot.directory, writer->temporary, 0);
    while (writer->depth > 0)
        close(writer->places[--writer->depth].fd);
    free(writer->places);
    close(writer->parent);
}
