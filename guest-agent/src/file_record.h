/*
 * What is told of files, and of changes of them. Agent protocol, section 9.
 */
#ifndef ATOLL_FILE_RECORD_H
#define ATOLL_FILE_RECORD_H

#include <sys/stat.h>

#include "msgpack.h"

enum {
    FILE_RECORD_MAX = 8192,
    FILE_LENGTH_SIZE = 4, /* before a record */
    FILE_STATUS_KEYS = 6,
    FILE_LINK_MAX = 4095, /* bytes of a symbolic link's text */
};

/* What a file is, by its mode, in one word. */
const char *file_type(mode_t mode);

/* A record of `count` keys, the length of which is filled in by file_record_end(). The buffer has room for
 * FILE_LENGTH_SIZE + FILE_RECORD_MAX bytes. */
struct mp_writer file_record_begin(uint8_t *buffer, size_t count);
/* The size of both, or 0 if the record did not fit. */
size_t file_record_end(uint8_t *buffer, const struct mp_writer *writer);

/* FILE_STATUS_KEYS keys and their values. */
void file_put_status(struct mp_writer *writer, const struct stat *status);
void file_put_bytes(struct mp_writer *writer, const char *key, const char *bytes, size_t size);

#endif
