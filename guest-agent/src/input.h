/*
 * What a command reads from descriptor 0. Agent protocol, section 6, "Input".
 */
#ifndef ATOLL_INPUT_H
#define ATOLL_INPUT_H

#include "loop.h"
#include "mux.h"
#include "ring.h"

struct input {
    struct source source;
    bool open; /* the command may still read */
    bool tty;
    bool end;      /* the host has sent all */
    bool finished; /* and all was passed on, or can no longer be */
    char last;     /* byte typed on the terminal */
    struct ring waiting;
    uint64_t accepted; /* bytes passed on or discarded */
    uint64_t repeated; /* bytes that the writer will send again */
    size_t former;     /* bytes waiting that are no longer the writer's to be credited with */
    struct stream *writer;
};

/* False if memory is short. Input that is not wanted is at its end from the start. */
bool input_init(struct input *input, bool wanted, bool tty);
void input_free(struct input *input);

/* The command runs: where its input goes, or -1. The owner watches the source. */
void input_opened(struct input *input, int fd);

/* Passes on what can be passed on now. */
void input_flush(struct input *input);

/* The offset behind all that is here. */
uint64_t input_received(const struct input *input);

/* Before a new writer whose data begins at `offset`, at most input_received(): cancels the former, and gives up what it
 * sent from there on, since the host is going to send it again. */
void input_rewind(struct input *input, uint64_t offset);

/* Gives the input a writer that has been replied to, whose data begins at the offset of the rewind. */
void input_attach(struct input *input, struct stream *writer, uint64_t offset);

#endif
