/*
 * net.connect and net.datagrams: a request made into a connection. Agent protocol, section 10.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "request.h"

enum { PORT_MAX = 65535, WINDOW_MIN = 4096 };

static bool invalid(struct request *request, const char *why)
{
    request_fail(request, failure(FAIL_INVALID, "%s", why));
    return false;
}

static bool decode_path(struct request *request, struct dial_target *target, char name[CONNECTION_NAME_MAX])
{
    struct sockaddr_un *address = (struct sockaddr_un *)(void *)&target->address;

    if (!param_text(request, "path", address->sun_path, sizeof(address->sun_path)))
        return false;
    if (address->sun_path[0] != '/')
        return invalid(request, "path: not absolute");
    address->sun_family = AF_UNIX;
    target->size = sizeof(*address);
    strcpy(name, address->sun_path);
    return true;
}

static bool set_host(struct dial_target *target, const char *host, uint16_t port)
{
    struct sockaddr_in *four = (struct sockaddr_in *)(void *)&target->address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)(void *)&target->address;

    if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        target->size = sizeof(*four);
        return true;
    }
    if (inet_pton(AF_INET6, host, &six->sin6_addr) != 1)
        return false;
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(port);
    target->size = sizeof(*six);
    return true;
}

static bool decode_port(struct request *request, struct dial_target *target, char name[CONNECTION_NAME_MAX])
{
    char host[INET6_ADDRSTRLEN];
    int64_t port;

    if (!param_text_or(request, "host", host, sizeof(host), "127.0.0.1") ||
        !param_int(request, "port", 1, PORT_MAX, &port))
        return false;
    if (!set_host(target, host, (uint16_t)port))
        return invalid(request, "host: not an address");
    snprintf(name, CONNECTION_NAME_MAX, strchr(host, ':') ? "[%s]:%d" : "%s:%d", host, (int)port);
    return true;
}

static bool decode_target(struct request *request, struct dial_target *target, char name[CONNECTION_NAME_MAX])
{
    struct mp_reader reader;

    return mp_find(request->params, "path", &reader) ? decode_path(request, target, name)
                                                     : decode_port(request, target, name);
}

static bool decode_window(struct request *request)
{
    int64_t window;

    if (!param_int_or(request, "window", WINDOW_MIN, MUX_WINDOW, &window, MUX_WINDOW))
        return false;
    return mux_set_window(request->stream, (uint32_t)window) || invalid(request, "window: exceeded already");
}

static void net_connect(struct request *request)
{
    struct dial_target target = {.type = SOCK_STREAM};
    char name[CONNECTION_NAME_MAX];

    if (decode_target(request, &target, name) && decode_window(request))
        connection_open(&request->agent->connections, request->stream, &target, name);
}

static void net_datagrams(struct request *request)
{
    struct dial_target target = {.type = SOCK_DGRAM};
    char name[CONNECTION_NAME_MAX];

    if (decode_port(request, &target, name))
        flow_open(&request->agent->flows, request->stream, &target, name);
}

const struct method connection_methods[] = {
    {"net.connect", true, net_connect},
    {"net.datagrams", true, net_datagrams},
    {NULL, false, NULL},
};
