#include "fake_launch.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "exec.h"

enum { BYTES_PER_CHARACTER = 997, WRITTEN_MAX = 65536 };

static int readers[EXEC_MAX];
static pid_t launched_count;

void launch_init(bool init)
{
    (void)init;
}

static int output_pipe(size_t size)
{
    static const char zeros[WRITTEN_MAX];
    int ends[2];

    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return -1;
    if (write(ends[1], zeros, size < WRITTEN_MAX ? size : WRITTEN_MAX) < 0) {
        close(ends[0]);
        ends[0] = -1;
    }
    close(ends[1]);
    return ends[0];
}

/* A command whose first argument is of odd length does not read its input. */
static int input_pipe(bool reads)
{
    int ends[2];

    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) < 0)
        return -1;
    if (reads)
        readers[launched_count] = ends[0];
    else
        close(ends[0]);
    return ends[1];
}

bool launch(const struct launch *launch, struct launched *launched, struct failure *failed)
{
    size_t length = strlen(launch->argv[0]);

    if (length == 0 || launched_count == EXEC_MAX) {
        *failed = failure_os(ENOENT, "exec", "%s", launch->argv[0]);
        return false;
    }
    readers[launched_count] = -1;
    launched->input = launch->input ? input_pipe(length % 2 == 0) : -1;
    launched->output = output_pipe(length * BYTES_PER_CHARACTER);
    launched->error = launch->tty ? -1 : output_pipe(length);
    launched->pid = FAKE_FIRST_PID + launched_count++;
    return true;
}

int launch_signal(pid_t group, int signal)
{
    (void)group;
    (void)signal;
    return 0;
}

int launch_resize(int tty, uint16_t rows, uint16_t columns)
{
    (void)tty;
    return rows > columns ? EIO : 0;
}

void fake_launch_reset(void)
{
    while (launched_count > 0) {
        int fd = readers[--launched_count];

        if (fd >= 0)
            close(fd);
    }
}
