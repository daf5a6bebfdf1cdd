/*
 * data.grow, data.trim, data.limit: the file system under the root's overlay. Agent protocol, section 5.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "growth.h"
#include "task.h"

#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t)

/* The superblock of ext4, as on the disk: where it is, and what of it is read. */
enum {
    SUPERBLOCK_AT = 1024,
    SUPERBLOCK_SIZE = 1024,
    BLOCKS_LOW = 4,
    LOG_BLOCK_SIZE = 24,
    MAGIC_LOW = 56,
    BLOCKS_HIGH = 0x150,
    SMALLEST_BLOCK = 1024,
    LARGEST_LOG_BLOCK_SIZE = 6,
};

enum { LIMIT_MIN = 4096 };

struct upkeep {
    struct task task;
    int mount; /* the data disk's file system */
    char device[sizeof("/dev/") + NAME_MAX];
    int64_t before;
    int64_t size;
    int64_t trimmed;
};

struct geometry {
    uint64_t blocks;
    uint64_t block_size;
};

/* The counts of statfs(2) leave out what the file system needs for itself. */
static bool read_geometry(int device, struct geometry *geometry)
{
    uint8_t block[SUPERBLOCK_SIZE];

    if (pread(device, block, sizeof(block), SUPERBLOCK_AT) != sizeof(block))
        return false;
    uint32_t log_size = wire_get_u32(block + LOG_BLOCK_SIZE);
    if (block[MAGIC_LOW] != 0x53 || block[MAGIC_LOW + 1] != 0xef || log_size > LARGEST_LOG_BLOCK_SIZE) {
        errno = ENOTSUP; /* not ext4 */
        return false;
    }
    geometry->blocks = wire_get_u32(block + BLOCKS_LOW) | (uint64_t)wire_get_u32(block + BLOCKS_HIGH) << 32;
    geometry->block_size = (uint64_t)SMALLEST_BLOCK << log_size;
    return true;
}

/* The C libraries disagree on the type of ioctl()'s request. */
static bool control(int fd, unsigned long request, void *argument)
{
    return syscall(SYS_ioctl, fd, request, argument) == 0;
}

static bool grow(struct upkeep *upkeep, int device, int root)
{
    struct geometry geometry;
    uint64_t disk;

    if (!control(device, BLKGETSIZE64, &disk) || !read_geometry(device, &geometry))
        return false;
    upkeep->before = (int64_t)(geometry.blocks * geometry.block_size);
    uint64_t wanted = disk / geometry.block_size;
    if (wanted > geometry.blocks &&
        (!control(root, EXT4_IOC_RESIZE_FS, &wanted) || !read_geometry(device, &geometry)))
        return false;
    upkeep->size = (int64_t)(geometry.blocks * geometry.block_size);
    return true;
}

static bool trim(struct upkeep *upkeep, int device, int root)
{
    struct fstrim_range range = {.len = UINT64_MAX};

    (void)device;
    if (!control(root, FITRIM, &range))
        return false;
    upkeep->trimmed = (int64_t)range.len;
    return true;
}

/* The mount is known by an O_PATH descriptor, which takes no ioctl. */
static bool on_data_disk(struct task *task, struct failure *failed, const char *what,
                         bool (*act)(struct upkeep *upkeep, int device, int root))
{
    struct upkeep *upkeep = list_entry(task, struct upkeep, task);
    int root = openat(upkeep->mount, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int device = root < 0 ? -1 : open(upkeep->device, O_RDONLY | O_CLOEXEC);
    bool done = device >= 0 && act(upkeep, device, root);

    if (!done)
        *failed = failure_os(errno, NULL, "%s %s", what, upkeep->device);
    if (device >= 0)
        close(device);
    if (root >= 0)
        close(root);
    return done;
}

static bool run_grow(struct task *task, struct failure *failed)
{
    return on_data_disk(task, failed, "grow", grow);
}

static bool run_trim(struct task *task, struct failure *failed)
{
    return on_data_disk(task, failed, "trim", trim);
}

static void reply_sizes(const struct task *task, struct mp_writer *writer)
{
    const struct upkeep *upkeep = (const struct upkeep *)(const void *)task;

    mp_write_map(writer, 2);
    mp_put_int(writer, "before", upkeep->before);
    mp_put_int(writer, "size", upkeep->size);
}

static void reply_trimmed(const struct task *task, struct mp_writer *writer)
{
    const struct upkeep *upkeep = (const struct upkeep *)(const void *)task;

    mp_write_map(writer, 1);
    mp_put_int(writer, "trimmed", upkeep->trimmed);
}

static struct upkeep *upkeep_new(struct request *request)
{
    const struct boot *boot = &request->agent->boot;
    bool hosted = request->agent->mode == AGENT_HOSTED;

    if (!hosted && boot->data_mount < 0) {
        request_fail(request, failure_os(ENODEV, NULL, "no data disk"));
        return NULL;
    }
    struct upkeep *upkeep = task_new(request, sizeof(*upkeep));
    if (!upkeep)
        return NULL;
    upkeep->mount = boot->data_mount;
    snprintf(upkeep->device, sizeof(upkeep->device), "/dev/%s", boot->data_device);
    return upkeep;
}

static void data_grow(struct request *request)
{
    struct upkeep *upkeep = upkeep_new(request);
    struct statvfs root;

    if (!upkeep)
        return;
    if (statvfs("/", &root) == 0)
        upkeep->before = upkeep->size = (int64_t)(root.f_blocks * root.f_frsize); /* when hosted */
    upkeep->task.run = run_grow;
    upkeep->task.reply = reply_sizes;
    task_start(request, &upkeep->task);
}

static void data_trim(struct request *request)
{
    struct upkeep *upkeep = upkeep_new(request);

    if (!upkeep)
        return;
    upkeep->task.run = run_trim;
    upkeep->task.reply = reply_trimmed;
    task_start(request, &upkeep->task);
}

/* At once: to remount a tmpfs takes no time. */
static void data_limit(struct request *request)
{
    const struct boot *boot = &request->agent->boot;
    struct failure failed;
    int64_t size;

    if (!param_int(request, "size", LIMIT_MIN, INT64_MAX, &size))
        return;
    if (request->agent->mode == AGENT_HOSTED)
        request_reply_empty(request);
    else if (boot->memory_mount < 0)
        request_fail(request, failure_os(ENODEV, NULL, "the root is not in memory"));
    else if (!growth_limit_root(boot->memory_mount, size, &failed))
        request_fail(request, failed);
    else
        request_reply_empty(request);
}

const struct method data_methods[] = {
    {"data.grow", true, data_grow},
    {"data.trim", true, data_trim},
    {"data.limit", true, data_limit},
    {NULL, false, NULL},
};
