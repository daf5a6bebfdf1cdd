#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "survey.h"
#include "wire.h"

enum {
    SEGMENT_MAX = 65536,
    HEAD_SIZE = 12, /* offset and length */
    NO_FILE = -1,   /* in the place of a length: the offset is an errno */
};

static bool put_head(struct survey *survey, uint64_t offset, uint32_t length)
{
    uint8_t head[HEAD_SIZE];

    wire_put_u32(head, (uint32_t)offset);
    wire_put_u32(head + 4, (uint32_t)(offset >> 32));
    wire_put_u32(head + 8, length);
    return fwrite(head, sizeof(head), 1, survey->out) == 1;
}

/* Segments of what is not a hole; 0, or an errno. A file that cannot tell its holes has none. */
static int put_segments(struct survey *survey, int fd, off_t *at)
{
    static uint8_t data[SEGMENT_MAX];
    off_t hole = 0;

    for (;;) {
        if (*at >= hole) {
            off_t next = lseek(fd, *at, SEEK_DATA);
            if (next < 0 && errno == ENXIO)
                return 0;
            *at = next < 0 ? *at : next;
            hole = next < 0 ? LONG_MAX : lseek(fd, *at, SEEK_HOLE);
            if (hole < 0)
                return errno;
        }
        off_t left = hole - *at;
        ssize_t size = pread(fd, data, left < SEGMENT_MAX ? (size_t)left : SEGMENT_MAX, *at);
        if (size <= 0)
            return size < 0 ? errno : 0;
        if (!put_head(survey, (uint64_t)*at, (uint32_t)size) ||
            fwrite(data, (size_t)size, 1, survey->out) != 1)
            return EPIPE;
        *at += size;
    }
}

static bool put_file(struct survey *survey, int upper, int lower, const char *path)
{
    const int flags = O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = openat(upper, path, flags);
    struct stat status;
    off_t at = 0;

    if (fd < 0 && (errno == ENOENT || errno == EBADF))
        fd = openat(lower, path, flags);
    int error = fd < 0 || fstat(fd, &status) < 0 ? errno : S_ISREG(status.st_mode) ? 0 : EINVAL;
    if (!error)
        error = put_segments(survey, fd, &at);
    if (fd >= 0)
        close(fd);
    return error ? put_head(survey, (uint64_t)error, (uint32_t)NO_FILE)
                 : put_head(survey, (uint64_t)status.st_size, 0);
}

bool survey_read(struct survey *survey, int upper, int lower, FILE *in)
{
    size_t used = 0;
    int byte;

    while ((byte = getc(in)) != EOF) {
        survey->path[used++] = (char)byte;
        bool whole = byte == '\0';
        if (whole && !put_file(survey, upper, lower, survey->path)) {
            survey->failure = failure_os(errno, NULL, "output");
            return false;
        }
        if (!whole && used == sizeof(survey->path)) {
            survey->failure = failure(FAIL_INVALID, "path: too long");
            return false;
        }
        used = whole ? 0 : used;
    }
    return true;
}
