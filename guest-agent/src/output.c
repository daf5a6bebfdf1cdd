#include "output.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

uint64_t output_produced(const struct output *output)
{
    return output->oldest + output->held.used;
}

static bool output_at_end(const struct output *output)
{
    return output->source.fd < 0;
}

static void output_notify(struct output *output)
{
    if (output->reader)
        mux_ready(output->reader);
}

/* Reads until `max` bytes are held, or there are no more for now. */
static void output_fill(struct output *output, size_t max)
{
    while (output->readable && output->held.used < max) {
        size_t room;
        uint8_t *space = ring_space(&output->held, &room);
        size_t want = max - output->held.used < room ? max - output->held.used : room;
        ssize_t got = read(output->source.fd, space, want);

        if (got > 0) {
            ring_filled(&output->held, (size_t)got);
        } else if (got < 0 && errno == EAGAIN) {
            output->readable = false;
        } else if (got == 0 || errno != EINTR) { /* a terminal that nobody has open says EIO */
            output->readable = false;
            if (!output->kept)
                loop_close(&output->source);
        }
    }
    output_notify(output);
}

static void output_event(struct source *source, uint32_t events)
{
    struct output *output = list_entry(source, struct output, source);

    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        output->readable = true;
        output_fill(output, OUTPUT_MAX);
    }
}

static size_t output_pull(struct stream *reader, uint8_t *out, size_t max, bool *end)
{
    struct output *output = reader->owner;
    uint64_t unsent = output_produced(output) - output->sent;
    size_t size = unsent < max ? (size_t)unsent : max;

    ring_copy(&output->held, (size_t)(output->sent - output->oldest), out, size);
    output->sent += size;
    *end = output_at_end(output) && size == unsent;
    return size;
}

static void output_forget(struct output *output, size_t size)
{
    ring_drop(&output->held, size);
    output->oldest += size;
    output_fill(output, OUTPUT_MAX);
}

static void output_credit(struct stream *reader, size_t size)
{
    output_forget(reader->owner, size);
}

static void output_closed(struct stream *reader)
{
    struct output *output = reader->owner;

    output->reader = NULL;
}

void output_attach(struct output *output, struct stream *reader, uint64_t offset)
{
    static const struct stream_ops ops = {
        .pull = output_pull,
        .credit = output_credit,
        .closed = output_closed,
    };

    mux_cancel(output->reader, "another reader took over");
    reader->ops = &ops;
    reader->owner = output;
    output->reader = reader;
    output->sent = offset;
    output_forget(output, (size_t)(offset - output->oldest));
}

/* Bytes in a pipe can be counted without reading them, so a full buffer does not matter; those in a terminal
 * cannot, since the kernel holds them in two places. */
uint64_t output_written(struct output *output)
{
    int unread = 0;

    if (output_at_end(output))
        return output_produced(output);
    if (output->tty) {
        output->readable = true;
        output_fill(output, OUTPUT_MAX + OUTPUT_TTY_SLACK);
    } else if (ioctl(output->source.fd, FIONREAD, &unread) < 0) {
        unread = 0;
    }
    return output_produced(output) + (unsigned)unread;
}

bool output_init(struct output *output, bool tty)
{
    output->source = (struct source){-1, output_event};
    output->tty = tty;
    output->kept = tty;
    ring_init(&output->held, OUTPUT_MAX + (tty ? OUTPUT_TTY_SLACK : 0));
    return ring_reserve(&output->held);
}

void output_free(struct output *output)
{
    mux_cancel(output->reader, "the execution was released");
    loop_close(&output->source);
    ring_free(&output->held);
}
