#include "wire.h"

#include <string.h>

static const uint8_t hello_magic[4] = {'A', 'T', 'O', 'L'};

static uint16_t get_u16(const uint8_t *in)
{
    return (uint16_t)(in[0] | in[1] << 8);
}

static void put_u16(uint8_t *out, uint16_t value)
{
    out[0] = (uint8_t)value;
    out[1] = (uint8_t)(value >> 8);
}

uint32_t wire_get_u32(const uint8_t *in)
{
    return (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
}

void wire_put_u32(uint8_t *out, uint32_t value)
{
    out[0] = (uint8_t)value;
    out[1] = (uint8_t)(value >> 8);
    out[2] = (uint8_t)(value >> 16);
    out[3] = (uint8_t)(value >> 24);
}

void wire_reader_init(struct wire_reader *reader)
{
    reader->start = 0;
    reader->end = 0;
    reader->out_of_step = false;
}

uint8_t *wire_reader_space(struct wire_reader *reader, size_t *room)
{
    size_t held = reader->end - reader->start;

    if (held == 0 || WIRE_READER_SIZE - reader->start < WIRE_FRAME_MAX) {
        memmove(reader->buffer, reader->buffer + reader->start, held);
        reader->start = 0;
        reader->end = held;
    }
    *room = WIRE_READER_SIZE - reader->end;
    return reader->buffer + reader->end;
}

void wire_reader_filled(struct wire_reader *reader, size_t size)
{
    reader->end += size;
}

/* A resync is 32,781 zeros, skipped here: eight at a time, since the host waits for the answer. */
static void skip_padding(struct wire_reader *reader)
{
    const uint8_t *bytes = reader->buffer;
    uint64_t word;

    while (reader->end - reader->start >= sizeof(word)) {
        memcpy(&word, bytes + reader->start, sizeof(word));
        if (word != 0)
            break;
        reader->start += sizeof(word);
    }
    while (reader->start < reader->end && bytes[reader->start] == 0)
        reader->start++;
}

/* Drops bytes up to and including the next zero byte; false if none is there yet. */
static bool skip_to_zero(struct wire_reader *reader)
{
    const uint8_t *from = reader->buffer + reader->start;
    const uint8_t *zero = memchr(from, 0, reader->end - reader->start);

    if (!zero) {
        reader->start = reader->end;
        return false;
    }
    reader->start += (size_t)(zero - from) + 1;
    reader->out_of_step = false;
    return true;
}

static bool header_is_valid(const uint8_t *header)
{
    return header[0] >= WIRE_HELLO && header[0] <= WIRE_CREDIT && (header[1] & ~WIRE_END) == 0 &&
           header[2] == 0 && header[3] == 0 && wire_get_u32(header + 8) <= WIRE_PAYLOAD_MAX;
}

static void decode(const uint8_t *header, struct wire_frame *frame)
{
    frame->type = (enum wire_type)header[0];
    frame->end = header[1] & WIRE_END;
    frame->stream = wire_get_u32(header + 4);
    frame->length = wire_get_u32(header + 8);
    frame->payload = header + WIRE_HEADER_SIZE;
}

bool wire_reader_next(struct wire_reader *reader, struct wire_frame *frame)
{
    for (;;) {
        if (reader->out_of_step && !skip_to_zero(reader))
            return false;
        skip_padding(reader);

        const uint8_t *header = reader->buffer + reader->start;
        size_t held = reader->end - reader->start;
        if (held < WIRE_HEADER_SIZE)
            return false;
        if (!header_is_valid(header)) {
            reader->out_of_step = true;
            continue;
        }
        decode(header, frame);
        if (held < frame->length + WIRE_OVERHEAD)
            return false;

        uint8_t mark = frame->payload[frame->length];
        reader->start += frame->length + WIRE_OVERHEAD;
        if (mark == WIRE_MARK)
            return true;
        if (mark != 0) {
            reader->start--;
            reader->out_of_step = true;
        }
    }
}

size_t wire_frame(uint8_t *out, enum wire_type type, bool end, uint32_t stream, size_t length)
{
    out[0] = (uint8_t)type;
    out[1] = end ? WIRE_END : 0;
    put_u16(out + 2, 0);
    wire_put_u32(out + 4, stream);
    wire_put_u32(out + 8, (uint32_t)length);
    out[WIRE_HEADER_SIZE + length] = WIRE_MARK;
    return length + WIRE_OVERHEAD;
}

bool wire_hello_decode(const struct wire_frame *frame, struct wire_hello *hello)
{
    const uint8_t *in = frame->payload;

    if (frame->stream != 0 || frame->length != WIRE_HELLO_SIZE ||
        memcmp(in, hello_magic, sizeof(hello_magic)) != 0)
        return false;
    hello->lowest = get_u16(in + 4);
    hello->highest = get_u16(in + 6);
    memcpy(hello->nonce, in + 8, WIRE_NONCE_SIZE);
    return true;
}

void wire_hello_encode(uint8_t out[WIRE_HELLO_SIZE], const struct wire_hello *hello)
{
    memcpy(out, hello_magic, sizeof(hello_magic));
    put_u16(out + 4, hello->lowest);
    put_u16(out + 6, hello->highest);
    memcpy(out + 8, hello->nonce, WIRE_NONCE_SIZE);
}
