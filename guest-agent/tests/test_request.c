#include <string.h>

#include "check.h"
#include "session.h"

static void ping_echoes(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("ping", 1);

    mp_put_str(&writer, "data", "abc");
    session_call(agent, 1, &writer, true);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_REPLY && reply->end && reply_has(reply, "data", "abc"));
    session_close(agent);
}

static void system_info_tells_what_is_specified(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("system.info", 0);

    session_call(agent, 1, &writer, true);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_REPLY && reply_int(reply, "protocol") == 1);
    CHECK(reply_has(reply, "phase", "ready") && reply_has(reply, "init", "hosted"));
    CHECK(reply_int(reply, "memory_total") > reply_int(reply, "memory_available"));
    CHECK(reply_int(reply, "vcpus") > 0 && reply_int(reply, "uptime") > 0);
    session_close(agent);
}

static void refused(const char *method, size_t count, void (*fill)(struct mp_writer *), const char *code)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request(method, count);

    if (fill)
        fill(&writer);
    session_call(agent, 1, &writer, true);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_RESET && reply_has(reply, "code", code));
    session_close(agent);
}

static void long_ping(struct mp_writer *writer)
{
    static uint8_t data[4097];

    mp_write_str(writer, "data");
    mp_write_bin(writer, data, sizeof(data));
}

static void wrong_type(struct mp_writer *writer)
{
    mp_put_int(writer, "data", 1);
}

static void negative_time(struct mp_writer *writer)
{
    mp_put_int(writer, "realtime", -1);
}

static void wrong_mode(struct mp_writer *writer)
{
    mp_put_str(writer, "mode", "halt");
}

static void long_grace(struct mp_writer *writer)
{
    mp_put_int(writer, "grace", 600001);
}

static void wrong_orderly(struct mp_writer *writer)
{
    mp_put_int(writer, "orderly", 1);
}

static void bad_id(struct mp_writer *writer)
{
    mp_put_str(writer, "id", "a/b");
}

static void unknown_id(struct mp_writer *writer)
{
    mp_put_str(writer, "id", "a");
}

static void requests_are_refused_with_the_right_code(void)
{
    refused("pong", 0, NULL, FAIL_UNKNOWN_METHOD);
    refused("ping", 1, long_ping, FAIL_INVALID);
    refused("ping", 1, wrong_type, FAIL_INVALID);
    refused("clock.step", 0, NULL, FAIL_INVALID);
    refused("clock.step", 1, negative_time, FAIL_INVALID);
    refused("entropy.reseed", 0, NULL, FAIL_INVALID);
    refused("system.poweroff", 1, wrong_mode, FAIL_INVALID);
    refused("system.poweroff", 1, long_grace, FAIL_INVALID);
    refused("system.poweroff", 1, wrong_orderly, FAIL_INVALID);
    refused("exec.wait", 0, NULL, FAIL_INVALID);
    refused("exec.wait", 1, bad_id, FAIL_INVALID);
    refused("exec.wait", 1, unknown_id, FAIL_NOT_FOUND);
    refused("exec.start", 1, unknown_id, FAIL_INVALID); /* no argv */
}

/* A run, all requests of which are sent before there is a root. */
static void send_run(struct agent *agent)
{
    struct mp_writer writer = session_request("exec.start", 3);
    mp_put_str(&writer, "id", "x");
    mp_put_bool(&writer, "stdin", true);
    mp_write_str(&writer, "argv");
    mp_write_array(&writer, 1);
    mp_write_str(&writer, "cat");
    session_call(agent, 1, &writer, true);

    writer = session_request("exec.stdin", 1);
    mp_put_str(&writer, "id", "x");
    session_call(agent, 3, &writer, false);
    session_send(agent, WIRE_DATA, false, 3, "he", 2);
    session_send(agent, WIRE_DATA, true, 3, "llo", 3);

    writer = session_request("exec.output", 2);
    mp_put_str(&writer, "id", "x");
    mp_put_int(&writer, "fd", 1);
    session_call(agent, 5, &writer, true);
    CHECK(session_silent(agent));
}

static void requests_wait_for_the_root_with_their_data(void)
{
    struct agent *agent = session_open(BOOT_RUNNING);
    char output[16];
    size_t size = 0;
    bool end = false;

    send_run(agent);
    agent->boot.phase = BOOT_DONE;
    requests_resume(agent);
    CHECK(session_next(agent)->stream == 1);
    CHECK(session_next(agent)->stream == 3);
    while (!end) {
        const struct reply *reply = session_next(agent);
        if (reply->type != WIRE_DATA || reply->stream != 5)
            continue;
        memcpy(output + size, reply->payload, reply->size);
        size += reply->size;
        end = reply->end;
    }
    CHECK(size == 5 && memcmp(output, "hello", 5) == 0);
    session_close(agent);
}

