#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "session.h"

enum { FRAMES_IN_WINDOW = MUX_WINDOW / WIRE_PAYLOAD_MAX };

static uint8_t block[WIRE_PAYLOAD_MAX];

/* A server on a port of its own, and the connections to it. */
static int listen_somewhere(uint16_t *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    CHECK(bind(fd, (struct sockaddr *)&address, size) == 0 && listen(fd, 8) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)&address, &size) == 0);
    *port = ntohs(address.sin_port);
    return fd;
}

static void call_connect(struct agent *agent, uint32_t stream, uint16_t port, bool end)
{
    struct mp_writer writer = session_request("net.connect", 1);

    mp_put_int(&writer, "port", port);
    session_call(agent, stream, &writer, end);
}

/* The server's end of a connection that stream 1 has asked for and been told of. */
static int connected(struct agent *agent)
{
    uint16_t port;
    int listener = listen_somewhere(&port);

    call_connect(agent, 1, port, false);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_REPLY && !reply->end && reply->stream == 1);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(server >= 0);
    close(listener);
    return server;
}

static void credit(struct agent *agent, size_t size)
{
    uint8_t payload[4];

    wire_put_u32(payload, (uint32_t)size);
    session_send(agent, WIRE_CREDIT, false, 1, payload, sizeof(payload));
}

static void read_exactly(int fd, size_t size)
{
    uint8_t buffer[WIRE_PAYLOAD_MAX];

    while (size > 0) {
        ssize_t got = recv(fd, buffer, size < sizeof(buffer) ? size : sizeof(buffer), 0);

        CHECK(got > 0);
        size -= (size_t)got;
    }
}

/* Whatever is to be handled; what the agent says is dropped. */
static void handle_all(struct agent *agent)
{
    while (!session_silent(agent))
        continue;
}

static void bytes_pass_both_ways_and_each_way_ends_by_itself(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);
    char got[8];

    session_send(agent, WIRE_DATA, true, 1, "ask", 3);
    CHECK(recv(server, got, sizeof(got), 0) == 3 && memcmp(got, "ask", 3) == 0);
    CHECK(recv(server, got, sizeof(got), 0) == 0);
    CHECK(send(server, "answer", 6, 0) == 6);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_DATA && reply->size == 6 && !reply->end);
    close(server);
    reply = session_next(agent);
    CHECK(reply->type == WIRE_DATA && reply->size == 0 && reply->end);
    CHECK(agent->connections.count == 0 && !mux_find(&agent->mux, 1));
    session_close(agent);
}

static void the_server_may_end_first(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);
    char got[8];

    CHECK(shutdown(server, SHUT_WR) == 0);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_DATA && reply->end);
    session_send(agent, WIRE_DATA, false, 1, "late", 4);
    CHECK(recv(server, got, sizeof(got), 0) == 4);
    session_send(agent, WIRE_DATA, true, 1, "", 0);
    CHECK(recv(server, got, sizeof(got), 0) == 0);
    CHECK(agent->connections.count == 0);
    close(server);
    session_close(agent);
}

static void data_that_came_before_the_connection_is_passed_on(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    uint16_t port;
    int listener = listen_somewhere(&port);
    char got[8];

    call_connect(agent, 1, port, false);
    session_send(agent, WIRE_DATA, true, 1, "early", 5);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    CHECK(recv(server, got, sizeof(got), MSG_WAITALL) == 5 && memcmp(got, "early", 5) == 0);
    close(server);
    close(listener);
    CHECK(session_next(agent)->end);
    session_close(agent);
}

