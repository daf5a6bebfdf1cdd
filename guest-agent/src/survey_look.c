#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <linux/fiemap.h>
#include <linux/fs.h>

#include "file_record.h"
#include "msgpack.h"
#include "survey.h"
#include "wire.h"

#define OVERLAY "trusted.overlay."

/* Where these are, bytes do not lie as they are on the disk, or nobody knows where. */
#define UNSURE                                                                                                 \
    (FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_NOT_ALIGNED |      \
     FIEMAP_EXTENT_DATA_INLINE | FIEMAP_EXTENT_DATA_TAIL)

static void put_u64(uint8_t **at, uint64_t value)
{
    wire_put_u32(*at, (uint32_t)value);
    wire_put_u32(*at + 4, (uint32_t)(value >> 32));
    *at += 8;
}

/* Extended attributes. */

static int by_name(const void *one, const void *other)
{
    return strcmp(*(const char *const *)one, *(const char *const *)other);
}

/* A file that may be open: by its descriptor, if it is, much is quicker than by its path. */
struct handle {
    int fd; /* or -1 */
    const char *path;
};

static ssize_t get_attribute(struct handle of, const char *name, void *value, size_t size)
{
    return of.fd >= 0 ? fgetxattr(of.fd, name, value, size) : lgetxattr(of.path, name, value, size);
}

/* What the overlay keeps with its files is none of the user's. */
static bool take_overlay(struct survey *survey, struct handle of, const char *name, struct survey_file *file)
{
    char value[2] = "";

    if (strcmp(name, OVERLAY "opaque") == 0)
        file->opaque = get_attribute(of, name, value, sizeof(value)) == 1 && *value == 'y';
    else if (strcmp(name, OVERLAY "redirect") == 0 || strcmp(name, OVERLAY "metacopy") == 0)
        return survey_fail(survey, ENOTSUP); /* a kernel of the user's own may do so */
    return true;
}

/* Name, zero, length, value. What does not fit is left out. */
static void take_attribute(struct handle of, const char *name, struct survey_file *file)
{
    size_t length = strlen(name) + 1;
    size_t room = sizeof(file->xattrs) - file->xattrs_size;
    uint8_t *at = file->xattrs + file->xattrs_size;

    if (room < length + 4)
        return;
    ssize_t size = get_attribute(of, name, at + length + 4, room - length - 4);
    if (size < 0)
        return;
    memcpy(at, name, length);
    wire_put_u32(at + length, (uint32_t)size);
    file->xattrs_size += length + 4 + (size_t)size;
}

static bool look_at_attributes(struct survey *survey, struct handle of, struct survey_file *file)
{
    static char names[XATTR_LIST_MAX + 1];
    static const char *sorted[XATTR_LIST_MAX / 2];
    ssize_t size = of.fd >= 0 ? flistxattr(of.fd, names, XATTR_LIST_MAX)
                              : llistxattr(of.path, names, XATTR_LIST_MAX);
    size_t count = 0;

    if (size < 0)
        return errno == ENOTSUP || survey_fail(survey, errno);
    for (const char *name = names; name < names + size; name += strlen(name) + 1) {
        if (strncmp(name, OVERLAY, strlen(OVERLAY)) != 0)
            sorted[count++] = name;
        else if (!take_overlay(survey, of, name, file))
            return false;
    }
    qsort(sorted, count, sizeof(*sorted), by_name);
    for (size_t i = 0; i < count; i++)
        take_attribute(of, sorted[i], file);
    return true;
}

/* Where a file's bytes lie on its disk. */

static void put_extents(struct survey_file *file, const struct fiemap *map)
{
    uint8_t *at = file->place;

    put_u64(&at, file->status.st_ino);
    put_u64(&at, (uint64_t)file->status.st_ctim.tv_sec);
    put_u64(&at, (uint64_t)file->status.st_ctim.tv_nsec);
    for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
        const struct fiemap_extent *extent = &map->fm_extents[i];

        if (extent->fe_flags & UNSURE)
            return;
        put_u64(&at, extent->fe_logical);
        put_u64(&at, extent->fe_physical);
        put_u64(&at, extent->fe_length);
        wire_put_u32(at, extent->fe_flags);
        at += 4;
    }
    file->place_size = (size_t)(at - file->place);
}

