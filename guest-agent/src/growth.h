/*
 * Limits that a kernel sets by the memory that it finds at its boot.
 */
#ifndef ATOLL_GROWTH_H
#define ATOLL_GROWTH_H

#include <stdbool.h>
#include <stdint.h>

#include "failure.h"

/* Raises sizes and numbers to what they would be with `growth` more bytes of memory. `upper` is the mount of the
 * tmpfs under the root's overlay, or -1. False, with `failed` set, if what users write cannot grow. */
bool growth_raise_limits(int upper, int64_t growth, struct failure *failed);

/* Has the root's tmpfs, known by a descriptor, take no more than so many bytes. False if it holds more already. */
bool growth_limit_root(int upper, int64_t size, struct failure *failed);

#endif