static void what_a_server_does_not_take_is_kept_until_it_does_also_behind_the_end(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);
    char got[1];

    CHECK(shutdown(server, SHUT_WR) == 0);
    CHECK(session_next(agent)->end);
    for (int i = 0; i < FRAMES_IN_WINDOW; i++) /* no server's buffers hold so much unread */
        session_send(agent, WIRE_DATA, false, 1, block, sizeof(block));
    size_t accepted = 0;
    while (agent->connections.kept == 0) {
        const struct reply *reply = session_next(agent);
        CHECK(reply->type == WIRE_CREDIT);
        accepted += wire_get_u32(reply->payload);
        for (size_t i = 0; i < wire_get_u32(reply->payload); i += sizeof(block))
            session_send(agent, WIRE_DATA, false, 1, block, sizeof(block));
    }
    session_send(agent, WIRE_DATA, true, 1, "", 0);
    CHECK(!mux_find(&agent->mux, 1) && agent->connections.count == 1);
    size_t rest = accepted + MUX_WINDOW;
    while (rest > 0) {
        size_t part = rest < sizeof(block) ? rest : sizeof(block);

        read_exactly(server, part);
        handle_all(agent);
        rest -= part;
    }
    while (agent->connections.count > 0)
        handle_all(agent);
    CHECK(recv(server, got, 1, 0) == 0);
    close(server);
    session_close(agent);
}

static void a_reader_without_credit_holds_the_server_up(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);
    size_t total = 0;
    size_t sent = 0;

    for (int idle = 0; idle < 50; idle++) {
        ssize_t put;

        while ((put = send(server, block, sizeof(block), MSG_DONTWAIT)) > 0)
            sent += (size_t)put;
        while (!session_silent(agent))
            idle = 0;
    }
    shutdown(server, SHUT_WR);
    CHECK(mux_find(&agent->mux, 1)->send_window == 0);
    credit(agent, MUX_WINDOW);
    total = MUX_WINDOW;
    for (const struct reply *reply = session_next(agent);; reply = session_next(agent)) {
        total += reply->size;
        if (reply->end)
            break;
        credit(agent, reply->size);
    }
    CHECK(total > MUX_WINDOW && total == sent);
    close(server);
    session_close(agent);
}

static void a_smaller_window_holds_for_both_directions(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    uint16_t port;
    int listener = listen_somewhere(&port);
    struct mp_writer writer = session_request("net.connect", 2);

    mp_put_int(&writer, "port", port);
    mp_put_int(&writer, "window", 8192);
    session_call(agent, 1, &writer, false);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    session_send(agent, WIRE_DATA, false, 1, block, 2048);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_CREDIT && wire_get_u32(reply->payload) == 2048);
    CHECK(send(server, block, 10000, 0) == 10000);
    CHECK(session_next(agent)->size == 8192 && session_silent(agent));
    credit(agent, 1000);
    CHECK(session_next(agent)->size == 1000);
    credit(agent, 8193);
    CHECK(reply_has(session_next(agent), "code", FAIL_PROTOCOL));

    session_call(agent, 3, &writer, false);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    session_send(agent, WIRE_DATA, false, 3, block, 8193);
    CHECK(reply_has(session_next(agent), "code", FAIL_PROTOCOL));
    close(server);
    close(listener);
    session_close(agent);
}

static void a_server_that_breaks_off_is_told_of_behind_what_it_sent(void)
{
    static const struct linger at_once = {.l_onoff = 1};
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);

    CHECK(send(server, "part", 4, 0) == 4);
    CHECK(session_next(agent)->size == 4);
    setsockopt(server, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(server);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_RESET && reply_has(reply, "code", FAIL_OS));
    CHECK(reply_int(reply, "errno") == ECONNRESET);
    CHECK(agent->connections.count == 0);
    session_close(agent);
}

static void a_server_that_has_ended_and_takes_no_more_is_told_of(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);

    close(server);
    CHECK(session_next(agent)->end);
    session_send(agent, WIRE_DATA, false, 1, "x", 1); /* is answered by a reset of the connection */
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_RESET && reply_has(reply, "code", FAIL_OS));
    session_close(agent);
}

static void a_host_that_breaks_off_breaks_the_connection_off(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);
    char got[1];

    session_send(agent, WIRE_RESET, false, 1, "\x80", 1);
    CHECK(recv(server, got, 1, 0) < 0 && errno == ECONNRESET);
    CHECK(agent->connections.count == 0);
    close(server);
    session_close(agent);
}

static void a_new_session_breaks_all_off(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int server = connected(agent);
    char got[1];

    mux_drop(&agent->mux);
    CHECK(recv(server, got, 1, 0) < 0 && errno == ECONNRESET);
    CHECK(agent->connections.count == 0);
    close(server);
    session_close(agent);
}

