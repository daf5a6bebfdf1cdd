#include "session.h"

#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "check.h"
#include "exec_methods.h"

enum { PATIENCE_MS = 10000 };

static struct agent the_agent;
static struct wire_reader from_agent;
static uint8_t request_buffer[WIRE_PAYLOAD_MAX];

struct agent *session_open(enum boot_phase phase)
{
    static const struct wire_hello hello = {.lowest = 1, .highest = 1};
    uint8_t payload[WIRE_HELLO_SIZE];
    struct agent *agent = &the_agent;

    memset(agent, 0, sizeof(*agent));
    signal(SIGPIPE, SIG_IGN);
    list_init(&agent->parked);
    jobs_init(&agent->jobs);
    executions_init(&agent->executions, &agent->loop);
    connections_init(&agent->connections, &agent->loop);
    flows_init(&agent->flows, &agent->loop);
    wire_reader_init(&from_agent);
    agent->boot.phase = phase;
    CHECK(loop_init(&agent->loop) && mux_init(&agent->mux, request_open, agent));
    wire_hello_encode(payload, &hello);
    session_send(agent, WIRE_HELLO, false, 0, payload, sizeof(payload));
    CHECK(session_next(agent)->type == WIRE_HELLO);
    return agent;
}

void session_close(struct agent *agent)
{
    struct source epoll = {.fd = agent->loop.epoll};

    mux_free(&agent->mux);
    CHECK(agent->parked_size == 0 && list_empty(&agent->parked));
    list_each(item, after, &agent->executions.all)
        execution_release(&agent->executions, list_entry(item, struct execution, link));
    list_each(item, after, &agent->connections.all)
        connection_free(list_entry(item, struct connection, link));
    CHECK(agent->connections.count == 0 && agent->connections.kept == 0);
    while (wait(NULL) > 0)
        continue;
    loop_close(&epoll);
}

void session_send(struct agent *agent, enum wire_type type, bool end, uint32_t stream,
                  const void *payload, size_t size)
{
    struct wire_frame frame = {type, end, stream, (uint32_t)size, payload};

    mux_receive(&agent->mux, &frame);
}

struct mp_writer session_request(const char *method, size_t count)
{
    struct mp_writer writer;

    mp_writer_init(&writer, request_buffer, sizeof(request_buffer));
    mp_write_map(&writer, 1 + count);
    mp_put_str(&writer, "method", method);
    return writer;
}

void session_call(struct agent *agent, uint32_t stream, const struct mp_writer *writer, bool end)
{
    CHECK(!writer->overflow);
    session_send(agent, WIRE_OPEN, end, stream, writer->start, mp_written(writer));
}

/* What the event loop does. */
static void handle_events(struct agent *agent, int timeout)
{
    struct rusage usage;
    int status;
    pid_t pid;

    loop_turn(&agent->loop, jobs_pending(&agent->jobs) ? 0 : timeout);
    jobs_turn(&agent->jobs);
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        exec_process_ended(agent, pid, status, &usage);
}

static bool take_frame(struct agent *agent, struct wire_frame *frame)
{
    size_t room;
    uint8_t *space;

    if (wire_reader_next(&from_agent, frame))
        return true;
    space = wire_reader_space(&from_agent, &room);
    wire_reader_filled(&from_agent, mux_pull(&agent->mux, space, room < LINK_CHUNK ? room : LINK_CHUNK));
    CHECK(!from_agent.out_of_step);
    return wire_reader_next(&from_agent, frame);
}

const struct reply *session_next(struct agent *agent)
{
    static struct reply reply;
    struct wire_frame frame;

    for (int waited = 0; !take_frame(agent, &frame); waited++) {
        CHECK(waited < PATIENCE_MS);
        handle_events(agent, 1);
    }
    reply.type = frame.type;
    reply.end = frame.end;
    reply.stream = frame.stream;
    reply.size = frame.length;
    memcpy(reply.payload, frame.payload, frame.length);
    CHECK((frame.type != WIRE_REPLY && frame.type != WIRE_RESET) ||
          mp_valid_map(reply.payload, reply.size));
    return &reply;
}

bool session_silent(struct agent *agent)
{
    struct wire_frame frame;

    handle_events(agent, 0);
    return !take_frame(agent, &frame);
}

bool reply_has(const struct reply *reply, const char *key, const char *text)
{
    struct mp_reader value;
    struct mp_bytes bytes;

    return mp_find((struct mp_reader){reply->payload, reply->payload + reply->size}, key, &value) &&
           mp_read_bytes(&value, &bytes) && bytes.size == strlen(text) &&
           memcmp(bytes.data, text, bytes.size) == 0;
}

int64_t reply_int(const struct reply *reply, const char *key)
{
    struct mp_reader value;
    int64_t number;

    CHECK(mp_find((struct mp_reader){reply->payload, reply->payload + reply->size}, key, &value));
    CHECK(mp_read_int(&value, &number));
    return number;
}
