#include "console.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LINE_MAX_SIZE = 512 };

static int console = STDERR_FILENO;

void console_open(void)
{
    int fd = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
    bool present = fd >= 0;

    if (!present)
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    /* Process 1 may have been started without descriptors 0 to 2, so fd may be one of them. */
    int high = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    for (int standard = STDIN_FILENO; standard <= STDERR_FILENO; standard++)
        dup2(high, standard);
    if (fd > STDERR_FILENO)
        close(fd);

    console = high;
    if (!present) {
        close(high);
        console = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    }
}

void console_say(const char *format, ...)
{
    char line[LINE_MAX_SIZE] = "atoll: ";
    size_t prefix = strlen(line);
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(line + prefix, sizeof(line) - prefix - 1, format, arguments);
    va_end(arguments);
    strcat(line, "\n");
    if (write(console, line, strlen(line)) < 0)
        return; /* nobody is left to tell */
}
