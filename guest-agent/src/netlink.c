#include "netlink.h"

#include <errno.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    REQUEST_MAX = 128,
    ANSWER_MAX = 16384,
    ADDRESSES_MAX = 64,
    ALIGNMENT = 4,
};

struct request {
    _Alignas(struct nlmsghdr) uint8_t bytes[REQUEST_MAX];
    size_t used;
};

struct address {
    struct in_addr address;
    uint8_t prefix;
};

struct addresses {
    size_t count;
    struct address items[ADDRESSES_MAX];
};

static size_t aligned(size_t size)
{
    return (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
}

int netlink_open(void)
{
    return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
}

/* The message's own header follows that of netlink. */
static struct request begin(uint16_t type, uint16_t flags, const void *header, size_t size)
{
    struct request request = {.used = sizeof(struct nlmsghdr) + aligned(size)};
    const struct nlmsghdr message = {
        .nlmsg_type = type,
        .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags),
    };

    memcpy(request.bytes, &message, sizeof(message));
    memcpy(request.bytes + sizeof(message), header, size);
    return request;
}

static void add(struct request *request, uint16_t type, const void *value, size_t size)
{
    const struct rtattr attribute = {
        .rta_len = (uint16_t)(sizeof(attribute) + size),
        .rta_type = type,
    };

    memcpy(request->bytes + request->used, &attribute, sizeof(attribute));
    memcpy(request->bytes + request->used + sizeof(attribute), value, size);
    request->used += aligned(sizeof(attribute) + size);
}

static int transmit(int fd, struct request *request)
{
    uint32_t length = (uint32_t)request->used;

    memcpy(request->bytes + offsetof(struct nlmsghdr, nlmsg_len), &length, sizeof(length));
    return send(fd, request->bytes, request->used, 0) < 0 ? errno : 0;
}

/* Whether the message at `at` is whole; its header is copied. */
static bool next_message(const uint8_t *at, const uint8_t *end, struct nlmsghdr *message)
{
    if ((size_t)(end - at) < sizeof(*message))
        return false;
    memcpy(message, at, sizeof(*message));
    return message->nlmsg_len >= sizeof(*message) && message->nlmsg_len <= (size_t)(end - at);
}

/* The errno in an acknowledgement. */
static int acknowledged(const uint8_t *at, const struct nlmsghdr *message)
{
    int error;

    if (message->nlmsg_len < sizeof(*message) + sizeof(error))
        return EPROTO;
    memcpy(&error, at + sizeof(*message), sizeof(error));
    return -error;
}

static int call(int fd, struct request *request)
{
    uint8_t answer[1024];
    struct nlmsghdr message;
    int error = transmit(fd, request);

    if (error)
        return error;
    ssize_t got = recv(fd, answer, sizeof(answer), 0);
    if (got < 0)
        return errno;
    if (!next_message(answer, answer + got, &message) || message.nlmsg_type != NLMSG_ERROR)
        return EPROTO;
    return acknowledged(answer, &message);
}

int netlink_raise(int fd, unsigned interface)
{
    const struct ifinfomsg header = {
        .ifi_index = (int)interface,
        .ifi_flags = IFF_UP,
        .ifi_change = IFF_UP,
    };
    struct request request = begin(RTM_NEWLINK, NLM_F_ACK, &header, sizeof(header));

    return call(fd, &request);
}

static void note_address(const uint8_t *at, const struct nlmsghdr *message, unsigned interface,
                         struct addresses *addresses)
{
    const uint8_t *end = at + message->nlmsg_len;
    struct ifaddrmsg header;
    struct rtattr attribute;

    at += sizeof(*message);
    if ((size_t)(end - at) < sizeof(header))
        return;
    memcpy(&header, at, sizeof(header));
    if (header.ifa_index != interface || addresses->count == ADDRESSES_MAX)
        return;
    at += aligned(sizeof(header));
    while (at < end && (size_t)(end - at) >= sizeof(attribute)) {
        memcpy(&attribute, at, sizeof(attribute));
        if (attribute.rta_len < sizeof(attribute) || attribute.rta_len > end - at)
            return;
        if (attribute.rta_type == IFA_LOCAL && attribute.rta_len == sizeof(attribute) + sizeof(struct in_addr)) {
            struct address *item = &addresses->items[addresses->count++];

            memcpy(&item->address, at + sizeof(attribute), sizeof(item->address));
            item->prefix = header.ifa_prefixlen;
            return;
        }
        if (aligned(attribute.rta_len) >= (size_t)(end - at))
            return;
        at += aligned(attribute.rta_len);
    }
}

