/*
 * Whatever the host sends: the frame reader, the mux, MessagePack, all requests and executions, with launch.c
 * replaced (fake_launch.c). What the agent sends must be well-formed, and nothing may be left at the end.
 *
 * The first byte of the input chooses: bit 0, whether the rest is a raw byte stream or a list of
 * records, each made into a valid frame or an event; bit 1, whether the root is there from the start; bit 2,
 * whether the boot is held instead.
 */
#include <assert.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "exec_methods.h"
#include "fake_dial.h"
#include "fake_launch.h"
#include "msgpack.h"
#include "request.h"

enum {
    RECORD_HEADER = 4, /* what, stream, length in two bytes */

    /* Records beyond the types of frames. */
    EVENT_END_OF_PROCESS = 7,
    EVENT_ROOT_READY = 8,
    EVENT_ROOT_FAILED = 9,
    EVENT_KINDS = 10,
};

static struct agent agent;
static struct wire_reader from_host;
static struct wire_reader from_agent;

static void check_frame(const struct wire_frame *frame)
{
    if (frame->type == WIRE_REPLY || frame->type == WIRE_RESET)
        assert(mp_valid_map(frame->payload, frame->length));
    else if (frame->type == WIRE_CREDIT)
        assert(frame->length == 4 && wire_get_u32(frame->payload) <= MUX_WINDOW);
    else
        assert(frame->type == WIRE_HELLO || frame->type == WIRE_DATA);
    assert(frame->type != WIRE_OPEN);
}

/* Takes what the agent has to send and handles what its descriptors tell, as the event loop does. */
static void serve(void)
{
    struct wire_frame frame;
    size_t pulled;

    loop_turn(&agent.loop, 0);
    do {
        size_t room;
        uint8_t *space = wire_reader_space(&from_agent, &room);

        pulled = mux_pull(&agent.mux, space, room < LINK_CHUNK ? room : LINK_CHUNK);
        wire_reader_filled(&from_agent, pulled);
        while (wire_reader_next(&from_agent, &frame))
            check_frame(&frame);
        assert(!from_agent.out_of_step);
    } while (pulled > 0);
}

static void receive(const struct wire_frame *frame)
{
    assert(mux_accepts(&agent.mux));
    if (mux_receive(&agent.mux, frame))
        wire_reader_init(&from_agent);
    serve();
}

static void hello(void)
{
    static const struct wire_hello greeting = {.lowest = 1, .highest = 1};
    uint8_t payload[WIRE_HELLO_SIZE];
    struct wire_frame frame = {.type = WIRE_HELLO, .length = sizeof(payload), .payload = payload};

    wire_hello_encode(payload, &greeting);
    receive(&frame);
}

static void play_stream(const uint8_t *data, size_t size)
{
    struct wire_frame frame;

    while (size > 0) {
        size_t room;
        uint8_t *space = wire_reader_space(&from_host, &room);
        size_t part = size < room ? size : room;

        assert(part > 0);
        memcpy(space, data, part);
        wire_reader_filled(&from_host, part);
        data += part;
        size -= part;
        while (wire_reader_next(&from_host, &frame))
            receive(&frame);
    }
}

static void end_process(uint8_t which)
{
    static const struct rusage usage;

    exec_process_ended(&agent, FAKE_FIRST_PID + which, which % 3 ? which << 8 : SIGKILL, &usage);
    serve();
}

static void finish_boot(enum boot_phase phase)
{
    if (agent.boot.phase != BOOT_RUNNING) /* also while it is held */
        return;
    agent.boot.phase = phase;
    agent.boot.failure = failure_os(2, "root", "fuzz");
    while (requests_resume(&agent))
        serve();
    serve();
}

static void play_record(uint8_t what, uint8_t stream, const uint8_t *data, size_t size)
{
    struct wire_frame frame = {
        .end = what & 0x80,
        .stream = stream,
        .length = (uint32_t)size,
        .payload = data,
    };

    switch ((what & 0x7f) % EVENT_KINDS) {
    case 0:
        break;
    case EVENT_END_OF_PROCESS:
        end_process(stream);
        break;
    case EVENT_ROOT_READY:
        finish_boot(BOOT_DONE);
        break;
    case EVENT_ROOT_FAILED:
        finish_boot(BOOT_FAILED);
        break;
    default:
        frame.type = (enum wire_type)((what & 0x7f) % EVENT_KINDS);
        receive(&frame);
        break;
    }
}

static void play_records(const uint8_t *data, size_t size)
{
    while (size >= RECORD_HEADER) {
        size_t length = (size_t)(data[2] | data[3] << 8) % (WIRE_PAYLOAD_MAX + 1);

        if (length > size - RECORD_HEADER)
            length = size - RECORD_HEADER;
        play_record(data[0], data[1], data + RECORD_HEADER, length);
        data += RECORD_HEADER + length;
        size -= RECORD_HEADER + length;
    }
}

static void set_up(enum boot_phase phase)
{
    static bool ready;

    if (!ready) {
        signal(SIGPIPE, SIG_IGN);
        list_init(&agent.parked);
        jobs_init(&agent.jobs);
        executions_init(&agent.executions, &agent.loop);
        connections_init(&agent.connections, &agent.loop);
        flows_init(&agent.flows, &agent.loop);
        ready = loop_init(&agent.loop) && mux_init(&agent.mux, request_open, &agent);
        assert(ready);
    }
    agent.boot.phase = phase;
    agent.boot.options = (struct cmdline){.hold = phase == BOOT_HELD};
    wire_reader_init(&from_host);
    wire_reader_init(&from_agent);
}

static void tear_down(void)
{
    mux_drop(&agent.mux);
    assert(agent.mux.streams == 0 && agent.parked_size == 0 && list_empty(&agent.parked));
    list_each(item, after, &agent.executions.all)
        execution_release(&agent.executions, list_entry(item, struct execution, link));
    assert(agent.executions.count == 0);
    list_each(item, after, &agent.connections.all)
        connection_free(list_entry(item, struct connection, link));
    assert(agent.connections.count == 0 && agent.connections.kept == 0);
    fake_launch_reset();
    fake_dial_reset();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    set_up(data[0] & 4 ? BOOT_HELD : data[0] & 2 ? BOOT_DONE : BOOT_RUNNING);
    hello();
    if (data[0] & 1)
        play_records(data + 1, size - 1);
    else
        play_stream(data + 1, size - 1);
    tear_down();
    return 0;
}
