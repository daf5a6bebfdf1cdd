/*
 * Executions: commands with their input and output, and how they ended.
 * Agent protocol, section 6. Knows streams, but neither requests nor MessagePack.
 */
#ifndef ATOLL_EXEC_H
#define ATOLL_EXEC_H

#include <sys/resource.h>

#include "input.h"
#include "launch.h"
#include "list.h"
#include "output.h"

enum {
    EXEC_MAX = 1024,
    EXEC_ID_MAX = 64,
    EXEC_COMMAND_MAX = 1024, /* bytes of an argument vector that are remembered */
};

struct execution {
    struct list link;
    char id[EXEC_ID_MAX + 1];
    char *command; /* its arguments, each with a zero byte behind it; what is too long is cut off */
    size_t command_size;
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

#endif