/* One datagram of a dump. True when it was the last; `error` is set then. */
static bool take_dump(const uint8_t *at, const uint8_t *end, unsigned interface, struct addresses *addresses,
                      int *error)
{
    struct nlmsghdr message;

    *error = 0;
    while (next_message(at, end, &message)) {
        if (message.nlmsg_type == NLMSG_DONE)
            return true;
        if (message.nlmsg_type == NLMSG_ERROR) {
            *error = acknowledged(at, &message);
            return true;
        }
        if (message.nlmsg_type == RTM_NEWADDR)
            note_address(at, &message, interface, addresses);
        if (aligned(message.nlmsg_len) >= (size_t)(end - at))
            break;
        at += aligned(message.nlmsg_len);
    }
    return false;
}

static int list_addresses(int fd, unsigned interface, struct addresses *addresses)
{
    const struct ifaddrmsg header = {.ifa_family = AF_INET};
    struct request request = begin(RTM_GETADDR, NLM_F_DUMP, &header, sizeof(header));
    uint8_t answer[ANSWER_MAX];
    int error = transmit(fd, &request);

    addresses->count = 0;
    while (!error) {
        ssize_t got = recv(fd, answer, sizeof(answer), 0);

        if (got < 0)
            return errno;
        if (take_dump(answer, answer + got, interface, addresses, &error))
            return error;
    }
    return error;
}

static int change_address(int fd, uint16_t type, uint16_t flags, unsigned interface, const struct address *item)
{
    const struct ifaddrmsg header = {
        .ifa_family = AF_INET,
        .ifa_prefixlen = item->prefix,
        .ifa_index = interface,
    };
    struct request request = begin(type, (uint16_t)(NLM_F_ACK | flags), &header, sizeof(header));

    add(&request, IFA_LOCAL, &item->address, sizeof(item->address));
    add(&request, IFA_ADDRESS, &item->address, sizeof(item->address));
    if (type == RTM_NEWADDR && item->prefix < 31) {
        struct in_addr broadcast = {item->address.s_addr | htonl(UINT32_MAX >> item->prefix)};

        add(&request, IFA_BROADCAST, &broadcast, sizeof(broadcast));
    }
    return call(fd, &request);
}

int netlink_set_address(int fd, unsigned interface, struct in_addr address, uint8_t prefix)
{
    const struct address wanted = {address, prefix};
    struct addresses old;
    int error = list_addresses(fd, interface, &old);

    for (size_t i = 0; i < old.count && !error; i++) {
        const struct address *item = &old.items[i];

        if (item->address.s_addr == address.s_addr && item->prefix == prefix)
            continue;
        error = change_address(fd, RTM_DELADDR, 0, interface, item);
        if (error == EADDRNOTAVAIL)
            error = 0; /* a secondary one, which went with its primary */
    }
    return error ? error : change_address(fd, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, interface, &wanted);
}

static struct request default_route(uint16_t type, uint16_t flags, unsigned interface, uint32_t route_flags)
{
    const struct rtmsg header = {
        .rtm_family = AF_INET,
        .rtm_table = RT_TABLE_MAIN,
        .rtm_protocol = type == RTM_NEWROUTE ? RTPROT_STATIC : RTPROT_UNSPEC,
        .rtm_scope = type == RTM_NEWROUTE ? RT_SCOPE_UNIVERSE : RT_SCOPE_NOWHERE,
        .rtm_type = type == RTM_NEWROUTE ? RTN_UNICAST : RTN_UNSPEC,
        .rtm_flags = route_flags,
    };
    struct request request = begin(type, (uint16_t)(NLM_F_ACK | flags), &header, sizeof(header));

    add(&request, RTA_OIF, &interface, sizeof(interface));
    return request;
}

int netlink_set_gateway(int fd, unsigned interface, struct in_addr gateway)
{
    struct request request =
        default_route(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, interface, RTNH_F_ONLINK);

    add(&request, RTA_GATEWAY, &gateway, sizeof(gateway));
    return call(fd, &request);
}

int netlink_drop_gateway(int fd, unsigned interface)
{
    int error;

    do {
        struct request request = default_route(RTM_DELROUTE, 0, interface, 0);

        error = call(fd, &request);
    } while (!error);
    return error == ESRCH ? 0 : error;
}
