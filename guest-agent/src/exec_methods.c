/*
 * exec.*: requests made into calls on executions, and answers. Agent protocol, section 6.
 */
#include "exec_methods.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>

#include "command.h"

enum {
    SIGNAL_MAX = 64,
    ITEM_OVERHEAD = 80,    /* of an item of exec.list, and of the rest of the reply */
    ARGUMENT_OVERHEAD = 5, /* what stands before each argument there */
};

static bool is_id(const char *id)
{
    static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-";

    return *id && id[strspn(id, allowed)] == '\0';
}

static bool param_id(struct request *request, char id[EXEC_ID_MAX + 1])
{
    if (!param_text(request, "id", id, EXEC_ID_MAX + 1))
        return false;
    if (is_id(id))
        return true;
    request_fail(request, failure(FAIL_INVALID, "id: not 1 to 64 of A-Z a-z 0-9 . _ -"));
    return false;
}

/* The execution that the request is about, or NULL after failing it. */
static struct execution *find(struct request *request)
{
    char id[EXEC_ID_MAX + 1];

    if (!param_id(request, id))
        return NULL;
    struct execution *execution = execution_find(&request->agent->executions, id);
    if (!execution)
        request_fail(request, failure(FAIL_NOT_FOUND, "no execution %s", id));
    return execution;
}

static void exec_start(struct request *request)
{
    static struct command command; /* large */
    struct executions *executions = &request->agent->executions;
    struct mp_writer writer = request_writer(request);
    char id[EXEC_ID_MAX + 1];
    struct failure failed;

    if (!param_id(request, id))
        return;
    if (execution_find(executions, id)) {
        request_fail(request, failure(FAIL_EXISTS, "execution %s exists", id));
        return;
    }
    if (!command_decode(request, &command))
        return;
    const struct execution *execution = execution_start(executions, id, &command.launch, &failed);
    command_free(&command);
    if (!execution) {
        request_fail(request, failed);
        return;
    }
    mp_write_map(&writer, 1);
    mp_put_int(&writer, "pid", execution->pid);
    request_reply(request, &writer, true);
}

static void reply_offset(struct request *request, uint64_t offset)
{
    struct mp_writer writer = request_writer(request);

    mp_write_map(&writer, 1);
    mp_put_int(&writer, "offset", (int64_t)offset);
    request_reply(request, &writer, false);
}

/* Where the writer's data begins: behind all that is here if it is to be added to that. */
static bool decode_start(struct request *request, const struct input *input, uint64_t *start)
{
    bool append;
    int64_t offset;

    if (!param_bool_or(request, "append", &append, false) ||
        !param_int_or(request, "offset", 0, INT64_MAX, &offset, 0))
        return false;
    *start = append ? input_received(input) : (uint64_t)offset;
    if (append && input->end)
        request_fail(request, failure(FAIL_INVALID, "its input has ended"));
    else if (*start > input_received(input))
        request_fail(request, failure(FAIL_INVALID, "offset: not received so far"));
    else if (*start > input->accepted + MUX_WINDOW)
        request_fail(request, failure(FAIL_RESOURCE, "it has not read what was written before"));
    else
        return true;
    return false;
}

static void exec_stdin(struct request *request)
{
    struct execution *execution = find(request);
    uint64_t start;

    if (!execution)
        return;
    struct input *input = &execution->input;
    if (!execution->has_input) {
        request_fail(request, failure(FAIL_INVALID, "started without stdin"));
        return;
    }
    if (!decode_start(request, input, &start))
        return;
    input_rewind(input, start);
    reply_offset(request, start > input->accepted ? start : input->accepted);
    input_attach(input, request->stream, start);
}

static void exec_output(struct request *request)
{
    struct execution *execution = find(request);
    int64_t offset;
    int64_t fd;

    if (!execution || !param_int(request, "fd", 1, 2, &fd))
        return;
    struct output *output = &execution->outputs[fd - 1];
    if (!param_int_or(request, "offset", 0, INT64_MAX, &offset, (int64_t)output->oldest))
        return;
    if ((uint64_t)offset < output->oldest) {
        request_fail(request, failure(FAIL_GONE, "offset: no longer held"));
        return;
    }
    if ((uint64_t)offset > output_produced(output)) {
        request_fail(request, failure(FAIL_INVALID, "offset: not written so far"));
        return;
    }
    reply_offset(request, (uint64_t)offset);
    output_attach(output, request->stream, (uint64_t)offset);
}

static int64_t microseconds(const struct timeval *time)
{
    return (int64_t)time->tv_sec * 1000000 + time->tv_usec;
}

static void reply_end(struct request *request, const struct execution *execution)
{
    struct mp_writer writer = request_writer(request);
    bool signaled = WIFSIGNALED(execution->status);

    mp_write_map(&writer, signaled ? 9 : 8);
    if (signaled) {
        mp_put_int(&writer, "signal", WTERMSIG(execution->status));
        mp_put_bool(&writer, "core", WCOREDUMP(execution->status));
    } else {
        mp_put_int(&writer, "code", WEXITSTATUS(execution->status));
    }
    mp_put_int(&writer, "stdout", (int64_t)execution->written[0]);
    mp_put_int(&writer, "stderr", (int64_t)execution->written[1]);
    mp_put_int(&writer, "started", execution->started);
    mp_put_int(&writer, "ended", execution->ended);
    mp_put_int(&writer, "user", microseconds(&execution->usage.ru_utime));
    mp_put_int(&writer, "system", microseconds(&execution->usage.ru_stime));
    mp_put_int(&writer, "maxrss", (int64_t)execution->usage.ru_maxrss * 1024);
    request_reply(request, &writer, true);
}

