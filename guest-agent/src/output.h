/*
 * What a command writes to one descriptor, held until the host has acknowledged it.
 * Agent protocol, section 6, "Output".
 */
#ifndef ATOLL_OUTPUT_H
#define ATOLL_OUTPUT_H

#include "loop.h"
#include "mux.h"
#include "ring.h"

enum {
    OUTPUT_MAX = 1048576, /* bytes held */
    /* More than the kernel buffers for a terminal: what a command had written there by its end is counted
     * by reading all of it, whether the host reads on or not. */
    OUTPUT_TTY_SLACK = 65536,
};

struct output {
    struct source source;
    bool readable;
    bool tty;
    bool kept; /* a terminal stays open while its command runs: closing it would send SIGHUP */
    struct ring held;
    uint64_t oldest; /* offset of the first byte held */
    uint64_t sent;   /* offset up to which the reader has been sent */
    struct stream *reader;
};

/* False if memory is short. The owner sets source.fd and watches it. */
bool output_init(struct output *output, bool tty);
void output_free(struct output *output);

/* The offset behind the last byte that has been read from the command. */
uint64_t output_produced(const struct output *output);

/* The offset behind the last byte that the command, which has just ended, had written. */
uint64_t output_written(struct output *output);

/* Gives the output a reader that has been replied to; the former one is cancelled. The offset is between
 * output->oldest and output_produced(). */
void output_attach(struct output *output, struct stream *reader, uint64_t offset);

#endif
