/*
 * Boot parameters on the kernel command line. Agent protocol, section 7. Pure.
 */
#ifndef ATOLL_CMDLINE_H
#define ATOLL_CMDLINE_H

#include <stdbool.h>
#include <stddef.h>

enum {
    CMDLINE_SERIAL_MAX = 20, /* of virtio-blk */
    CMDLINE_TYPE_MAX = 32,
    CMDLINE_PATH_MAX = 255,
    CMDLINE_HOSTNAME_MAX = 64,
    CMDLINE_MACHINE_ID_SIZE = 32,
};

/* An empty string where a parameter is absent and has no default. */
struct cmdline {
    char root[CMDLINE_SERIAL_MAX + 1];
    char rootfs[CMDLINE_TYPE_MAX + 1];
    char data[CMDLINE_SERIAL_MAX + 1];
    char datafs[CMDLINE_TYPE_MAX + 1];
    char modules[CMDLINE_SERIAL_MAX + 1];
    char emulator[CMDLINE_SERIAL_MAX + 1];
    char init[CMDLINE_PATH_MAX + 1];
    char direct[CMDLINE_PATH_MAX + 1];
    char hostname[CMDLINE_HOSTNAME_MAX + 1];
    char machine_id[CMDLINE_MACHINE_ID_SIZE + 1];
    bool lifeline;
    bool hold;
    bool names;
};

struct cmdline_parameter {
    const char *name; /* without its prefix "atoll." */
    size_t offset;
    size_t size; /* with the final zero */
};

/* The parameters that are text; ends with a name that is NULL. */
extern const struct cmdline_parameter cmdline_parameters[];

/* False if a value is too long; `wrong` then names its parameter. */
bool cmdline_parse(const char *text, struct cmdline *cmdline, const char **wrong);

/* Takes the next path of a list with colons between; false at its end, or at one that is not absolute and plain:
 * `list` is then not at its end. */
bool cmdline_next_path(const char **list, char path[CMDLINE_PATH_MAX + 1]);

#endif
