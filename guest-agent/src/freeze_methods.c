/*
 * data.freeze, data.thaw: the data disk's file system stands still, complete on its disk. Agent protocol,
 * section 5. It never stays so: whoever froze it may be gone.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "task.h"

enum { LIMIT_DEFAULT_MS = 10000, LIMIT_MAX_MS = 600000 };

struct freezing {
    struct task task;
    int root;
    int64_t limit_ms;
};

/* The C libraries disagree on the type of ioctl()'s request. */
static bool control(int fd, unsigned long request)
{
    return syscall(SYS_ioctl, fd, request, 0) == 0;
}

/* Whether it was frozen until now. */
static bool thaw(struct agent *agent)
{
    struct freezer *freezer = &agent->freezer;
    bool frozen = freezer->root >= 0 && control(freezer->root, FITHAW);

    loop_close(&freezer->timer);
    if (freezer->root >= 0)
        close(freezer->root);
    freezer->root = -1;
    return frozen;
}

static void expire(struct source *source, uint32_t events)
{
    (void)events;
    thaw(list_entry(source, struct agent, freezer.timer));
}

static bool arm(struct agent *agent, int64_t limit_ms)
{
    struct source *timer = &agent->freezer.timer;
    const struct itimerspec limit = {
        .it_value = {.tv_sec = limit_ms / 1000, .tv_nsec = limit_ms % 1000 * NS_PER_MS},
    };

    *timer = (struct source){
        .fd = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK),
        .handle = expire,
    };
    return timer->fd >= 0 && timerfd_settime(timer->fd, 0, &limit, NULL) == 0 &&
           loop_watch(&agent->loop, timer);
}

static bool run_freeze(struct task *task, struct failure *failed)
{
    const struct freezing *freezing = list_entry(task, struct freezing, task);

    if (control(freezing->root, FIFREEZE))
        return true;
    *failed = failure_os(errno, NULL, "freeze");
    return false;
}

/* From here on it is sure that it ends. */
static void release_freeze(struct task *task)
{
    struct freezing *freezing = list_entry(task, struct freezing, task);

    if (!task->success) {
        if (freezing->root >= 0)
            close(freezing->root);
        return;
    }
    task->agent->freezer.root = freezing->root;
    if (freezing->root >= 0 && !arm(task->agent, freezing->limit_ms))
        thaw(task->agent);
}

static void data_freeze(struct request *request)
{
    struct agent *agent = request->agent;
    bool hosted = agent->mode == AGENT_HOSTED;
    int64_t limit_ms;
    int root = -1;

    if (!param_int_or(request, "limit", 1, LIMIT_MAX_MS, &limit_ms, LIMIT_DEFAULT_MS))
        return;
    if (!hosted && agent->freezer.root >= 0) {
        request_fail(request, failure_os(EBUSY, NULL, "frozen already"));
        return;
    }
    /* The mount is known by an O_PATH descriptor, which takes no ioctl. */
    if (!hosted && (root = openat(agent->boot.data_mount, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
        request_fail(request, failure_os(ENODEV, NULL, "no data disk"));
        return;
    }
    struct freezing *freezing = task_new(request, sizeof(*freezing));
    if (!freezing) {
        if (root >= 0)
            close(root);
        return;
    }
    freezing->root = root;
    freezing->limit_ms = limit_ms;
    freezing->task.run = run_freeze;
    freezing->task.release = release_freeze;
    task_start(request, &freezing->task);
}

static void data_thaw(struct request *request)
{
    struct mp_writer writer = request_writer(request);

    mp_write_map(&writer, 1);
    mp_put_bool(&writer, "frozen", thaw(request->agent));
    request_reply(request, &writer, true);
}

const struct method freeze_methods[] = {
    {"data.freeze", true, data_freeze},
    {"data.thaw", true, data_thaw},
    {NULL, false, NULL},
};