static void look_at_extents(struct survey *survey, int fd, struct survey_file *file)
{
    static union {
        struct fiemap map;
        uint8_t bytes[sizeof(struct fiemap) + SURVEY_EXTENTS_MAX * sizeof(struct fiemap_extent)];
    } buffer;

    if (survey->no_extents || fd < 0)
        return;
    memset(&buffer.map, 0, sizeof(buffer.map));
    buffer.map.fm_length = FIEMAP_MAX_OFFSET;
    buffer.map.fm_extent_count = SURVEY_EXTENTS_MAX;
    /* musl's ioctl() takes an int for a request. */
    bool known = syscall(SYS_ioctl, fd, FS_IOC_FIEMAP, &buffer.map) == 0;
    survey->no_extents = !known && (errno == EOPNOTSUPP || errno == ENOTTY);
    uint32_t count = known ? buffer.map.fm_mapped_extents : 0;
    if (known && (count == 0 || buffer.map.fm_extents[count - 1].fe_flags & FIEMAP_EXTENT_LAST))
        put_extents(file, &buffer.map);
}

static bool look_closer(struct survey *survey, int directory, const char *name, bool upper,
                        struct survey_file *file)
{
    char path[64 + NAME_MAX];
    bool content = upper && S_ISREG(file->status.st_mode) && file->status.st_size > 0;
    struct handle of = {-1, path};

    if (content)
        of.fd = openat(directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", directory, name);
    bool done = look_at_attributes(survey, of, file);
    if (of.fd >= 0) {
        look_at_extents(survey, of.fd, file);
        close(of.fd);
    }
    return done;
}

bool survey_look(struct survey *survey, int directory, const char *name, bool upper, struct survey_file *file)
{
    file->target_size = file->xattrs_size = file->place_size = 0;
    file->opaque = false;
    if (directory < 0)
        return false;
    if (fstatat(directory, name, &file->status, AT_SYMLINK_NOFOLLOW) < 0)
        return errno != ENOENT && survey_fail(survey, errno);
    if (S_ISLNK(file->status.st_mode)) {
        ssize_t size = readlinkat(directory, name, file->target, sizeof(file->target));
        if (size < 0)
            return survey_fail(survey, errno);
        file->target_size = (size_t)size;
    }
    return look_closer(survey, directory, name, upper, file);
}

/* Records. */

static void put_bytes(struct mp_writer *writer, const char *key, const void *bytes, size_t size)
{
    mp_write_str(writer, key);
    mp_write_bin(writer, bytes, size);
}

static void put_file(struct mp_writer *writer, const char *key, const struct survey_file *file)
{
    const struct stat *status = &file->status;
    bool device = S_ISBLK(status->st_mode) || S_ISCHR(status->st_mode);

    mp_write_str(writer, key);
    mp_write_map(writer, 9 + (file->place_size > 0));
    mp_put_str(writer, "type", file_type(status->st_mode));
    mp_put_int(writer, "mode", status->st_mode & 07777);
    mp_put_int(writer, "uid", status->st_uid);
    mp_put_int(writer, "gid", status->st_gid);
    mp_put_int(writer, "size", S_ISREG(status->st_mode) ? status->st_size : 0);
    mp_put_int(writer, "mtime", (int64_t)status->st_mtim.tv_sec * 1000000000 + status->st_mtim.tv_nsec);
    mp_put_int(writer, "device", device ? (int64_t)makedev(major(status->st_rdev), minor(status->st_rdev)) : 0);
    put_bytes(writer, "target", file->target, file->target_size);
    put_bytes(writer, "xattrs", file->xattrs, file->xattrs_size);
    if (file->place_size > 0)
        put_bytes(writer, "place", file->place, file->place_size);
}

void survey_put(struct survey *survey, const struct survey_file *here, const struct survey_file *base)
{
    struct mp_writer writer;
    uint8_t length[4];

    mp_writer_init(&writer, survey->record, sizeof(survey->record));
    mp_write_map(&writer, 1 + (size_t)(here != NULL) + (size_t)(base != NULL));
    put_bytes(&writer, "path", survey->path, strlen(survey->path));
    if (here)
        put_file(&writer, "here", here);
    if (base)
        put_file(&writer, "base", base);
    wire_put_u32(length, (uint32_t)mp_written(&writer));
    if (writer.overflow)
        survey_fail(survey, E2BIG);
    else if (fwrite(length, sizeof(length), 1, survey->out) != 1 ||
             fwrite(survey->record, mp_written(&writer), 1, survey->out) != 1)
        survey_fail(survey, errno);
}