static void requests_are_refused_when_the_root_fails(void)
{
    struct agent *agent = session_open(BOOT_RUNNING);

    send_run(agent);
    agent->boot.phase = BOOT_FAILED;
    agent->boot.failure = failure_os(2, "root", "disk");
    requests_resume(agent);
    for (uint32_t stream = 1; stream <= 5; stream += 2) {
        const struct reply *reply = session_next(agent);
        CHECK(reply->type == WIRE_RESET && reply->stream == stream);
        CHECK(reply_has(reply, "code", FAIL_BOOT) && reply_has(reply, "stage", "root"));
        CHECK(reply_int(reply, "errno") == 2);
    }
    session_close(agent);
}

static void waiting_requests_die_with_their_streams(void)
{
    struct agent *agent = session_open(BOOT_RUNNING);

    send_run(agent);
    CHECK(agent->parked_size > 0);
    session_send(agent, WIRE_RESET, false, 3, "\x80", 1);
    mux_drop(&agent->mux);
    CHECK(agent->parked_size == 0);
    agent->boot.phase = BOOT_DONE;
    requests_resume(agent);
    CHECK(agent->executions.count == 0);
    session_close(agent);
}

static void what_waits_is_bounded(void)
{
    static uint8_t data[WIRE_PAYLOAD_MAX];
    struct agent *agent = session_open(BOOT_RUNNING);
    struct mp_writer writer = session_request("exec.stdin", 0);
    size_t resets = 0;

    for (uint32_t stream = 1; stream < 200; stream += 2) {
        session_call(agent, stream, &writer, false);
        for (int i = 0; i < MUX_WINDOW / WIRE_PAYLOAD_MAX; i++)
            session_send(agent, WIRE_DATA, false, stream, data, sizeof(data));
        CHECK(agent->parked_size <= PARKED_MAX);
    }
    while (!session_silent(agent))
        resets++;
    CHECK(resets > 0);
    session_close(agent);
}

/* Long replies to many requests at once, which are more than may be queued. */
static void what_waited_is_answered_as_the_link_permits(void)
{
    enum { LISTS = 200, COMMANDS = 400 };
    struct agent *agent = session_open(BOOT_DONE);
    uint32_t stream = 1;
    char id[EXEC_ID_MAX + 1];

    for (int i = 0; i < COMMANDS; i++, stream += 2) {
        struct mp_writer writer = session_request("exec.start", 2);
        snprintf(id, sizeof(id), "%064d", i);
        mp_put_str(&writer, "id", id);
        mp_write_str(&writer, "argv");
        mp_write_array(&writer, 1);
        mp_write_str(&writer, "true");
        session_call(agent, stream, &writer, true);
        CHECK(session_next(agent)->type == WIRE_REPLY);
    }
    agent->boot.phase = BOOT_RUNNING;
    for (int i = 0; i < LISTS; i++, stream += 2) {
        struct mp_writer writer = session_request("exec.list", 0);
        session_call(agent, stream, &writer, true);
    }
    agent->boot.phase = BOOT_DONE;
    CHECK(requests_resume(agent)); /* some are left */
    struct mp_writer writer = session_request("exec.list", 0);
    session_call(agent, stream, &writer, true); /* does not overtake them */
    uint32_t expected = stream - 2 * LISTS;
    for (int i = 0; i <= LISTS; i++, expected += 2) {
        const struct reply *reply = session_next(agent);
        CHECK(reply->type == WIRE_REPLY && reply->stream == expected);
        requests_resume(agent);
    }
    session_close(agent);
}

const struct test request_tests[] = {
    {"ping echoes", ping_echoes},
    {"system.info tells what is specified", system_info_tells_what_is_specified},
    {"requests are refused with the right code", requests_are_refused_with_the_right_code},
    {"requests wait for the root with their data", requests_wait_for_the_root_with_their_data},
    {"requests are refused when the root fails", requests_are_refused_when_the_root_fails},
    {"waiting requests die with their streams", waiting_requests_die_with_their_streams},
    {"what waits is bounded", what_waits_is_bounded},
    {"what waited is answered as the link permits", what_waited_is_answered_as_the_link_permits},
    {0},
};
