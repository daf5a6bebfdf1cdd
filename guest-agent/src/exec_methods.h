/*
 * The link between reaping and exec.wait.
 */
#ifndef ATOLL_EXEC_METHODS_H
#define ATOLL_EXEC_METHODS_H

#include "request.h"

/* A child process has ended: answers those who wait for it. */
void exec_process_ended(struct agent *agent, pid_t pid, int status, const struct rusage *usage);

#endif
