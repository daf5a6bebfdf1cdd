/*
 * Frames: encoding, and an incremental reader that finds its way back into step.
 * Agent protocol, sections 2 and 3. Pure: no I/O, no allocation.
 */
#ifndef ATOLL_WIRE_H
#define ATOLL_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum wire_type {
    WIRE_HELLO = 1,
    WIRE_OPEN = 2,
    WIRE_REPLY = 3,
    WIRE_DATA = 4,
    WIRE_RESET = 5,
    WIRE_CREDIT = 6,
};

enum {
    WIRE_END = 0x01,
    WIRE_MARK = 0xA5,

    WIRE_HEADER_SIZE = 12,
    WIRE_OVERHEAD = WIRE_HEADER_SIZE + 1, /* header and mark */
    WIRE_PAYLOAD_MAX = 32768,
    WIRE_FRAME_MAX = WIRE_PAYLOAD_MAX + WIRE_OVERHEAD,

    WIRE_HELLO_SIZE = 24,
    WIRE_NONCE_SIZE = 16,

    /* Room for a frame and as much again, so that the reader seldom moves bytes. */
    WIRE_READER_SIZE = 2 * WIRE_FRAME_MAX,
};

struct wire_frame {
    enum wire_type type;
    bool end;
    uint32_t stream;
    uint32_t length;
    const uint8_t *payload; /* inside the reader, valid until it is next used */
};

struct wire_hello {
    uint16_t lowest;
    uint16_t highest;
    uint8_t nonce[WIRE_NONCE_SIZE];
};

struct wire_reader {
    size_t start;
    size_t end;
    bool out_of_step;
    uint8_t buffer[WIRE_READER_SIZE];
};

void wire_reader_init(struct wire_reader *reader);

/* Where the next bytes go. There is room whenever wire_reader_next() has returned false. */
uint8_t *wire_reader_space(struct wire_reader *reader, size_t *room);
void wire_reader_filled(struct wire_reader *reader, size_t size);

/* Takes the next whole frame out of the reader; false if more bytes are needed. */
bool wire_reader_next(struct wire_reader *reader, struct wire_frame *frame);

/* Writes the header before and the mark behind a payload that is, or will be, at out + WIRE_HEADER_SIZE.
 * Returns the size of the frame. */
size_t wire_frame(uint8_t *out, enum wire_type type, bool end, uint32_t stream, size_t length);

bool wire_hello_decode(const struct wire_frame *frame, struct wire_hello *hello);
void wire_hello_encode(uint8_t out[WIRE_HELLO_SIZE], const struct wire_hello *hello);

uint32_t wire_get_u32(const uint8_t *in);
void wire_put_u32(uint8_t *out, uint32_t value);

#endif
