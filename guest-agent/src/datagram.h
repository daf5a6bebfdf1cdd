/*
 * Datagrams to and from one server in the guest: a connected UDP socket as one stream. Agent protocol, section 10.
 * Knows streams, but neither requests nor MessagePack.
 *
 * In the stream each datagram has its length before it. Nothing is kept but the one that is on its way in either
 * direction: what a socket does not take at once is lost, as it would be in a network.
 */
#ifndef ATOLL_DATAGRAM_H
#define ATOLL_DATAGRAM_H

#include "dial.h"
#include "list.h"
#include "loop.h"
#include "mux.h"

enum {
    DATAGRAM_MAX = 65507, /* bytes in one over IPv4 */
    DATAGRAM_HEAD = 2,    /* its length, little-endian */
    FLOWS_MAX = 512,
};

struct flows {
    const struct loop *loop;
    struct list all;
    size_t count;
};

struct packet {
    size_t used;
    uint8_t bytes[DATAGRAM_HEAD + DATAGRAM_MAX];
};

struct flow {
    struct list link;
    struct flows *all;
    struct source source;
    struct stream *stream;
    bool readable;
    bool end; /* the host has sent all: the stream is over */
    size_t pulled; /* of `out` */
    struct packet out;
    struct packet in;
};

void flows_init(struct flows *flows, const struct loop *loop);

/* Answers the stream, which carries datagrams from then on, or resets it. `name` is the server's in messages. */
void flow_open(struct flows *flows, struct stream *stream, const struct dial_target *target, const char *name);

#endif
