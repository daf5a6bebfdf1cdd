/*
 * Devices, by what sysfs says of them.
 */
#ifndef ATOLL_DEVICE_H
#define ATOLL_DEVICE_H

#include <limits.h>
#include <stdbool.h>

#define BLOCK_CLASS "/sys/block"

/* Finds the entry of a class in sysfs whose attribute has this value. */
bool device_find(const char *class, const char *attribute, const char *value, char name[NAME_MAX + 1]);

#endif
