#include "fake_dial.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <unistd.h>

#include "dial.h"

enum { SERVERS_MAX = 1024 };

static int servers[SERVERS_MAX];
static size_t server_count;

/* A server writes as many bytes as its port says, and reads nothing. Then it does one of these. */
enum { STAYS, ENDS, HANGS_UP, REFUSES, MANNERS };

static void serve(int fd, uint16_t port)
{
    static const char zeros[UINT16_MAX];

    if (write(fd, zeros, port) < 0)
        return;
    if (port % MANNERS == ENDS)
        shutdown(fd, SHUT_WR);
    if (port % MANNERS == HANGS_UP)
        close(fd);
    else
        servers[server_count++] = fd;
}

int dial(const struct dial_target *target)
{
    const struct sockaddr_in *address = (const struct sockaddr_in *)(const void *)&target->address;
    uint16_t port = address->sin_family == AF_INET ? ntohs(address->sin_port) : STAYS;
    int ends[2] = {-1, -1};

    errno = ECONNREFUSED;
    if (port % MANNERS == REFUSES || server_count == SERVERS_MAX ||
        socketpair(AF_UNIX, target->type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    serve(ends[1], port);
    return ends[0];
}

int dial_error(int fd)
{
    return fd < 0 ? EBADF : 0;
}

void dial_abort(int fd)
{
    if (fd >= 0)
        close(fd);
}

void fake_dial_reset(void)
{
    while (server_count > 0)
        close(servers[--server_count]);
}
