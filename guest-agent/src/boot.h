/*
 * Process 1 from its start until the root is ready. Agent protocol, section 7.
 *
 * Only what the channel needs is done at once, in boot_begin(). The rest is done in steps, between which the agent
 * already answers; requests that need the root wait.
 */
#ifndef ATOLL_BOOT_H
#define ATOLL_BOOT_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include "cmdline.h"
#include "failure.h"
#include "modules.h"

enum boot_phase {
    BOOT_RUNNING,
    BOOT_HELD, /* before the root, until boot_release() */
    BOOT_DONE,
    BOOT_FAILED,
};

enum boot_moment { BOOT_START, BOOT_CHANNEL, BOOT_MODULES, BOOT_ROOT, BOOT_READY, BOOT_MOMENTS };

/* What to do before the next step. */
enum boot_progress {
    BOOT_GO_ON,   /* nothing */
    BOOT_WAIT,    /* wait a moment: something is not there yet */
    BOOT_STOPPED, /* all steps are done, or one failed */
};

struct agent;

struct boot {
    enum boot_phase phase;
    int64_t timeline[BOOT_MOMENTS]; /* ns since boot; 0 if not reached */
    struct failure failure;

    struct cmdline options;
    struct module_list modules;
    char root_device[NAME_MAX + 1];
    char data_device[NAME_MAX + 1];
    char modules_device[NAME_MAX + 1];
    char emulator_device[NAME_MAX + 1];
    struct module_list held_modules;
    size_t step;
    int64_t wait_until; /* when what a step waits for is given up */
    int data_mount;     /* the overlay's upper file system, which has no path any more; -1 if on tmpfs */
    int memory_mount;   /* the same if it is on tmpfs; else -1 */
    int init_status;    /* pipe from process 1: closed once it has executed the root's init */
};

/* Prepares the system and opens the port of the channel. On failure: -1, and `failed` is set. */
int boot_begin(struct boot *boot, struct failure *failed);

/* Sets everything as for an ordinary system that runs already. */
void boot_skip(struct boot *boot);

enum boot_progress boot_step(struct agent *agent);

/* Whether the root is there or is known not to come. */
static inline bool boot_is_over(const struct boot *boot)
{
    return boot->phase == BOOT_DONE || boot->phase == BOOT_FAILED;
}

/* Goes on with a boot that is held. */
static inline void boot_release(struct boot *boot)
{
    if (boot->phase == BOOT_HELD)
        boot->phase = BOOT_RUNNING;
}

#endif
