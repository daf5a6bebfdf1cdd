#include "tree_read.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"

enum {
    /* A fifo that took a file's place must not block. */
    OPEN_FILE = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC,
    OPEN_DIRECTORY = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC,
    STAT_BLOCK = 512,
    WORTH_READING = 4096, /* less is not read just to fill up a frame */
};

static bool fail_at(struct tree_reader *reader, int error, const char *path)
{
    reader->failed = true;
    reader->failure = failure_os(error, NULL, "%s%s%s", reader->top, *path ? "/" : "", path);
    return false;
}

/* Records. */

static void put_record(struct tree_reader *reader, const struct tree_record *record)
{
    struct mp_writer writer;

    mp_writer_init(&writer, reader->pending, TREE_LENGTH_SIZE + TREE_RECORD_MAX);
    tree_write_record(&writer, record);
    reader->pending_start = 0;
    reader->pending_end = mp_written(&writer);
    if (writer.overflow)
        fail_at(reader, ENAMETOOLONG, reader->path);
}

static struct tree_record describe(const char *path, enum tree_type type, const struct stat *status)
{
    return (struct tree_record){
        .path = {(const uint8_t *)path, strlen(path)},
        .type = type,
        .mode = status->st_mode & 07777,
        .uid = status->st_uid,
        .gid = status->st_gid,
        .mtime = status->st_mtim.tv_sec * NS_PER_SECOND + status->st_mtim.tv_nsec,
        .size = type == TREE_FILE ? (uint64_t)status->st_size : 0,
    };
}

/* The content. */

/* Finds the next part of the file that holds data; there may be none. */
static void find_extent(struct tree_reader *reader)
{
    if (reader->dense || reader->offset == reader->file_size) {
        reader->extent_end = reader->file_size;
        return;
    }
    off_t data = lseek(reader->file, (off_t)reader->offset, SEEK_DATA);
    if (data < 0 && errno == ENXIO) { /* only a hole is left */
        reader->offset = reader->extent_end = reader->file_size;
        return;
    }
    off_t hole = data < 0 ? -1 : lseek(reader->file, data, SEEK_HOLE);
    if (hole < 0 || lseek(reader->file, data, SEEK_SET) < 0) { /* the file system does not tell */
        reader->dense = true;
        reader->extent_end = reader->file_size;
        return;
    }
    reader->offset = (uint64_t)data < reader->file_size ? (uint64_t)data : reader->file_size;
    reader->extent_end = (uint64_t)hole < reader->file_size ? (uint64_t)hole : reader->file_size;
}

static void end_file(struct tree_reader *reader)
{
    tree_put_head(reader->pending + reader->pending_end, reader->file_size, 0);
    reader->pending_end += TREE_SEGMENT_HEAD;
    if (reader->file >= 0)
        close(reader->file);
    reader->file = -1;
}

/* The descriptor, which may be -1 for an empty file, is taken over. */
static void begin_file(struct tree_reader *reader, int fd, const struct stat *status)
{
    reader->file = fd;
    reader->file_size = (uint64_t)status->st_size;
    reader->offset = 0;
    reader->dense = status->st_blocks * STAT_BLOCK >= status->st_size;
    find_extent(reader);
    if (reader->offset == reader->file_size)
        end_file(reader);
}

/* A segment, straight into the frame; 0 if there is no room worth using, or nothing was left. */
static size_t read_segment(struct tree_reader *reader, uint8_t *out, size_t room, bool first)
{
    uint64_t left = reader->extent_end - reader->offset;

    if (room <= TREE_SEGMENT_HEAD || (!first && room < left && room < WORTH_READING))
        return 0;
    size_t size = room - TREE_SEGMENT_HEAD;
    if (size > left)
        size = (size_t)left;
    if (size > TREE_SEGMENT_MAX)
        size = TREE_SEGMENT_MAX;
    ssize_t got = read(reader->file, out + TREE_SEGMENT_HEAD, size);
    if (got < 0) {
        fail_at(reader, errno, reader->path);
        return 0;
    }
    tree_put_head(out, reader->offset, (uint32_t)got);
    reader->offset += (uint64_t)got;
    if (got == 0) /* it has shrunk */
        reader->offset = reader->extent_end = reader->file_size;
    if (reader->offset == reader->extent_end)
        find_extent(reader);
    if (reader->offset == reader->file_size)
        end_file(reader);
    return got > 0 ? TREE_SEGMENT_HEAD + (size_t)got : 0;
}

