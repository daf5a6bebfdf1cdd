/*
 * Event sources on one epoll instance. All are edge-triggered: a source is ready until a read or write
 * says EAGAIN. That also keeps a virtio port without a host, which reports a hang-up all the time, from
 * keeping the processor busy.
 *
 * A handler may close its own source, but must not free memory that holds another one: events for it may
 * follow in the same batch.
 */
#ifndef ATOLL_LOOP_H
#define ATOLL_LOOP_H

#include <stdbool.h>
#include <stdint.h>

struct loop {
    int epoll;
};

struct source {
    int fd; /* -1 when closed */
    void (*handle)(struct source *source, uint32_t events);
};

bool loop_init(struct loop *loop);

/* Watches source->fd; false, with errno set, if that cannot be done. */
bool loop_watch(const struct loop *loop, struct source *source);

/* Closes the descriptor, if it is open. */
void loop_close(struct source *source);

/* Waits for at most `timeout` ms (-1: no limit) and handles a batch of events. */
void loop_turn(const struct loop *loop, int timeout);

#endif
