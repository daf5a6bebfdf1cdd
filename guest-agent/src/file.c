#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PART = 4096 };

static bool read_all(int fd, char **text)
{
    size_t used = 0;

    for (;;) {
        char *grown = used < FILE_MAX ? realloc(*text, used + PART + 1) : NULL;
        if (!grown) {
            errno = EFBIG;
            return false;
        }
        *text = grown;
        ssize_t got = read(fd, grown + used, PART);
        if (got < 0)
            return false;
        used += (size_t)got;
        grown[used] = '\0';
        if (got == 0)
            return true;
    }
}

char *file_read(const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    char *text = NULL;

    if (fd < 0)
        return NULL;
    if (!read_all(fd, &text)) {
        int error = errno;
        free(text);
        text = NULL;
        errno = error;
    }
    close(fd);
    return text;
}

bool file_read_line(const char *path, char *line, size_t size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    ssize_t got = read(fd, line, size - 1);
    close(fd);
    if (got < 0)
        return false;
    line[got] = '\0';
    line[strcspn(line, "\n")] = '\0';
    return true;
}

bool file_write(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    bool written = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return written;
}
