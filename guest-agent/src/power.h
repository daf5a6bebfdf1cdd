/*
 * Turning the machine off. Agent protocol, section 5 (system.poweroff) and section 7 (atoll.lifeline).
 */
#ifndef ATOLL_POWER_H
#define ATOLL_POWER_H

#include "agent.h"

/* Without ado: for a machine whose host is gone, or that never came up. */
__attribute__((noreturn)) void power_cut(void);

/* The root's init has sent SIGTERM: if it is about to turn the machine off, the agent does so in its stead. */
void power_init_ends(struct agent *agent);

/* Does what system.poweroff has asked for. Returns only if the root's init has been asked to do it. */
void power_carry_out(struct agent *agent);

/* Asks the root's init once more if it has been asked and nothing came of it. */
void power_ask_again(struct agent *agent);

#endif
