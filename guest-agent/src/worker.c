#include "worker.h"

#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "list.h"

static void *run(void *argument)
{
    static const uint64_t one = 1;
    struct work *work = argument;

    work->run(work);
    if (write(work->done.fd, &one, sizeof(one)) < 0)
        return NULL; /* cannot be: the counter was 0 */
    return NULL;
}

static void done_event(struct source *source, uint32_t events)
{
    struct work *work = list_entry(source, struct work, done);
    uint64_t count;

    (void)events;
    if (read(source->fd, &count, sizeof(count)) < 0)
        return; /* watching it said that it can be written to */
    loop_close(source);
    work->finish(work);
}

static bool start_thread(struct work *work)
{
    pthread_attr_t detached;
    pthread_t thread;

    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    errno = pthread_create(&thread, &detached, run, work);
    pthread_attr_destroy(&detached);
    return errno == 0;
}

bool work_start(const struct loop *loop, struct work *work)
{
    work->done = (struct source){eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), done_event};
    if (work->done.fd < 0)
        return false;
    if (loop_watch(loop, &work->done) && start_thread(work))
        return true;
    int error = errno;
    loop_close(&work->done);
    errno = error;
    return false;
}
