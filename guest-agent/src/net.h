/*
 * Setting an interface up from outside. Agent protocol, section 5 (net.configure).
 */
#ifndef ATOLL_NET_H
#define ATOLL_NET_H

#include <limits.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>

#include "failure.h"

enum {
    NET_MAC_BYTES = 6,
    NET_MAC_SIZE = 17, /* 02:00:00:00:00:01 */
    NET_RESOLVERS_MAX = 16,
};

struct net_config {
    char mac[NET_MAC_SIZE + 1]; /* in lower case */
    struct in_addr address;
    uint8_t prefix;
    bool has_gateway;
    struct in_addr gateway;
    bool has_resolvers; /* otherwise /etc/resolv.conf is left alone */
    size_t resolvers_count;
    char resolvers[NET_RESOLVERS_MAX][INET6_ADDRSTRLEN];
    int64_t wait_ms;
};

/* False unless the text is six bytes in hexadecimal, with colons between them. */
bool net_parse_mac(const char *text, uint8_t mac[NET_MAC_BYTES]);

/* Waits for the interface, and tells its name. */
bool net_configure(const struct net_config *config, char interface[IF_NAMESIZE], struct failure *failed);

#endif
