/*
 * The files by which a root knows the machine's name. Agent protocol, section 7 (parameter `atoll.names`).
 */
#ifndef ATOLL_NAMES_H
#define ATOLL_NAMES_H

#include <stdbool.h>

/* The content of a hosts(5) that knows localhost and this machine, and no former name of it; to be freed. NULL if
 * there is no memory. */
char *names_hosts(const char *text, const char *hostname);

/* Writes /etc/hostname and /etc/hosts, and /etc/resolv.conf where there is none; false if not all of it can be. */
bool names_write(const char *hostname);

#endif
