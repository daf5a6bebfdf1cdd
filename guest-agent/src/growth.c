#include "growth.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "file.h"

/* Memory for one more of each, bytes: fork_init() and files_maxfiles_init() of Linux. */
enum {
    PER_THREAD = 8 * 16384,
    PER_FILE = 10 * 1024,
};

/* Half of the memory, and a file for every other page: the defaults of tmpfs. */
static void tmpfs_options(char *options, size_t size, int64_t growth)
{
    struct sysinfo info;

    sysinfo(&info);
    uint64_t memory = (uint64_t)info.totalram * info.mem_unit + (uint64_t)growth;
    snprintf(options, size, "size=%llu,nr_inodes=%llu", (unsigned long long)(memory / 2),
             (unsigned long long)(memory / (uint64_t)sysconf(_SC_PAGESIZE) / 2));
}

static void add_to(const char *path, int64_t more)
{
    char text[32];

    if (!file_read_line(path, text, sizeof(text)))
        return;
    snprintf(text, sizeof(text), "%lld", strtoll(text, NULL, 10) + (long long)more);
    file_write(path, text);
}

static bool add_to_limit(struct rlimit *limit, rlim_t more)
{
    if (limit->rlim_cur == RLIM_INFINITY || limit->rlim_max == RLIM_INFINITY)
        return false;
    limit->rlim_cur += more;
    limit->rlim_max += more;
    return true;
}

/* Of what the agent starts from now on. */
static void allow_processes(rlim_t more)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NPROC, &limit) == 0 && add_to_limit(&limit, more))
        setrlimit(RLIMIT_NPROC, &limit);
    if (getrlimit(RLIMIT_SIGPENDING, &limit) == 0 && add_to_limit(&limit, more))
        setrlimit(RLIMIT_SIGPENDING, &limit);
}

static bool remount(int upper, const char *options, struct failure *failed)
{
    bool resized = fchdir(upper) == 0 && mount(NULL, ".", NULL, MS_REMOUNT, options) == 0;
    int error = errno;

    if (chdir("/") == 0 && resized)
        return true;
    *failed = failure_os(error, NULL, "resize the root");
    return false;
}

bool growth_limit_root(int upper, int64_t size, struct failure *failed)
{
    char options[32];

    snprintf(options, sizeof(options), "size=%lld", (long long)size);
    return remount(upper, options, failed);
}

bool growth_raise_limits(int upper, int64_t growth, struct failure *failed)
{
    const unsigned long flags = MS_REMOUNT | MS_NOSUID | MS_NODEV;
    char options[64];

    if (growth == 0)
        return true;
    tmpfs_options(options, sizeof(options), growth);
    if (upper >= 0 && !remount(upper, options, failed))
        return false;
    mount(NULL, "/run", NULL, flags, options);
    mount(NULL, "/dev/shm", NULL, flags, options);
    add_to("/proc/sys/kernel/threads-max", growth / PER_THREAD);
    add_to("/proc/sys/fs/file-max", growth / PER_FILE);
    allow_processes((rlim_t)(growth / PER_THREAD / 2));
    return true;
}
