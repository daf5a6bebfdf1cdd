/*
 * Process 1 where it is the root's own init: what the agent knows of it at the machine's end.
 */
#ifndef ATOLL_INIT_H
#define ATOLL_INIT_H

#include <stdbool.h>

enum init_end {
    INIT_RUNS,
    INIT_POWERS_OFF,
    INIT_REBOOTS,
    INIT_ENDS, /* in another way: halt, kexec */
};

/* Whether process 1 has become systemd's last program, and what for. */
enum init_end init_end(void);

/* Asks systemd to stop its units in their order, and then to turn the machine off. */
void init_ask(bool reboot);

/* Makes process 1 stand still, so that it does not start again what is stopped. False if that cannot be done. */
bool init_freeze(void);

#endif