/* The entries. */

static bool push(struct tree_reader *reader, int fd)
{
    if (reader->depth == reader->capacity) {
        size_t capacity = reader->capacity ? 2 * reader->capacity : 16;
        struct tree_level *grown = realloc(reader->levels, capacity * sizeof(*grown));

        if (!grown)
            return false;
        reader->levels = grown;
        reader->capacity = capacity;
    }
    DIR *entries = fdopendir(fd);
    if (!entries)
        return false;
    reader->levels[reader->depth++] = (struct tree_level){entries, strlen(reader->path)};
    return true;
}

static bool read_directory(struct tree_reader *reader, int parent, const char *name)
{
    int fd = openat(parent, name, OPEN_DIRECTORY);
    struct stat status;

    if (fd < 0)
        return errno == ENOENT || errno == ENOTDIR || fail_at(reader, errno, reader->path);
    if (fstat(fd, &status) < 0 || !push(reader, fd)) {
        int error = errno;

        close(fd);
        return fail_at(reader, error, reader->path);
    }
    struct tree_record record = describe(reader->path, TREE_DIRECTORY, &status);
    put_record(reader, &record);
    return true;
}

static void read_link(struct tree_reader *reader, const struct stat *status, const char *earlier)
{
    struct tree_record record = describe(reader->path, TREE_LINK, status);

    record.target = (struct mp_bytes){(const uint8_t *)earlier, strlen(earlier)};
    put_record(reader, &record);
}

static bool read_file(struct tree_reader *reader, int parent, const char *name)
{
    int fd = openat(parent, name, OPEN_FILE);
    struct stat status;

    if (fd < 0)
        return errno == ENOENT || errno == ELOOP || fail_at(reader, errno, reader->path);
    bool known = fstat(fd, &status) == 0;
    const char *earlier = known && S_ISREG(status.st_mode) && status.st_nlink > 1
                              ? tree_links_note(&reader->links, status.st_dev, status.st_ino, reader->path)
                              : NULL;
    if (!known || !S_ISREG(status.st_mode) || earlier) {
        close(fd);
        if (earlier)
            read_link(reader, &status, earlier);
        return true; /* something else took its place: it is left out */
    }
    struct tree_record record = describe(reader->path, TREE_FILE, &status);
    put_record(reader, &record);
    begin_file(reader, fd, &status);
    return true;
}

static bool read_symlink(struct tree_reader *reader, int parent, const char *name, const struct stat *status)
{
    char target[TREE_TARGET_MAX + 1];
    ssize_t size = readlinkat(parent, name, target, sizeof(target));

    if (size < 0)
        return errno == ENOENT || errno == EINVAL || fail_at(reader, errno, reader->path);
    if (size > TREE_TARGET_MAX)
        return fail_at(reader, ENAMETOOLONG, reader->path);
    struct tree_record record = describe(reader->path, TREE_SYMLINK, status);
    record.target = (struct mp_bytes){(const uint8_t *)target, (size_t)size};
    put_record(reader, &record);
    return true;
}

