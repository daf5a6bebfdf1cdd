/*
 * Boot parameters on the kernel command line. Agent protocol, section 7. Pure.
 */
#ifndef ATOLL_CMDLINE_H
#define ATOLL_CMDLINE_H

#include <stdbool.h>

enum {
    CMDLINE_SERIAL_MAX = 20, /* of virtio-blk */
    CMDLINE_TYPE_MAX = 32,
    CMDLINE_PATH_MAX = 255,
    CMDLINE_HOSTNAME_MAX = 64,
};

/* An empty string where a parameter is absent and has no default. */
struct cmdline {
    char root[CMDLINE_SERIAL_MAX + 1];
    char rootfs[CMDLINE_TYPE_MAX + 1];
    char data[CMDLINE_SERIAL_MAX + 1];
    char datafs[CMDLINE_TYPE_MAX + 1];
    char modules[CMDLINE_SERIAL_MAX + 1];
    char init[CMDLINE_PATH_MAX + 1];
    char hostname[CMDLINE_HOSTNAME_MAX + 1];
    bool lifeline;
};

/* False if a value is too long; `wrong` then names its parameter. */
bool cmdline_parse(const char *text, struct cmdline *cmdline, const char **wrong);

#endif
