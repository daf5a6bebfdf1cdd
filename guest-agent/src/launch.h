/*
 * Starting a process: the only place that forks a command, signals it or opens its descriptors.
 * Agent protocol, section 6, "Start".
 */
#ifndef ATOLL_LAUNCH_H
#define ATOLL_LAUNCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "user.h"

struct launch {
    char *const *argv;
    char *const *env;
    const char *path; /* where argv[0] is looked up if it has no slash */
    const char *cwd;  /* NULL: the user's home, or / */
    bool make_cwd;    /* by the agent, where it is missing */
    const struct user *user;
    bool tty;
    uint16_t rows;
    uint16_t columns;
    bool input; /* false: /dev/null, unless there is a tty */
};

struct launched {
    pid_t pid;
    int input;  /* write end, or -1 */
    int output; /* read end of descriptor 1 */
    int error;  /* read end of descriptor 2, or -1 with a tty */
};

/* Sets the agent's own umask and resource limits apart from those that commands get. Call once. */
void launch_init(bool init);

/* On failure nothing is left behind. */
bool launch(const struct launch *launch, struct launched *launched, struct failure *failed);

/* These return 0 or an errno. */
int launch_signal(pid_t group, int signal);
int launch_resize(int tty, uint16_t rows, uint16_t columns);

#endif
