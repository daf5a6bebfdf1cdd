/*
 * Small files, as in /proc and /sys.
 */
#ifndef ATOLL_FILE_H
#define ATOLL_FILE_H

#include <stdbool.h>
#include <stddef.h>

enum { FILE_MAX = 1 << 20 };

/* The whole file as a string to be freed; NULL with errno set if it cannot be read or is larger than FILE_MAX. */
char *file_read(const char *path);

/* Its first line, without the newline, cut off if longer. */
bool file_read_line(const char *path, char *line, size_t size);

bool file_write(const char *path, const char *text);

#endif