/* An entry whose kind the directory does not tell of, or that is not opened. One that is gone is left out. */
static bool read_other(struct tree_reader *reader, int parent, const char *name)
{
    struct stat status;

    if (fstatat(parent, name, &status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT || fail_at(reader, errno, reader->path);
    if (S_ISREG(status.st_mode))
        return read_file(reader, parent, name);
    if (S_ISDIR(status.st_mode))
        return read_directory(reader, parent, name);
    if (S_ISLNK(status.st_mode))
        return read_symlink(reader, parent, name, &status);
    if (S_ISFIFO(status.st_mode)) {
        struct tree_record record = describe(reader->path, TREE_FIFO, &status);

        put_record(reader, &record);
    }
    return true;
}

static bool read_entry(struct tree_reader *reader, const struct dirent *entry)
{
    const struct tree_level *level = &reader->levels[reader->depth - 1];
    size_t from = level->path_size + (level->path_size > 0);
    size_t size = strlen(entry->d_name);
    int parent = dirfd(level->entries);

    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
        return true;
    reader->path[level->path_size] = '\0';
    if (from + size > TREE_PATH_MAX)
        return fail_at(reader, ENAMETOOLONG, reader->path);
    if (from > 0)
        reader->path[from - 1] = '/';
    memcpy(reader->path + from, entry->d_name, size + 1);
    if (entry->d_type == DT_REG)
        return read_file(reader, parent, entry->d_name);
    if (entry->d_type == DT_DIR)
        return read_directory(reader, parent, entry->d_name);
    return read_other(reader, parent, entry->d_name);
}

/* False at the end of the tree. */
static bool next_entry(struct tree_reader *reader)
{
    if (reader->depth == 0)
        return false;
    struct tree_level *level = &reader->levels[reader->depth - 1];
    errno = 0;
    const struct dirent *entry = readdir(level->entries);
    if (entry)
        return read_entry(reader, entry);
    reader->path[level->path_size] = '\0';
    if (errno != 0)
        return fail_at(reader, errno, reader->path);
    closedir(level->entries);
    reader->depth--;
    return true;
}

/* The whole. */

static size_t take_pending(struct tree_reader *reader, uint8_t *out, size_t room)
{
    size_t left = reader->pending_end - reader->pending_start;
    size_t size = left < room ? left : room;

    memcpy(out, reader->pending + reader->pending_start, size);
    reader->pending_start += size;
    if (reader->pending_start == reader->pending_end)
        reader->pending_start = reader->pending_end = 0;
    return size;
}

size_t tree_reader_pull(struct tree_reader *reader, uint8_t *out, size_t max, int64_t deadline, bool *end)
{
    size_t used = 0;

    while (used < max && !reader->failed && !*end) {
        size_t put = 0;

        if (reader->pending_end > 0) {
            put = take_pending(reader, out + used, max - used);
        } else if (reader->file >= 0) {
            put = read_segment(reader, out + used, max - used, used == 0);
            if (put == 0 && reader->pending_end == 0)
                break;
        } else {
            *end = !next_entry(reader);
        }
        used += put;
        if (used > 0 && boot_ns() >= deadline)
            break;
    }
    return used;
}

static bool open_top(struct tree_reader *reader, const char *path, const struct stat *status)
{
    struct tree_record record;

    if (S_ISDIR(status->st_mode)) {
        int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        if (fd < 0 || !push(reader, fd)) {
            int error = errno;

            if (fd >= 0)
                close(fd);
            return fail_at(reader, error, "");
        }
        record = describe("", TREE_DIRECTORY, status);
        put_record(reader, &record);
        return true;
    }
    if (S_ISFIFO(status->st_mode)) {
        record = describe("", TREE_FIFO, status);
        put_record(reader, &record);
        return true;
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return fail_at(reader, errno, "");
    record = describe("", TREE_FILE, status);
    put_record(reader, &record);
    begin_file(reader, fd, status);
    return true;
}

bool tree_reader_open(struct tree_reader *reader, const char *path, struct failure *failed)
{
    struct stat status;

    reader->file = -1;
    strcpy(reader->top, path);
    if (stat(path, &status) < 0) {
        *failed = failure_os(errno, NULL, "%s", path);
        return false;
    }
    if (!S_ISDIR(status.st_mode) && !S_ISREG(status.st_mode) && !S_ISFIFO(status.st_mode)) {
        *failed = failure(FAIL_INVALID, "%s: neither file, directory nor fifo", path);
        return false;
    }
    if (open_top(reader, path, &status))
        return true;
    *failed = reader->failure;
    tree_reader_close(reader);
    return false;
}

void tree_reader_close(struct tree_reader *reader)
{
    if (reader->file >= 0)
        close(reader->file);
    while (reader->depth > 0)
        closedir(reader->levels[--reader->depth].entries);
    free(reader->levels);
    tree_links_free(&reader->links);
}