static void nobody_who_listens_is_an_error(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    uint16_t port;

    close(listen_somewhere(&port));
    call_connect(agent, 1, port, false);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_RESET && reply_has(reply, "code", FAIL_OS));
    CHECK(reply_int(reply, "errno") == ECONNREFUSED);
    struct mp_writer writer = session_request("net.connect", 1);
    mp_put_str(&writer, "path", "/no/such/socket");
    session_call(agent, 3, &writer, false);
    reply = session_next(agent);
    CHECK(reply_has(reply, "message", "/no/such/socket: No such file or directory"));
    CHECK(agent->connections.count == 0);
    session_close(agent);
}

static void a_unix_socket_is_connected_too(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "/tmp/atoll-test-%ld", (long)getpid());
    unlink(address.sun_path);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 1) == 0);
    struct mp_writer writer = session_request("net.connect", 1);
    mp_put_str(&writer, "path", address.sun_path);
    session_call(agent, 1, &writer, true);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    unlink(address.sun_path);
    int server = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    char got[1];
    CHECK(recv(server, got, 1, 0) == 0); /* OPEN had END */
    close(server);
    close(listener);
    CHECK(session_next(agent)->end);
    session_close(agent);
}

static void connections_are_limited(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    uint16_t port;
    int listener = listen_somewhere(&port);

    agent->connections.count = CONNECTIONS_MAX;
    call_connect(agent, 1, port, false);
    CHECK(reply_has(session_next(agent), "code", FAIL_RESOURCE));
    agent->connections.count = 0;
    agent->connections.kept = CONNECTIONS_KEPT_MAX;
    call_connect(agent, 3, port, false);
    session_send(agent, WIRE_DATA, false, 3, "x", 1);
    CHECK(reply_has(session_next(agent), "code", FAIL_RESOURCE));
    agent->connections.kept = 0;
    close(listener);
    session_close(agent);
}

static void refuse(const char *key, const char *text, int64_t port)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("net.connect", 2);

    mp_put_str(&writer, key, text);
    mp_put_int(&writer, "port", port);
    session_call(agent, 1, &writer, false);
    CHECK(reply_has(session_next(agent), "code", FAIL_INVALID));
    session_close(agent);
}

static void what_is_no_address_is_refused(void)
{
    refuse("host", "localhost", 80);
    refuse("host", "127.0.0.1.", 80);
    refuse("host", "::1", 0);
    refuse("host", "::1", 65536);
    refuse("path", "relative", 80);
    refuse("window", "8192", 80);
    refuse("path", "", 80);
    refuse("path", "/0123456789012345678901234567890123456789012345678901234567890123456789"
                   "0123456789012345678901234567890123456789", 80);
}

const struct test connection_tests[] = {
    {"bytes pass both ways and each way ends by itself", bytes_pass_both_ways_and_each_way_ends_by_itself},
    {"the server may end first", the_server_may_end_first},
    {"data that came before the connection is passed on", data_that_came_before_the_connection_is_passed_on},
    {"what a server does not take is kept until it does, also behind the end",
     what_a_server_does_not_take_is_kept_until_it_does_also_behind_the_end},
    {"a reader without credit holds the server up", a_reader_without_credit_holds_the_server_up},
    {"a smaller window holds for both directions", a_smaller_window_holds_for_both_directions},
    {"a server that breaks off is told of behind what it sent",
     a_server_that_breaks_off_is_told_of_behind_what_it_sent},
    {"a server that has ended and takes no more is told of", a_server_that_has_ended_and_takes_no_more_is_told_of},
    {"a host that breaks off breaks the connection off", a_host_that_breaks_off_breaks_the_connection_off},
    {"a new session breaks all off", a_new_session_breaks_all_off},
    {"nobody who listens is an error", nobody_who_listens_is_an_error},
    {"a unix socket is connected, too", a_unix_socket_is_connected_too},
    {"connections are limited", connections_are_limited},
    {"what is no address is refused", what_is_no_address_is_refused},
    {0},
};
