/*
 * Connecting a socket: the only place that reaches out to a server. Agent protocol, section 10.
 */
#ifndef ATOLL_DIAL_H
#define ATOLL_DIAL_H

#include <sys/socket.h>

struct dial_target {
    int type; /* SOCK_STREAM or SOCK_DGRAM */
    struct sockaddr_storage address;
    socklen_t size;
};

/* A socket that does not block and is connected, or will be: it can be written to then, or has an error. -1, with
 * errno set, if it cannot be. */
int dial(const struct dial_target *target);

/* What has become of it: 0 or an errno. Tells an error once. */
int dial_error(int fd);

/* Closes the socket so that its peer is told of an error, not of an end. */
void dial_abort(int fd);

#endif
