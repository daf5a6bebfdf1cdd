#include "input.h"

#include <errno.h>
#include <sys/epoll.h>
#include <termios.h>
#include <unistd.h>

static void input_accept(struct input *input, size_t size)
{
    size_t former = input->former < size ? input->former : size;

    input->accepted += size;
    input->former -= former;
    if (input->writer)
        mux_consumed(input->writer, size - former);
}

/* The command reads no more: what is here and what follows is discarded. */
static void input_shut(struct input *input)
{
    size_t waiting = input->waiting.used;

    input->open = false;
    loop_close(&input->source);
    ring_drop(&input->waiting, waiting);
    input_accept(input, waiting);
}

/* Writes what the command takes now and returns how much that was. */
static size_t input_write(struct input *input, const uint8_t *bytes, size_t size)
{
    size_t done = 0;

    while (done < size && input->open) {
        ssize_t put = write(input->source.fd, bytes + done, size - done);

        if (put >= 0)
            done += (size_t)put;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            input_shut(input);
    }
    if (done > 0)
        input->last = (char)bytes[done - 1];
    return done;
}

/* End of file on a terminal is a character. In the middle of a line it only completes the line, so it
 * takes two. */
static bool type_end(struct input *input)
{
    struct termios settings;
    uint8_t twice[2];

    if (tcgetattr(input->source.fd, &settings) < 0)
        return true; /* nobody reads it any more */
    twice[0] = twice[1] = settings.c_cc[VEOF];
    bool in_line = (settings.c_lflag & ICANON) && input->last != '\n' && input->last != '\r' &&
                   input->last != (char)twice[0] && input->accepted > 0;
    return write(input->source.fd, twice, in_line ? 2 : 1) > 0 || errno != EAGAIN;
}

static void input_finish(struct input *input)
{
    if (input->open) {
        if (input->tty && !type_end(input))
            return; /* the terminal is full: again when it can be written to */
        input->open = false;
        loop_close(&input->source);
    }
    input->finished = true;
    if (input->writer)
        mux_ready(input->writer);
}

void input_flush(struct input *input)
{
    while (input->waiting.used > 0) {
        size_t size;
        const uint8_t *bytes = ring_peek(&input->waiting, &size);
        size_t done = input_write(input, bytes, size);

        if (!input->open)
            break;
        ring_drop(&input->waiting, done);
        input_accept(input, done);
        if (done < size)
            return;
    }
    if (input->end && !input->finished)
        input_finish(input);
}

static void input_event(struct source *source, uint32_t events)
{
    struct input *input = list_entry(source, struct input, source);

    if (events & EPOLLERR && !input->tty)
        input_shut(input); /* all readers have closed */
    input_flush(input);
}

static void input_data(struct stream *writer, const uint8_t *bytes, size_t size, bool end)
{
    struct input *input = writer->owner;
    size_t repeated = input->repeated < size ? (size_t)input->repeated : size;
    size_t done = repeated;

    input->repeated -= repeated;
    if (input->waiting.used == 0)
        done += input_write(input, bytes + done, size - done);
    if (!input->open)
        done = size;
    mux_consumed(writer, repeated);
    input_accept(input, done - repeated);
    ring_put(&input->waiting, bytes + done, size - done);
    if (end) {
        input->end = true;
        input_flush(input);
    }
}

/* The guest's side ends when all input has been passed on, which tells the host so. */
static size_t input_pull(struct stream *writer, uint8_t *out, size_t max, bool *end)
{
    const struct input *input = writer->owner;

    (void)out;
    (void)max;
    *end = input->finished;
    return 0;
}

static void input_closed(struct stream *writer)
{
    struct input *input = writer->owner;

    input->writer = NULL;
}

uint64_t input_received(const struct input *input)
{
    return input->accepted + input->waiting.used;
}

void input_rewind(struct input *input, uint64_t offset)
{
    uint64_t received = input_received(input);

    mux_cancel(input->writer, "another writer took over");
    if (offset < received) {
        ring_shorten(&input->waiting, offset > input->accepted ? (size_t)(offset - input->accepted) : 0);
        input->end = input->finished;
    }
}

void input_attach(struct input *input, struct stream *writer, uint64_t offset)
{
    static const struct stream_ops ops = {
        .data = input_data,
        .pull = input_pull,
        .closed = input_closed,
    };

    writer->ops = &ops;
    writer->owner = input;
    input->writer = writer;
    input->repeated = offset < input->accepted ? input->accepted - offset : 0;
    input->former = input->waiting.used;
    input->end = writer->remote_end || input->end;
    input_flush(input);
    mux_ready(writer);
}

bool input_init(struct input *input, bool wanted, bool tty)
{
    input->source = (struct source){-1, input_event};
    input->tty = tty;
    input->end = !wanted;
    ring_init(&input->waiting, 2 * MUX_WINDOW); /* of this writer, and of those before */
    return !wanted || ring_reserve(&input->waiting);
}

void input_opened(struct input *input, int fd)
{
    input->source.fd = fd;
    input->open = fd >= 0;
}

void input_free(struct input *input)
{
    mux_cancel(input->writer, "the execution was released");
    loop_close(&input->source);
    ring_free(&input->waiting);
}
