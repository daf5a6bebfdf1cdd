#include "init.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include "clock.h"
#include "file.h"

enum {
    ARGUMENTS_MAX = 256,
    FREEZE_WAIT_MS = 500,
    POLL_MS = 1,

    /* Numbers of glibc's SIGRTMIN+4 and +5, which systemd takes as poweroff and reboot; musl's SIGRTMIN is
     * another. */
    SYSTEMD_POWEROFF = 34 + 4,
    SYSTEMD_REBOOT = 34 + 5,
};

#define SYSTEMD_SHUTDOWN "systemd-shutdow" /* as the kernel cuts it */
#define FREEZER "/sys/fs/cgroup/atoll-init"

/* The first argument of process 1, or an empty string. */
static void read_verb(char verb[ARGUMENTS_MAX])
{
    char arguments[ARGUMENTS_MAX] = "";
    int fd = open("/proc/1/cmdline", O_RDONLY | O_CLOEXEC);
    ssize_t got = fd >= 0 ? read(fd, arguments, sizeof(arguments) - 1) : 0;
    size_t first = strlen(arguments) + 1;

    if (fd >= 0)
        close(fd);
    strcpy(verb, got > 0 && first < sizeof(arguments) ? arguments + first : "");
}

enum init_end init_end(void)
{
    char verb[ARGUMENTS_MAX];
    char name[32];

    if (!file_read_line("/proc/1/comm", name, sizeof(name)) || strcmp(name, SYSTEMD_SHUTDOWN) != 0)
        return INIT_RUNS;
    read_verb(verb);
    return strcmp(verb, "poweroff") == 0 ? INIT_POWERS_OFF : strcmp(verb, "reboot") == 0 ? INIT_REBOOTS : INIT_ENDS;
}

void init_ask(bool reboot)
{
    kill(1, reboot ? SYSTEMD_REBOOT : SYSTEMD_POWEROFF);
}

static bool is_frozen(void)
{
    char *events = file_read(FREEZER "/cgroup.events");
    bool frozen = events && strstr(events, "frozen 1");

    free(events);
    return frozen;
}

/* In a control group of its own: in the one that systemd is in, commands of the host may run. */
bool init_freeze(void)
{
    int64_t until = boot_ns() + (int64_t)FREEZE_WAIT_MS * NS_PER_MS;

    mkdir(FREEZER, 0755);
    if (!file_write(FREEZER "/cgroup.procs", "1") || !file_write(FREEZER "/cgroup.freeze", "1"))
        return false;
    while (!is_frozen()) {
        if (boot_ns() >= until) {
            file_write(FREEZER "/cgroup.freeze", "0");
            return false;
        }
        usleep(POLL_MS * 1000);
    }
    return true;
}