static void exec_wait(struct request *request)
{
    struct execution *execution = find(request);

    if (!execution)
        return;
    if (execution->running)
        list_append(&execution->waiters, &request->stream->link);
    else
        reply_end(request, execution);
}

void exec_process_ended(struct agent *agent, pid_t pid, int status, const struct rusage *usage)
{
    struct execution *execution = execution_ended(&agent->executions, pid, status, usage);

    if (!execution)
        return; /* an orphan, or released */
    list_each(item, after, &execution->waiters) {
        struct request request = {.agent = agent, .stream = list_entry(item, struct stream, link)};

        list_remove(item);
        reply_end(&request, execution);
    }
}

static void answer(struct request *request, int error, const char *what)
{
    if (error)
        request_fail(request, failure_os(error, NULL, "%s", what));
    else
        request_reply_empty(request);
}

static void exec_signal(struct request *request)
{
    const struct execution *execution = find(request);
    int64_t signal;

    if (!execution || !param_int(request, "signal", 1, SIGNAL_MAX, &signal))
        return;
    /* Once the command has been waited for, the number of its group may be another's. */
    answer(request, execution->running ? launch_signal(execution->pid, (int)signal) : ESRCH, "kill");
}

static void exec_resize(struct request *request)
{
    const struct execution *execution = find(request);
    int64_t rows;
    int64_t columns;

    if (!execution || !param_int(request, "rows", 1, UINT16_MAX, &rows) ||
        !param_int(request, "cols", 1, UINT16_MAX, &columns))
        return;
    if (!execution->tty) {
        request_fail(request, failure(FAIL_INVALID, "started without a terminal"));
        return;
    }
    int tty = execution->outputs[0].source.fd;
    int error = tty >= 0 ? launch_resize(tty, (uint16_t)rows, (uint16_t)columns) : ESRCH;
    answer(request, error, "TIOCSWINSZ");
}

static size_t count_arguments(const struct execution *execution)
{
    size_t count = 0;

    for (size_t i = 0; i < execution->command_size; i++)
        count += execution->command[i] == '\0';
    return count;
}

/* The most that an item of exec.list takes: its id, its arguments, and the rest. */
static size_t item_room(const struct execution *execution)
{
    return strlen(execution->id) + execution->command_size + ARGUMENT_OVERHEAD * count_arguments(execution) +
           ITEM_OVERHEAD;
}

static void write_item(struct mp_writer *writer, const struct execution *execution)
{
    const char *argument = execution->command;
    size_t count = count_arguments(execution);

    mp_write_map(writer, 6);
    mp_put_str(writer, "id", execution->id);
    mp_put_int(writer, "pid", execution->pid);
    mp_put_bool(writer, "running", execution->running);
    mp_put_bool(writer, "stdin", execution->has_input);
    mp_put_bool(writer, "tty", execution->tty);
    mp_write_str(writer, "argv");
    mp_write_array(writer, count);
    for (; count > 0; count--, argument += strlen(argument) + 1)
        mp_write_bin(writer, (const uint8_t *)argument, strlen(argument));
}

/* How many executions behind the first `skip` fit into `room`; `more` tells whether others are left. */
static size_t count_fitting(const struct executions *executions, size_t skip, size_t room, bool *more)
{
    size_t count = 0;

    *more = false;
    list_each(item, after, &executions->all) {
        const struct execution *execution = list_entry(item, struct execution, link);

        if (skip > 0) {
            skip--;
            continue;
        }
        *more = item_room(execution) > room;
        if (*more)
            break;
        room -= item_room(execution);
        count++;
    }
    return count;
}

static void exec_list(struct request *request)
{
    const struct executions *executions = &request->agent->executions;
    struct mp_writer writer = request_writer(request);
    int64_t skip;
    bool more;

    if (!param_int_or(request, "skip", 0, EXEC_MAX, &skip, 0))
        return;
    size_t listed = count_fitting(executions, (size_t)skip, WIRE_PAYLOAD_MAX - ITEM_OVERHEAD, &more);

    mp_write_map(&writer, 2);
    mp_put_bool(&writer, "more", more);
    mp_write_str(&writer, "executions");
    mp_write_array(&writer, listed);
    list_each(item, after, &executions->all) {
        const struct execution *execution = list_entry(item, struct execution, link);

        if (skip-- > 0)
            continue;
        if (listed-- == 0)
            break;
        write_item(&writer, execution);
    }
    request_reply(request, &writer, true);
}

/* Nothing changes here, where no execution has an owner: it is for those on the way that release the executions of
 * who has gone away. */
static void exec_detach(struct request *request)
{
    if (find(request))
        request_reply_empty(request);
}

static void exec_release(struct request *request)
{
    struct execution *execution = find(request);

    if (!execution)
        return;
    execution_release(&request->agent->executions, execution);
    request_reply_empty(request);
}

const struct method exec_methods[] = {
    {"exec.start", true, exec_start},   {"exec.stdin", true, exec_stdin},
    {"exec.output", true, exec_output}, {"exec.wait", true, exec_wait},
    {"exec.signal", true, exec_signal}, {"exec.resize", true, exec_resize},
    {"exec.list", true, exec_list},     {"exec.detach", true, exec_detach},
    {"exec.release", true, exec_release},
    {NULL, false, NULL},
};
