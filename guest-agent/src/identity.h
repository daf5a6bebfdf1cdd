/*
 * What tells one machine from its clones. Each function sets `failed` where it returns false.
 */
#ifndef ATOLL_IDENTITY_H
#define ATOLL_IDENTITY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "failure.h"

enum { IDENTITY_SEED_MIN = 32, IDENTITY_SEED_MAX = 512 };

/* Sets the realtime clock, ns since 1970. */
bool identity_set_clock(int64_t realtime, struct failure *failed);

/* Credits the seed to the entropy pool and has the generator draw from it at once. */
bool identity_reseed(const uint8_t *seed, size_t size, struct failure *failed);

bool identity_set_hostname(const char *hostname, struct failure *failed);

/* Where the root has a place for it. */
bool identity_set_machine_id(const char *machine_id, struct failure *failed);

/* Gives the first Ethernet interface this address, six bytes. */
bool identity_set_mac(const uint8_t mac[6], struct failure *failed);

#endif
