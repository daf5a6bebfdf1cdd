#include "exec.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "clock.h"

static void cancel(struct stream *stream, const char *why)
{
    struct failure failed = failure(FAIL_CANCELLED, "%s", why);

    if (stream)
        mux_reset(stream, &failed);
}

/* Output. */

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
        output_fill(output, EXEC_OUTPUT_MAX);
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
    output_fill(output, EXEC_OUTPUT_MAX);
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

    cancel(output->reader, "another reader took over");
    reader->ops = &ops;
    reader->owner = output;
    output->reader = reader;
    output->sent = offset;
    output_forget(output, (size_t)(offset - output->oldest));
}

/* Bytes that the command had written before it ended. Those in a pipe can be counted without reading them, so a
 * full buffer does not matter; those in a terminal cannot, since the kernel holds them in two places. */
static uint64_t output_written(struct output *output)
{
    int unread = 0;

    if (output_at_end(output))
        return output_produced(output);
    if (output->tty) {
        output->readable = true;
        output_fill(output, EXEC_OUTPUT_MAX + EXEC_TTY_SLACK);
    } else if (ioctl(output->source.fd, FIONREAD, &unread) < 0) {
        unread = 0;
    }
    return output_produced(output) + (unsigned)unread;
}

static bool output_init(struct output *output, bool tty)
{
    output->source = (struct source){-1, output_event};
    output->tty = tty;
    output->kept = tty;
    ring_init(&output->held, EXEC_OUTPUT_MAX + (tty ? EXEC_TTY_SLACK : 0));
    return ring_reserve(&output->held);
}

static void output_free(struct output *output)
{
    cancel(output->reader, "the execution was released");
    loop_close(&output->source);
    ring_free(&output->held);
}

/* Input. */

static void input_accept(struct input *input, size_t size)
{
    input->accepted += size;
    if (input->writer)
        mux_consumed(input->writer, size);
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

static void input_flush(struct input *input)
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

void input_rewind(struct input *input)
{
    cancel(input->writer, "another writer took over");
    ring_drop(&input->waiting, input->waiting.used);
    input->end = input->finished;
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
    input->repeated = input->accepted - offset;
    input->end = writer->remote_end || input->finished;
    input_flush(input);
    mux_ready(writer);
}

static bool input_init(struct input *input, const struct launch *start)
{
    input->source = (struct source){-1, input_event};
    input->tty = start->tty;
    input->end = !start->input;
    ring_init(&input->waiting, EXEC_INPUT_MAX);
    return !start->input || ring_reserve(&input->waiting);
}

static void input_free(struct input *input)
{
    cancel(input->writer, "the execution was released");
    loop_close(&input->source);
    ring_free(&input->waiting);
}

/* Executions. */

void executions_init(struct executions *executions, const struct loop *loop)
{
    *executions = (struct executions){.loop = loop};
    list_init(&executions->all);
}

struct execution *execution_find(const struct executions *executions, const char *id)
{
    list_each(item, after, &executions->all) {
        struct execution *execution = list_entry(item, struct execution, link);

        if (strcmp(execution->id, id) == 0)
            return execution;
    }
    return NULL;
}

static void execution_free(struct execution *execution)
{
    list_each(item, after, &execution->waiters)
        cancel(list_entry(item, struct stream, link), "the execution was released");
    output_free(&execution->outputs[0]);
    output_free(&execution->outputs[1]);
    input_free(&execution->input);
    free(execution);
}

static struct execution *execution_new(const char *id, const struct launch *start)
{
    struct execution *execution = calloc(1, sizeof(*execution));

    if (!execution)
        return NULL;
    strcpy(execution->id, id);
    execution->tty = start->tty;
    execution->has_input = start->input;
    list_init(&execution->link);
    list_init(&execution->waiters);
    bool whole = output_init(&execution->outputs[0], start->tty);
    whole = output_init(&execution->outputs[1], false) && whole;
    whole = input_init(&execution->input, start) && whole;
    if (whole)
        return execution;
    execution_free(execution);
    return NULL;
}

static bool watch(const struct executions *executions, struct execution *execution,
                  const struct launched *launched)
{
    struct source *sources[] = {
        &execution->input.source,
        &execution->outputs[0].source,
        &execution->outputs[1].source,
    };
    bool watched = true;

    sources[0]->fd = launched->input;
    sources[1]->fd = launched->output;
    sources[2]->fd = launched->error;
    for (size_t i = 0; i < 3; i++)
        watched = (sources[i]->fd < 0 || loop_watch(executions->loop, sources[i])) && watched;
    return watched;
}

struct execution *execution_start(struct executions *executions, const char *id,
                                  const struct launch *start, struct failure *failed)
{
    struct launched launched;
    struct execution *execution =
        executions->count < EXEC_MAX ? execution_new(id, start) : NULL;

    if (!execution) {
        *failed = failure(FAIL_RESOURCE, "too many executions");
        return NULL;
    }
    execution->started = boot_ns();
    if (!launch(start, &launched, failed)) {
        execution_free(execution);
        return NULL;
    }
    execution->pid = launched.pid;
    execution->running = true;
    execution->input.open = launched.input >= 0;
    list_append(&executions->all, &execution->link);
    executions->count++;
    if (!watch(executions, execution, &launched)) {
        *failed = failure_os(errno, "exec", "epoll");
        execution_release(executions, execution);
        return NULL;
    }
    input_flush(&execution->input);
    return execution;
}

void execution_release(struct executions *executions, struct execution *execution)
{
    if (execution->running)
        launch_signal(execution->pid, SIGKILL);
    list_remove(&execution->link);
    executions->count--;
    execution_free(execution);
}

struct execution *execution_ended(const struct executions *executions, pid_t pid, int status,
                                  const struct rusage *usage)
{
    list_each(item, after, &executions->all) {
        struct execution *execution = list_entry(item, struct execution, link);

        if (execution->pid != pid || !execution->running)
            continue;
        execution->running = false;
        execution->ended = boot_ns();
        execution->status = status;
        execution->usage = *usage;
        execution->outputs[0].kept = false;
        for (size_t i = 0; i < 2; i++)
            execution->written[i] = output_written(&execution->outputs[i]);
        return execution;
    }
    return NULL;
}
