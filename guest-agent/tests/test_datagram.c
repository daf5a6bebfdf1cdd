#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "session.h"

/* A server on a port of its own. */
static int bind_somewhere(struct sockaddr_in *address)
{
    socklen_t size = sizeof(*address);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CHECK(bind(fd, (struct sockaddr *)address, size) == 0);
    CHECK(getsockname(fd, (struct sockaddr *)address, &size) == 0);
    return fd;
}

static void call_datagrams(struct agent *agent, uint32_t stream, const struct sockaddr_in *address, bool end)
{
    struct mp_writer writer = session_request("net.datagrams", 1);

    mp_put_int(&writer, "port", ntohs(address->sin_port));
    session_call(agent, stream, &writer, end);
}

/* Sends each byte in a frame of its own, or all in one. */
static void send_bytes(struct agent *agent, const char *bytes, size_t size, bool singly)
{
    for (size_t at = 0; at < size; at += singly ? 1 : size)
        session_send(agent, WIRE_DATA, false, 1, bytes + at, singly ? 1 : size);
}

static void expect(int server, const char *content, size_t size)
{
    char got[64];

    CHECK(recv(server, got, sizeof(got), 0) == (ssize_t)size && memcmp(got, content, size) == 0);
}

static void datagrams_keep_their_bounds(void)
{
    static const char three[] = "\3\0ask\0\0\5\0again";

    for (int singly = 0; singly < 2; singly++) {
        struct agent *agent = session_open(BOOT_DONE);
        struct sockaddr_in address;
        struct sockaddr_in peer;
        socklen_t size = sizeof(peer);
        int server = bind_somewhere(&address);
        char got[8];

        call_datagrams(agent, 1, &address, false);
        CHECK(session_next(agent)->type == WIRE_REPLY);
        send_bytes(agent, three, sizeof(three) - 1, singly);
        CHECK(recvfrom(server, got, sizeof(got), 0, (struct sockaddr *)&peer, &size) == 3);
        expect(server, "", 0);
        expect(server, "again", 5);
        CHECK(sendto(server, "answer", 6, 0, (struct sockaddr *)&peer, size) == 6);
        CHECK(sendto(server, "", 0, 0, (struct sockaddr *)&peer, size) == 0);
        const struct reply *reply = session_next(agent);
        while (reply->type == WIRE_CREDIT)
            reply = session_next(agent);
        CHECK(reply->type == WIRE_DATA && reply->size == 10 && !reply->end);
        CHECK(memcmp(reply->payload, "\6\0answer\0\0", 10) == 0);
        close(server);
        session_close(agent);
    }
}

static void the_end_of_the_host_is_the_end(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct sockaddr_in address;
    int server = bind_somewhere(&address);

    call_datagrams(agent, 1, &address, false);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    session_send(agent, WIRE_DATA, true, 1, "\1\0x", 3);
    expect(server, "x", 1);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_DATA && reply->end && reply->size == 0);
    CHECK(agent->flows.count == 0 && !mux_find(&agent->mux, 1));
    call_datagrams(agent, 3, &address, true); /* OPEN has END */
    CHECK(session_next(agent)->type == WIRE_REPLY);
    CHECK(session_next(agent)->end);
    CHECK(agent->flows.count == 0);
    close(server);
    session_close(agent);
}

static void a_server_may_come_later(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct sockaddr_in address;

    close(bind_somewhere(&address));
    call_datagrams(agent, 1, &address, false);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    send_bytes(agent, "\1\0x", 3, false);
    int server = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(bind(server, (struct sockaddr *)&address, sizeof(address)) == 0);
    send_bytes(agent, "\1\0y", 3, false);
    expect(server, "y", 1);
    CHECK(mux_find(&agent->mux, 1));
    close(server);
    session_close(agent);
}

static void what_is_no_datagram_is_refused(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct sockaddr_in address;
    int server = bind_somewhere(&address);

    call_datagrams(agent, 1, &address, false);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    send_bytes(agent, "\xe4\xff", 2, false); /* 65,508 */
    CHECK(reply_has(session_next(agent), "code", FAIL_INVALID));
    CHECK(agent->flows.count == 0);
    agent->flows.count = FLOWS_MAX;
    call_datagrams(agent, 3, &address, false);
    CHECK(reply_has(session_next(agent), "code", FAIL_RESOURCE));
    agent->flows.count = 0;
    close(server);
    session_close(agent);
}

const struct test datagram_tests[] = {
    {"datagrams keep their bounds", datagrams_keep_their_bounds},
    {"the end of the host is the end", the_end_of_the_host_is_the_end},
    {"a server may come later", a_server_may_come_later},
    {"what is no datagram is refused", what_is_no_datagram_is_refused},
    {0},
};
