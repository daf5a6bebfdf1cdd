#include "boot.h"

#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "clock.h"
#include "console.h"
#include "device.h"
#include "directories.h"
#include "emulation.h"
#include "file.h"
#include "identity.h"
#include "mounts.h"
#include "names.h"

enum {
    PORT_WAIT_MS = 10000,
    PORT_POLL_MS = 1,
    DISK_WAIT_MS = 30000,
    GREETING_MS = 5,
    VIRTIO_MAX = 64, /* devices */
};

#define PORT_NAME "atoll.agent.0"
#define PORT_CLASS "/sys/class/virtio-ports"
#define VIRTIO_BUS "/sys/bus/virtio"

/* Directories of the initramfs. */
#define LOWER "/lower"
#define UPPER "/upper"
#define ROOT "/root"
#define DIRECT "direct" /* of the file system at UPPER */

enum step_result { DONE, AGAIN, WAITING, FAILED };

static void reached(struct boot *boot, enum boot_moment moment)
{
    boot->timeline[moment] = boot_ns();
}

/* Up to the channel. */

/* The module that brings the port may still be probing. */
static int open_port(struct failure *failed)
{
    char name[NAME_MAX + 1];
    char path[NAME_MAX + 16];

    for (int waited = 0; !device_find(PORT_CLASS, "name", PORT_NAME, name); waited += PORT_POLL_MS) {
        if (waited >= PORT_WAIT_MS) {
            *failed = failure_os(ENODEV, NULL, "port " PORT_NAME);
            return -1;
        }
        usleep(PORT_POLL_MS * 1000);
    }
    snprintf(path, sizeof(path), "/dev/%s", name);
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        *failed = failure_os(errno, NULL, "%s", path);
    return fd;
}

static bool read_cmdline(struct boot *boot, struct failure *failed)
{
    char *text = file_read("/proc/cmdline");
    const char *wrong = NULL;

    if (!text) {
        *failed = failure_os(errno, NULL, "/proc/cmdline");
        return false;
    }
    bool parsed = cmdline_parse(text, &boot->options, &wrong);
    if (!parsed)
        *failed = failure_os(EINVAL, NULL, "atoll.%s", wrong);
    free(text);
    return parsed;
}

static void init_boot(struct boot *boot)
{
    *boot = (struct boot){.data_mount = -1, .memory_mount = -1, .init_status = -1};
    reached(boot, BOOT_START);
}

int boot_begin(struct boot *boot, struct failure *failed)
{
    init_boot(boot);
    bool mounted = mount_kernel_filesystems(failed);
    console_open();
    console_say("initramfs");
    if (!mounted || !read_cmdline(boot, failed) || !modules_load("/modules/channel", failed))
        return -1;
    int port = open_port(failed);
    if (port >= 0) {
        reached(boot, BOOT_CHANNEL);
        console_use_log_port();
        console_say("channel");
    }
    return port;
}

void boot_skip(struct boot *boot)
{
    init_boot(boot);
    reached(boot, BOOT_READY);
    boot->phase = BOOT_DONE;
}

/* The steps behind it. */

static enum step_result result(bool success)
{
    return success ? DONE : FAILED;
}

/* Loading a module keeps the agent busy for a while; a host that is there already is answered first. */
static enum step_result greet_host(struct agent *agent)
{
    int64_t limit = agent->boot.timeline[BOOT_CHANNEL] + (int64_t)GREETING_MS * NS_PER_MS;

    return agent->mux.in_session || boot_ns() >= limit ? DONE : WAITING;
}

/*
 * Whether drivers take virtio devices by themselves. A boot that is held leaves its disks alone: those of its
 * clones are others, of other sizes, and a driver that had seen one before would not look again.
 */
static bool set_autoprobe(bool on, struct failure *failed)
{
    if (file_write(VIRTIO_BUS "/drivers_autoprobe", on ? "1" : "0"))
        return true;
    *failed = failure_os(errno, NULL, VIRTIO_BUS "/drivers_autoprobe");
    return false;
}

static enum step_result load_modules(struct agent *agent)
{
    struct boot *boot = &agent->boot;
    bool more;

    if (!boot->modules.text && (!modules_open(&boot->modules, "/modules/root", &boot->failure) ||
                                (boot->options.hold && !set_autoprobe(false, &boot->failure))))
        return FAILED;
    if (!modules_load_next(&boot->modules, &more, &boot->failure))
        return FAILED;
    if (more)
        return AGAIN;
    modules_close(&boot->modules);
    reached(boot, BOOT_MODULES);
    return DONE;
}

/* What a template's clones may need is loaded before they are made. */
static enum step_result hold(struct agent *agent)
{
    struct boot *boot = &agent->boot;
    bool more;

    if (!boot->options.hold)
        return DONE;
    if (!boot->held_modules.text && (!modules_open(&boot->held_modules, "/modules/held", &boot->failure) ||
                                     !set_autoprobe(true, &boot->failure)))
        return FAILED;
    if (!modules_load_next(&boot->held_modules, &more, &boot->failure))
        return FAILED;
    if (more)
        return AGAIN;
    modules_close(&boot->held_modules);
    boot->phase = BOOT_HELD;
    console_say("held");
    return DONE;
}

