/*
 * rtnetlink(7), as much of it as an interface with one IPv4 address needs. Functions return 0 or an errno.
 */
#ifndef ATOLL_NETLINK_H
#define ATOLL_NETLINK_H

#include <netinet/in.h>
#include <stdint.h>

/* A descriptor, or -1 with errno set. */
int netlink_open(void);

int netlink_raise(int fd, unsigned interface);

/* Makes it the only address of the interface. */
int netlink_set_address(int fd, unsigned interface, struct in_addr address, uint8_t prefix);

/* The default route leads over the gateway, wherever that is, on this interface. */
int netlink_set_gateway(int fd, unsigned interface, struct in_addr gateway);

/* No default route leads over this interface. */
int netlink_drop_gateway(int fd, unsigned interface);

#endif
