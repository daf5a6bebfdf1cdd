#include "console.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

enum { LINE_MAX_SIZE = 512 };

#define LOG_PORT "/dev/hvc1"

static int console = STDERR_FILENO;
static int log_port = -1;
static bool use_log_port;

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

void console_use_log_port(void)
{
    use_log_port = true;
}

/* The port may come up later than the channel, or never. A host that does not read it stalls nobody. */
static bool open_log_port(void)
{
    struct termios settings;

    if (log_port >= 0)
        return true;
    if (!use_log_port)
        return false;
    log_port = open(LOG_PORT, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (log_port < 0)
        return false;
    if (tcgetattr(log_port, &settings) == 0) {
        cfmakeraw(&settings);
        tcsetattr(log_port, TCSANOW, &settings);
    }
    return true;
}

static void write_line(int fd, const char *line)
{
    if (write(fd, line, strlen(line)) < 0)
        return; /* nobody is left to tell */
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
    if (open_log_port())
        write_line(log_port, line);
    write_line(console, line);
}