/* Has the drivers look at the devices that were left alone. */
static enum step_result probe_devices(struct agent *agent)
{
    char path[64];
    char name[16];

    for (int i = 0; agent->boot.options.hold && i < VIRTIO_MAX; i++) { /* in the order of a boot */
        snprintf(name, sizeof(name), "virtio%d", i);
        snprintf(path, sizeof(path), VIRTIO_BUS "/devices/%s/driver", name);
        if (access(path, F_OK) < 0)
            file_write(VIRTIO_BUS "/drivers_probe", name); /* one that no driver takes is none of ours */
    }
    return DONE;
}

/* True if no such disk is wanted, or it was found. */
static bool find_disk(const char *serial, char device[NAME_MAX + 1])
{
    return !*serial || *device || device_find(BLOCK_CLASS, "serial", serial, device);
}

static enum step_result find_disks(struct agent *agent)
{
    struct boot *boot = &agent->boot;
    const struct cmdline *options = &boot->options;
    const char *missing = !find_disk(options->root, boot->root_device)         ? options->root
                          : !find_disk(options->data, boot->data_device)       ? options->data
                          : !find_disk(options->modules, boot->modules_device) ? options->modules
                          : !find_disk(options->emulator, boot->emulator_device) ? options->emulator
                                                                                 : NULL;

    if (!missing)
        return DONE;
    if (boot->wait_until == 0)
        boot->wait_until = boot_ns() + (int64_t)DISK_WAIT_MS * NS_PER_MS;
    if (boot_ns() < boot->wait_until)
        return WAITING;
    boot->failure = failure_os(ENODEV, NULL, "disk %s", missing);
    return FAILED;
}

static bool mount_device(const char *device, const char *target, const char *type, unsigned long flags,
                         const char *options, struct failure *failed)
{
    char path[NAME_MAX + 16];

    snprintf(path, sizeof(path), "/dev/%s", device);
    return mount_on(path, target, type, flags, options, failed);
}

static enum step_result mount_lower(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    return result(!*boot->root_device || mount_device(boot->root_device, LOWER, boot->options.rootfs,
                                                      MS_RDONLY, NULL, &boot->failure));
}

