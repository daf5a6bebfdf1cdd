/*
 * The byte stream under the mux: a virtio port, or a socket when hosted. Agent protocol, section 1.
 */
#ifndef ATOLL_LINK_H
#define ATOLL_LINK_H

#include "loop.h"
#include "mux.h"
#include "wire.h"

enum {
    /* virtio_console copies each write to one buffer of at most this size, and knows no writev(): so frames go
     * out contiguous, and the largest DATA frame is one write. */
    LINK_CHUNK = 32768,
};

struct link {
    struct source source;
    bool serial; /* a port outlives the host's end; a socket does not */
    bool readable;
    bool writable;
    bool connected; /* the host has its end open */
    bool lost;      /* it has closed it; whoever ends the session takes note and clears this */
    bool seen;      /* it had it open once */
    bool closed;    /* a socket at its end */
    struct wire_reader in;
    size_t out_start;
    size_t out_end;
    uint8_t out[LINK_CHUNK];
};

/* Nobody is there yet. */
void link_init(struct link *link);

/* Takes the descriptor over; false, with errno set, if it cannot be watched. */
bool link_open(struct link *link, const struct loop *loop, int fd, bool serial);

/* Closes the descriptor and forgets what was under way. */
void link_close(struct link *link);

/* Each does a bounded amount of work. True if more is to be received, once the mux accepts it. */
bool link_receive(struct link *link, struct mux *mux);
/* True if more can be sent at once. */
bool link_send(struct link *link, struct mux *mux);

/* Whether all that was to be sent has been written. */
bool link_flushed(const struct link *link, const struct mux *mux);

#endif
