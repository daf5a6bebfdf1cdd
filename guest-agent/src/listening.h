/*
 * TCP ports on which somebody listens, as the kernel tells in /proc/net/tcp and tcp6 (proc(5)). Agent protocol,
 * section 10.
 *
 * The kernel tells of those that listen first: what there is of connections behind them is not read.
 */
#ifndef ATOLL_LISTENING_H
#define ATOLL_LISTENING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum { LISTENERS_MAX = 1024, LISTENER_ADDRESS_MAX = 16 };

/* A port, and of the addresses on which it is listened on that by which most can reach it. */
struct listener {
    uint16_t port;
    uint8_t size; /* of the address: 4 or 16; 0 if nobody listens any more */
    uint8_t address[LISTENER_ADDRESS_MAX];
};

/* By their ports, each of which is there once. */
struct listeners {
    size_t count;
    struct listener all[LISTENERS_MAX];
};

/* Adds those of a table. */
void listeners_parse(struct listeners *listeners, FILE *table);

/* What there is now. */
void listeners_read(struct listeners *listeners);

/* The first port at which `now` is other than `told`; false if there is none. */
bool listeners_change(const struct listeners *told, const struct listeners *now, struct listener *change);

/* Has `listeners` be as the change says. */
void listeners_apply(struct listeners *listeners, const struct listener *change);

#endif