static enum step_result mount_upper(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    if (!*boot->root_device)
        return DONE;
    if (!*boot->data_device) {
        bool mounted = mount_on("tmpfs", UPPER, "tmpfs", 0, "mode=0755", &boot->failure);
        boot->memory_mount = mounted ? open(UPPER, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
        return result(mounted);
    }
    /* What is deleted shall not stay in the host's file. */
    const char *options = strcmp(boot->options.datafs, "ext4") == 0 ? "discard" : NULL;
    if (!mount_device(boot->data_device, UPPER, boot->options.datafs, MS_NOATIME, options, &boot->failure))
        return FAILED;
    boot->data_mount = open(UPPER, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return DONE;
}

static enum step_result mount_overlay(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    if (!*boot->root_device)
        return DONE;
    if ((mkdir(UPPER "/upper", 0755) < 0 && errno != EEXIST) ||
        (mkdir(UPPER "/work", 0755) < 0 && errno != EEXIST)) {
        boot->failure = failure_os(errno, NULL, "mkdir in " UPPER);
        return FAILED;
    }
    return result(mount_on("overlay", ROOT, "overlay", 0,
                           "lowerdir=" LOWER ",upperdir=" UPPER "/upper,workdir=" UPPER "/work",
                           &boot->failure));
}

/* Before anything of the root runs, which may all be of another architecture. */
static enum step_result emulate(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    return result(!*boot->emulator_device || emulation_begin(boot->emulator_device, &boot->failure));
}

static enum step_result enter_root(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    return result(!*boot->root_device || mount_switch_root(ROOT, &boot->failure));
}

/* From here on inside the root, where the root's own symbolic links lead to the right place. */

/* A directory of the root that lies beside the overlay, on the file system that holds its upper part. */
static bool mount_beside(int mount_of_upper, char *path, struct failure *failed)
{
    char source[sizeof(DIRECT) + CMDLINE_PATH_MAX];

    snprintf(source, sizeof(source), DIRECT "%s", path);
    bool mounted = fchdir(mount_of_upper) == 0 && make_directories(source) && make_directories(path) &&
                   mount(source, path, NULL, MS_BIND, NULL) == 0;
    if (!mounted)
        *failed = failure_os(errno, NULL, "mount %s", path);
    if (chdir("/") < 0 && mounted) {
        *failed = failure_os(errno, NULL, "/");
        return false;
    }
    return mounted;
}

static enum step_result mount_direct(struct agent *agent)
{
    struct boot *boot = &agent->boot;
    const char *rest = boot->options.direct;
    char path[CMDLINE_PATH_MAX + 1];

    if (!*boot->root_device)
        return DONE;
    while (cmdline_next_path(&rest, path)) {
        int upper = boot->data_mount >= 0 ? boot->data_mount : boot->memory_mount;

        if (!mount_beside(upper, path, &boot->failure))
            return FAILED;
    }
    if (!*rest)
        return DONE;
    boot->failure = failure_os(EINVAL, NULL, "atoll.direct");
    return FAILED;
}

static enum step_result mount_modules(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    if (*boot->modules_device) {
        mkdir("/usr", 0755);
        mkdir("/usr/lib", 0755);
        if (!mount_device(boot->modules_device, "/usr/lib/modules", "erofs", MS_RDONLY, NULL, &boot->failure))
            return FAILED;
        /* Where /lib is no link to usr/lib, programs look here. */
        mkdir("/lib", 0755);
        if (symlink("../usr/lib/modules", "/lib/modules") < 0 && errno != EEXIST)
            console_say("/lib/modules: %s", strerror(errno));
    }
    reached(boot, BOOT_ROOT);
    console_say("root mounted");
    return DONE;
}

static void raise_loopback(void)
{
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd < 0)
        return; /* a kernel without networking */
    if (ioctl(fd, SIOCGIFFLAGS, &request) == 0) {
        request.ifr_flags |= IFF_UP;
        ioctl(fd, SIOCSIFFLAGS, &request);
    }
    close(fd);
}

static enum step_result set_up_system(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    if (!mount_runtime_filesystems(&boot->failure) ||
        !identity_set_machine_id(boot->options.machine_id, &boot->failure))
        return FAILED;
    if (!*boot->options.init)
        mount_cgroups();
    if (!identity_set_hostname(boot->options.hostname, &boot->failure))
        return FAILED;
    if (boot->options.names && !names_write(boot->options.hostname))
        console_say("the files of names cannot be written");
    raise_loopback();
    return DONE;
}

/* Process 1 once the agent has become its child. If it cannot become the root's init, it stays to reap. */
__attribute__((noreturn)) static void become_init(char **argv, char *path, int status)
{
    sigset_t none;

    signal(SIGPIPE, SIG_DFL);
    umask(022);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    argv[0] = path;
    execv(path, argv);

    int error = errno;
    if (write(status, &error, sizeof(error)) < 0) /* the agent, which would report it, is gone */
        console_say("failed: root: %s: %s", path, strerror(error));
    close(status);
    for (;;) {
        if (wait(NULL) < 0)
            sleep(1);
    }
}

static enum step_result hand_over(struct agent *agent)
{
    struct boot *boot = &agent->boot;
    int status[2];

    if (!*boot->options.init)
        return DONE;
    if (pipe2(status, O_CLOEXEC | O_NONBLOCK) < 0) {
        boot->failure = failure_os(errno, NULL, "pipe");
        return FAILED;
    }
    pid_t pid = fork();
    if (pid > 0)
        become_init(agent->argv, boot->options.init, status[1]);
    if (pid < 0) {
        boot->failure = failure_os(errno, NULL, "fork");
        return FAILED;
    }
    close(status[1]);
    boot->init_status = status[0];
    setsid();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    if (!agent_watch_signals(agent)) {
        boot->failure = failure_os(errno, NULL, "signalfd");
        return FAILED;
    }
    return DONE;
}

static enum step_result await_init(struct agent *agent)
{
    struct boot *boot = &agent->boot;
    int error;

    if (boot->init_status < 0)
        return DONE;
    ssize_t got = read(boot->init_status, &error, sizeof(error));
    if (got < 0)
        return WAITING;
    close(boot->init_status);
    boot->init_status = -1;
    if (got > 0) {
        boot->failure = failure_os(error, NULL, "%s", boot->options.init);
        return FAILED;
    }
    agent->mode = AGENT_HANDED_OVER;
    return DONE;
}

static enum step_result (*const steps[])(struct agent *agent) = {
    greet_host,    load_modules, hold,       probe_devices, find_disks,    mount_lower,   mount_upper,
    mount_overlay, emulate,      enter_root, mount_direct,  mount_modules, set_up_system, hand_over,
    await_init,
};

static enum boot_progress stop(struct boot *boot, enum boot_phase phase)
{
    boot->phase = phase;
    if (phase == BOOT_DONE) {
        reached(boot, BOOT_READY);
        console_say("ready");
    } else {
        boot->failure.stage = "root";
        console_say("failed: root: %s", boot->failure.message);
    }
    return BOOT_STOPPED;
}

enum boot_progress boot_step(struct agent *agent)
{
    struct boot *boot = &agent->boot;

    switch (steps[boot->step](agent)) {
    case FAILED:
        return stop(boot, BOOT_FAILED);
    case WAITING:
        return BOOT_WAIT;
    case AGAIN:
        return BOOT_GO_ON;
    case DONE:
        break;
    }
    boot->step++;
    if (boot->phase == BOOT_HELD)
        return BOOT_STOPPED;
    if (boot->step == sizeof(steps) / sizeof(*steps))
        return stop(boot, BOOT_DONE);
    return BOOT_GO_ON;
}
