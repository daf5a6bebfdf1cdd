#include <arpa/inet.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "check.h"
#include "listening.h"
#include "session.h"

#define HEAD "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
#define REST " 00000000:00000000 00:00000000 00000000     0        0 1 1 0000000000000000 100 0 0 10 0\n"

static void parse(struct listeners *listeners, const char *text)
{
    FILE *table = fmemopen((void *)(uintptr_t)text, strlen(text), "r");

    CHECK(table);
    listeners_parse(listeners, table);
    fclose(table);
}

static bool is(const struct listener *listener, uint16_t port, const char *address)
{
    uint8_t bytes[LISTENER_ADDRESS_MAX];
    bool six = strchr(address, ':') != NULL;

    CHECK(inet_pton(six ? AF_INET6 : AF_INET, address, bytes) == 1);
    return listener->port == port && listener->size == (six ? 16 : 4) &&
           memcmp(listener->address, bytes, listener->size) == 0;
}

static void a_table_is_read_up_to_the_first_connection(void)
{
    struct listeners found = {0};

    parse(&found, HEAD "   0: 00000000:1F90 00000000:0000 0A" REST "   1: 0100007F:0016 00000000:0000 0A" REST
                       "   2: 0F02000A:A000 0100000A:0050 01" REST "   3: 00000000:0051 00000000:0000 0A" REST);
    CHECK(found.count == 2 && is(&found.all[0], 22, "127.0.0.1") && is(&found.all[1], 8080, "0.0.0.0"));
}

static void the_address_by_which_most_reach_a_port_is_told(void)
{
    struct listeners found = {0};

    parse(&found, HEAD "   0: 0100007F:0050 00000000:0000 0A" REST "   1: 0F02000A:0050 00000000:0000 0A" REST);
    CHECK(found.count == 1 && is(&found.all[0], 80, "10.0.2.15"));
    parse(&found, HEAD "   0: 00000000000000000000000000000000:0050 00000000000000000000000000000000:0000 0A" REST
                       "   1: 00000000000000000000000001000000:0051 00000000000000000000000000000000:0000 0A" REST
                       "   2: 0000000000000000FFFF00000100007F:0052 00000000000000000000000000000000:0000 0A" REST);
    CHECK(found.count == 3 && is(&found.all[0], 80, "::") && is(&found.all[1], 81, "::1"));
    CHECK(is(&found.all[2], 82, "127.0.0.1"));
}

static void what_is_no_table_has_none(void)
{
    static const char *const texts[] = {
        "",
        "x",
        HEAD,
        HEAD "x\n",
        HEAD "   0: 00:0050 00:0000 0A" REST,
        HEAD "   0: 00000000:0000 00000000:0000 0A" REST,
        HEAD "   0: 00000000:0050",
    };

    for (size_t i = 0; i < sizeof(texts) / sizeof(*texts); i++) {
        struct listeners found = {0};

        if (*texts[i])
            parse(&found, texts[i]);
        CHECK(found.count == 0);
    }
}

static void changes_lead_from_what_was_told_to_what_is(void)
{
    static const uint16_t before[] = {1, 2, 5, 9}, after[] = {2, 3, 9, 10};
    struct listeners told = {0}, now = {0};
    struct listener change;
    int count = 0;

    for (size_t i = 0; i < 4; i++) {
        listeners_apply(&told, &(struct listener){.port = before[i], .size = 4});
        listeners_apply(&now, &(struct listener){.port = after[i], .size = after[i] == 9 ? 16 : 4});
    }
    for (; listeners_change(&told, &now, &change); count++)
        listeners_apply(&told, &change);
    CHECK(count == 5 && told.count == 4 && memcmp(&told.all, &now.all, 4 * sizeof(*now.all)) == 0);
}

static void more_than_can_be_held_are_left_out(void)
{
    static struct listeners found;

    for (uint32_t port = 1; port <= LISTENERS_MAX + 10; port++)
        listeners_apply(&found, &(struct listener){.port = (uint16_t)port, .size = 4});
    CHECK(found.count == LISTENERS_MAX);
    listeners_apply(&found, &(struct listener){.port = 7});
    CHECK(found.count == LISTENERS_MAX - 1);
}

/* Whether a record of DATA is of the port, with an address or without. */
static bool tells(const struct reply *reply, uint16_t port, bool listens)
{
    for (size_t at = 0; at + 4 <= reply->size;) {
        size_t size = wire_get_u32(reply->payload + at);
        struct mp_reader map = {reply->payload + at + 4, reply->payload + at + 4 + size};
        struct mp_reader value;
        int64_t number;

        CHECK(mp_find(map, "port", &value) && mp_read_int(&value, &number));
        if (number == port && mp_find(map, "address", &value) == listens)
            return true;
        at += 4 + size;
    }
    return false;
}

static void ports_are_told_as_they_come_and_go(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct mp_writer writer = session_request("net.listening", 1);

    CHECK(bind(server, (struct sockaddr *)&address, size) == 0 && listen(server, 1) == 0);
    CHECK(getsockname(server, (struct sockaddr *)&address, &size) == 0);
    mp_put_int(&writer, "interval", 100);
    session_call(agent, 1, &writer, true);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    while (!tells(session_next(agent), ntohs(address.sin_port), true))
        continue;
    close(server);
    while (!tells(session_next(agent), ntohs(address.sin_port), false))
        continue;
    session_send(agent, WIRE_RESET, false, 1, "\x80", 1);
    session_close(agent);
}

const struct test listening_tests[] = {
    {"a table is read up to the first connection", a_table_is_read_up_to_the_first_connection},
    {"the address by which most reach a port is told", the_address_by_which_most_reach_a_port_is_told},
    {"what is no table has none", what_is_no_table_has_none},
    {"changes lead from what was told to what is", changes_lead_from_what_was_told_to_what_is},
    {"more than can be held are left out", more_than_can_be_held_are_left_out},
    {"ports are told as they come and go", ports_are_told_as_they_come_and_go},
    {NULL, NULL},
};
