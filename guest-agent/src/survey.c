#include "survey.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "device.h"
#include "mounts.h"

enum {
    DISK_WAIT_MS = 10000,
    OPEN_TREE = O_RDONLY | O_DIRECTORY | O_CLOEXEC,
    OUTPUT_BUFFER = 65536,
    DESCRIPTORS = 16384, /* two for each level of a tree, and one for each list of names */
};

#define MEMORY "memory" /* in the place of a disk: the upper tree lies in this guest's memory */
#define INIT_DESCRIPTORS "/proc/1/fd"
#define PLACE "/dev/.atoll-survey" /* on a file system that is no disk's */

/* A disk's file system, read-only, at a place that only this process sees. -1 on failure. */
static int mount_disk(const char *serial, const char *name, const char *type, struct failure *failed)
{
    char device[NAME_MAX + 1];
    char source[NAME_MAX + 16];
    char target[64];

    for (int waited = 0; !device_find(BLOCK_CLASS, "serial", serial, device); waited++) {
        if (waited >= DISK_WAIT_MS) {
            *failed = failure_os(ENODEV, NULL, "disk %s", serial);
            return -1;
        }
        usleep(1000);
    }
    snprintf(source, sizeof(source), "/dev/%s", device);
    snprintf(target, sizeof(target), PLACE "/%s-%d", name, (int)getpid());
    const unsigned long flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if ((mkdir(PLACE, 0700) < 0 && errno != EEXIST) || !mount_on(source, target, type, flags, NULL, failed)) {
        if (errno == ENOENT)
            *failed = failure_os(errno, NULL, PLACE);
        return -1;
    }
    int fd = open(target, OPEN_TREE);
    if (fd < 0)
        *failed = failure_os(errno, NULL, "%s", target);
    return fd;
}

/* The upper tree of the root that this guest runs on. The agent keeps a descriptor of its file system. */
static int open_memory(struct failure *failed)
{
    DIR *entries = opendir(INIT_DESCRIPTORS);
    const struct dirent *entry;
    struct statfs system;
    char path[NAME_MAX + 32];
    int found = -1;

    while (entries && found < 0 && (entry = readdir(entries))) {
        snprintf(path, sizeof(path), INIT_DESCRIPTORS "/%s", entry->d_name);
        if (statfs(path, &system) < 0 || system.f_type != TMPFS_MAGIC)
            continue;
        snprintf(path, sizeof(path), INIT_DESCRIPTORS "/%s/work", entry->d_name);
        if (access(path, F_OK) < 0)
            continue;
        snprintf(path, sizeof(path), INIT_DESCRIPTORS "/%s/upper", entry->d_name);
        found = open(path, OPEN_TREE);
    }
    if (entries)
        closedir(entries);
    if (found < 0)
        *failed = failure_os(ENOENT, NULL, "what this guest's root lies in");
    return found;
}

/* An upper file system on which no guest has booted yet is empty. */
static int open_upper(const char *name, struct failure *failed)
{
    if (strcmp(name, MEMORY) == 0) {
        kill(-1, SIGSTOP); /* all but process 1 and this one: nothing changes any more */
        return open_memory(failed);
    }
    int disk = mount_disk(name, "upper", "ext4", failed);
    if (disk < 0)
        return -1;
    int upper = openat(disk, "upper", OPEN_TREE | O_NOFOLLOW);
    if (upper < 0)
        *failed = failure_os(errno, NULL, "disk %s: upper", name);
    close(disk);
    return upper;
}

static bool prepare(struct failure *failed)
{
    const struct rlimit limit = {DESCRIPTORS, DESCRIPTORS};

    setrlimit(RLIMIT_NOFILE, &limit); /* a tree that is too deep for less fails later */
    if (unshare(CLONE_NEWNS) == 0 && mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0)
        return true;
    *failed = failure_os(errno, NULL, "mount namespace");
    return false;
}

static bool run(struct survey *survey, const char *mode, const char *upper_name, const char *lower_name)
{
    int upper = -1;
    int lower = -1;

    if (!prepare(&survey->failure) || (upper = open_upper(upper_name, &survey->failure)) < 0 ||
        (lower = mount_disk(lower_name, "lower", "erofs", &survey->failure)) < 0)
        return false;
    if (strcmp(mode, "read") == 0)
        return survey_read(survey, upper, lower, stdin);
    survey->all = strcmp(mode, "all") == 0;
    return survey_walk(survey, upper, lower);
}

int survey_main(char **argv)
{
    static struct survey survey;
    static char buffer[OUTPUT_BUFFER];

    setvbuf(stdout, buffer, _IOFBF, sizeof(buffer)); /* each write wakes the agent up */
    survey.out = stdout;
    bool done = run(&survey, argv[0], argv[1], argv[2]);
    if (done && fflush(stdout) == 0)
        return 0;
    fprintf(stderr, "%s\n", done ? "output" : survey.failure.message);
    return 1;
}
