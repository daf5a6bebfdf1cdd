/*
 * The agent as a whole: what its parts share.
 */
#ifndef ATOLL_AGENT_H
#define ATOLL_AGENT_H

#include "boot.h"
#include "connection.h"
#include "datagram.h"
#include "exec.h"
#include "job.h"
#include "link.h"
#include "loop.h"
#include "mux.h"

/* Who is process 1. */
enum agent_mode {
    AGENT_HOSTED,      /* an ordinary system, which is left alone */
    AGENT_MINIMAL,     /* the agent */
    AGENT_HANDED_OVER, /* the init of the root; the agent is its child */
};

enum { POWER_GRACE_MS = 2000 };

struct power {
    bool requested;
    bool reboot;
    bool orderly; /* the root's init stops its units in their order */
    int64_t grace_ms;
    int64_t ask_again; /* when the root's init is asked once more, or 0 */
};

/* The data disk's file system while it is frozen. */
struct freezer {
    int root;            /* a descriptor of it, or -1 */
    struct source timer; /* ends it */
};

struct agent {
    enum agent_mode mode;
    char **argv;
    struct loop loop;
    struct link link;
    struct mux mux;
    struct boot boot;
    struct executions executions;
    struct connections connections;
    struct flows flows;
    struct power power;
    struct freezer freezer;
    struct source signals;
    struct source listener; /* of a hosted agent that serves one connection after another, or closed */

    struct jobs jobs;
    struct list parked; /* requests that wait for the root */
    size_t parked_size;

    uint8_t reply[WIRE_PAYLOAD_MAX];
};

/* Opens, or after a fork opens anew, the descriptor that tells of signals. */
bool agent_watch_signals(struct agent *agent);

#endif
