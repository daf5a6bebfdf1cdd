/*
 * Executions: commands, their output held until the host has it, their input, and how they ended.
 * Agent protocol, section 6. Knows streams, but neither requests nor MessagePack.
 */
#ifndef ATOLL_EXEC_H
#define ATOLL_EXEC_H

#include <sys/resource.h>

#include "launch.h"
#include "list.h"
#include "loop.h"
#include "mux.h"
#include "ring.h"

enum {
    EXEC_MAX = 1024,
    EXEC_ID_MAX = 64,
    EXEC_OUTPUT_MAX = 262144, /* held per descriptor */
    EXEC_INPUT_MAX = MUX_WINDOW,
    /* More than the kernel buffers for a terminal: what a command had written there by its end is counted
     * by reading all of it, whoever reads on from us or not. */
    EXEC_TTY_SLACK = 65536,
};

/* One descriptor that the command writes to. */
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

/* What the command reads. */
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
    struct stream *writer;
};

struct execution {
    struct list link;
    char id[EXEC_ID_MAX + 1];
    pid_t pid;
    bool running;
    bool tty;
    bool has_input;
    struct output outputs[2];
    struct input input;
    struct list waiters; /* streams of exec.wait */

    /* Of an execution that has ended. */
    int status;
    uint64_t written[2];
    int64_t started;
    int64_t ended;
    struct rusage usage;
};

struct executions {
    const struct loop *loop;
    struct list all; /* in the order they were started */
    size_t count;
};

void executions_init(struct executions *executions, const struct loop *loop);

struct execution *execution_find(const struct executions *executions, const char *id);

/* The caller has checked the id. NULL on failure. */
struct execution *execution_start(struct executions *executions, const char *id,
                                  const struct launch *start, struct failure *failed);

/* Kills the command if it runs, ends its streams and forgets it. */
void execution_release(struct executions *executions, struct execution *execution);

/* Records the end of a command; the caller answers execution->waiters. NULL if the process is none of ours. */
struct execution *execution_ended(const struct executions *executions, pid_t pid, int status,
                                  const struct rusage *usage);

/* The offset behind the last byte written to the descriptor, as far as it has been read. */
uint64_t output_produced(const struct output *output);

/* Both give the descriptor a stream that has been replied to. The offset is one that the descriptor has: from
 * oldest to produced, or up to accepted. */
void output_attach(struct output *output, struct stream *reader, uint64_t offset);
void input_attach(struct input *input, struct stream *writer, uint64_t offset);

/* Before a new writer: cancels the former, and gives up input that has not been passed on, since the host is going
 * to send it again. */
void input_rewind(struct input *input);

#endif
