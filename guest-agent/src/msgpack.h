/*
 * MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md): a strict reader over a buffer and a
 * writer into a bounded one. Pure: no I/O, no allocation.
 *
 * A payload is checked once as a whole with mp_valid_map(). After that, a typed read fails only if the value is
 * of another type.
 */
#ifndef ATOLL_MSGPACK_H
#define ATOLL_MSGPACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MP_DEPTH_MAX = 8 };

struct mp_reader {
    const uint8_t *at;
    const uint8_t *end;
};

struct mp_bytes {
    const uint8_t *data;
    size_t size;
};

/* Whether the buffer holds exactly one map, whole and well-formed, nested at most MP_DEPTH_MAX deep. */
bool mp_valid_map(const uint8_t *data, size_t size);

/* Sets `value` to the value of the first such key of the map; false if there is none or it is nil. */
bool mp_find(struct mp_reader map, const char *key, struct mp_reader *value);

/* Each reads the next value and steps over it; false, without stepping, if it is of another type. */
bool mp_read_int(struct mp_reader *reader, int64_t *value);
bool mp_read_bool(struct mp_reader *reader, bool *value);
bool mp_read_bytes(struct mp_reader *reader, struct mp_bytes *bytes); /* str or bin */
bool mp_read_array(struct mp_reader *reader, size_t *count);
bool mp_read_map(struct mp_reader *reader, size_t *count);
/* Steps over the next value, whatever it is. */
bool mp_skip(struct mp_reader *reader);

struct mp_writer {
    uint8_t *start;
    uint8_t *at;
    uint8_t *end;
    bool overflow; /* something did not fit; what was written before is whole */
};

void mp_writer_init(struct mp_writer *writer, uint8_t *buffer, size_t size);
size_t mp_written(const struct mp_writer *writer);

/* Room for `size` bytes that are filled in later, or NULL if they do not fit. */
uint8_t *mp_claim(struct mp_writer *writer, size_t size);

void mp_write_int(struct mp_writer *writer, int64_t value);
void mp_write_bool(struct mp_writer *writer, bool value);
void mp_write_str(struct mp_writer *writer, const char *text);
void mp_write_bin(struct mp_writer *writer, const uint8_t *data, size_t size);
void mp_write_array(struct mp_writer *writer, size_t count);
void mp_write_map(struct mp_writer *writer, size_t count);

/* A key and its value. */
void mp_put_int(struct mp_writer *writer, const char *key, int64_t value);
void mp_put_bool(struct mp_writer *writer, const char *key, bool value);
void mp_put_str(struct mp_writer *writer, const char *key, const char *text);

#endif
