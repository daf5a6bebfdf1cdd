#include "loop.h"

#include <stddef.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { BATCH = 64 };

bool loop_init(struct loop *loop)
{
    loop->epoll = epoll_create1(EPOLL_CLOEXEC);
    return loop->epoll >= 0;
}

bool loop_watch(const struct loop *loop, struct source *source)
{
    struct epoll_event event = {
        .events = EPOLLIN | EPOLLOUT | EPOLLET,
        .data.ptr = source,
    };

    return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, source->fd, &event) == 0;
}

void loop_close(struct source *source)
{
    if (source->fd >= 0)
        close(source->fd);
    source->fd = -1;
}

void loop_turn(const struct loop *loop, int timeout)
{
    struct epoll_event events[BATCH];
    int count = epoll_wait(loop->epoll, events, BATCH, timeout);

    for (int i = 0; i < count; i++) {
        struct source *source = events[i].data.ptr;

        if (source->fd >= 0)
            source->handle(source, events[i].events);
    }
}
