/*
 * Programs of another architecture: the kernel hands them to an interpreter that lies on a disk of its own.
 * Agent protocol, section 7.2.
 */
#ifndef ATOLL_EMULATION_H
#define ATOLL_EMULATION_H

#include <stdbool.h>

#include "failure.h"

/* Registers what the disk holds. To be called in the initramfs: nothing of it is in the root. */
bool emulation_begin(const char *device, struct failure *failed);

#endif
