/*
 * Connections to servers in the guest, each of them one stream. Agent protocol, section 10.
 * Knows streams, but neither requests nor MessagePack.
 *
 * What a server sends is read when the link has room for it. What the host sends goes to the server at once; what
 * that does not take is kept, at most a window for each connection.
 */
#ifndef ATOLL_CONNECTION_H
#define ATOLL_CONNECTION_H

#include "dial.h"
#include "list.h"
#include "loop.h"
#include "mux.h"
#include "ring.h"

enum {
    CONNECTION_NAME_MAX = 160, /* longer than any address or path of a socket */
    CONNECTIONS_MAX = 512,
    CONNECTIONS_KEPT_MAX = 64 << 20, /* bytes that all connections together keep for their servers */
};

struct connections {
    const struct loop *loop;
    struct list all;
    size_t count;
    size_t kept;
};

struct connection {
    struct list link;
    struct connections *all;
    struct source source;
    struct stream *stream; /* NULL: it has ended in both directions, and the rest is still passed on */
    struct ring waiting;   /* what the server has not taken yet */
    bool connected;
    bool readable;
    bool end;  /* the host has sent all */
    bool deaf; /* the server takes no more: `failure` says why */
    struct failure failure;
    char name[CONNECTION_NAME_MAX];
};

void connections_init(struct connections *connections, const struct loop *loop);

/* Connects the stream, which is replied to or reset, now or later. `name` is the server's in messages. */
void connection_open(struct connections *connections, struct stream *stream, const struct dial_target *target,
                     const char *name);

/* Drops it; its stream, if it has one, is not told. */
void connection_free(struct connection *connection);

#endif
