#include "file_record.h"

#include "clock.h"
#include "wire.h"

struct mp_writer file_record_begin(uint8_t *buffer, size_t count)
{
    struct mp_writer writer;

    mp_writer_init(&writer, buffer + FILE_LENGTH_SIZE, FILE_RECORD_MAX);
    mp_write_map(&writer, count);
    return writer;
}

size_t file_record_end(uint8_t *buffer, const struct mp_writer *writer)
{
    if (writer->overflow)
        return 0;
    wire_put_u32(buffer, (uint32_t)mp_written(writer));
    return FILE_LENGTH_SIZE + mp_written(writer);
}

const char *file_type(mode_t mode)
{
    switch (mode & S_IFMT) {
    case S_IFREG:
        return "file";
    case S_IFDIR:
        return "directory";
    case S_IFLNK:
        return "symlink";
    case S_IFIFO:
        return "fifo";
    case S_IFSOCK:
        return "socket";
    case S_IFBLK:
        return "block";
    default:
        return "character";
    }
}

/* A file system may hold times beyond what nanoseconds reach: the nearest that they do. */
static int64_t nanoseconds(const struct timespec *time)
{
    int64_t value;

    if (__builtin_mul_overflow((int64_t)time->tv_sec, NS_PER_SECOND, &value) ||
        __builtin_add_overflow(value, (int64_t)time->tv_nsec, &value))
        return time->tv_sec < 0 ? INT64_MIN : INT64_MAX;
    return value;
}

void file_put_status(struct mp_writer *writer, const struct stat *status)
{
    mp_put_str(writer, "type", file_type(status->st_mode));
    mp_put_int(writer, "mode", status->st_mode & 07777);
    mp_put_int(writer, "uid", status->st_uid);
    mp_put_int(writer, "gid", status->st_gid);
    mp_put_int(writer, "size", status->st_size);
    mp_put_int(writer, "mtime", nanoseconds(&status->st_mtim));
}

void file_put_bytes(struct mp_writer *writer, const char *key, const char *bytes, size_t size)
{
    mp_write_str(writer, key);
    mp_write_bin(writer, (const uint8_t *)bytes, size);
}
