#include "link.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { READS_PER_TURN = 16, WRITES_PER_TURN = 8 };

static void link_event(struct source *source, uint32_t events)
{
    struct link *link = list_entry(source, struct link, source);

    bool connected = !(events & EPOLLHUP);

    link->lost = link->lost || (link->connected && !connected);
    link->connected = connected;
    link->seen = link->seen || link->connected;
    if (events & (EPOLLIN | EPOLLHUP))
        link->readable = true;
    if (events & EPOLLOUT)
        link->writable = true;
}

void link_init(struct link *link)
{
    *link = (struct link){.source = {-1, link_event}};
    wire_reader_init(&link->in);
}

void link_close(struct link *link)
{
    loop_close(&link->source);
    link_init(link);
}

bool link_open(struct link *link, const struct loop *loop, int fd, bool serial)
{
    link_init(link);
    link->source.fd = fd;
    link->serial = serial;
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 && loop_watch(loop, &link->source);
}

/* Handles what has been read; false if the mux must send first. */
static bool handle_frames(struct link *link, struct mux *mux)
{
    struct wire_frame frame;

    while (mux_accepts(mux)) {
        if (!wire_reader_next(&link->in, &frame))
            return true;
        if (mux_receive(mux, &frame)) {
            link->out_start = 0;
            link->out_end = 0;
        }
    }
    return false;
}

bool link_receive(struct link *link, struct mux *mux)
{
    for (int reads = 0; reads < READS_PER_TURN; reads++) {
        if (!handle_frames(link, mux))
            return true;
        if (!link->readable)
            return false;

        size_t room;
        uint8_t *space = wire_reader_space(&link->in, &room);
        ssize_t got = read(link->source.fd, space, room);
        if (got > 0) {
            wire_reader_filled(&link->in, (size_t)got);
        } else if (got == 0 || errno != EINTR) {
            link->readable = false;
            link->closed = !link->serial && (got == 0 || errno != EAGAIN);
        }
    }
    return true;
}

bool link_send(struct link *link, struct mux *mux)
{
    for (int writes = 0; writes < WRITES_PER_TURN && link->writable; writes++) {
        if (link->out_start == link->out_end) {
            link->out_start = 0;
            link->out_end = mux_pull(mux, link->out, sizeof(link->out));
        }
        if (link->out_end == 0)
            return false;
        ssize_t put = write(link->source.fd, link->out + link->out_start, link->out_end - link->out_start);
        if (put >= 0)
            link->out_start += (size_t)put;
        else if (errno != EINTR)
            link->writable = false;
    }
    return link->writable;
}

bool link_flushed(const struct link *link, const struct mux *mux)
{
    return link->out_start == link->out_end && mux->control.used == 0;
}
