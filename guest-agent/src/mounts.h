/*
 * File systems: mounting, and moving into the root. Agent protocol, section 7.
 *
 * All return false with `failed` set, its stage still to be filled in.
 */
#ifndef ATOLL_MOUNTS_H
#define ATOLL_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>

#include "failure.h"

/* Mounts on a directory that is made if need be. */
bool mount_on(const char *source, const char *target, const char *type, unsigned long flags,
              const char *options, struct failure *failed);

/* /dev, /proc and /sys. */
bool mount_kernel_filesystems(struct failure *failed);

/* What programs expect besides: /run, /dev/pts, /dev/shm, a /tmp that can be written to. */
bool mount_runtime_filesystems(struct failure *failed);

/* Only where the agent stays process 1; an init of the root mounts its own. */
void mount_cgroups(void);

/* Takes /dev, /proc and /sys along, makes the directory the root, and frees the initramfs. */
bool mount_switch_root(const char *directory, struct failure *failed);

/* Unmounts what can be and makes the rest read-only. `data_mount` is a directory or -1. */
void mount_quiesce(int data_mount);

#endif
