#include "wire.h"

#include <string.h>

#include "check.h"

static struct wire_reader reader;

static void feed(const void *bytes, size_t size)
{
    size_t room;
    uint8_t *space = wire_reader_space(&reader, &room);

    CHECK(size <= room);
    memcpy(space, bytes, size);
    wire_reader_filled(&reader, size);
}

static size_t make(uint8_t *out, enum wire_type type, bool end, uint32_t stream, const char *payload)
{
    memcpy(out + WIRE_HEADER_SIZE, payload, strlen(payload));
    return wire_frame(out, type, end, stream, strlen(payload));
}

static void a_frame_is_laid_out_as_specified(void)
{
    static const uint8_t expected[] = {4, 1, 0, 0, 0x78, 0x56, 0x34, 0x12, 2, 0, 0, 0, 'h', 'i', 0xA5};
    uint8_t frame[64];

    CHECK(make(frame, WIRE_DATA, true, 0x12345678, "hi") == sizeof(expected));
    CHECK(memcmp(frame, expected, sizeof(expected)) == 0);
}

static void a_frame_is_read_whole_however_it_is_cut(void)
{
    struct wire_frame frame;
    uint8_t bytes[64];
    size_t size = make(bytes, WIRE_OPEN, false, 7, "payload");

    wire_reader_init(&reader);
    for (size_t i = 0; i < size; i++) {
        CHECK(!wire_reader_next(&reader, &frame));
        feed(bytes + i, 1);
    }
    CHECK(wire_reader_next(&reader, &frame));
    CHECK(frame.type == WIRE_OPEN && !frame.end && frame.stream == 7 && frame.length == 7);
    CHECK(memcmp(frame.payload, "payload", 7) == 0);
    CHECK(!wire_reader_next(&reader, &frame));
}

static void padding_between_frames_is_skipped(void)
{
    static const uint8_t zeros[37];
    struct wire_frame frame;
    uint8_t bytes[64];
    size_t size = make(bytes, WIRE_DATA, false, 1, "a");

    wire_reader_init(&reader);
    for (size_t padding = 0; padding < sizeof(zeros); padding++) {
        feed(zeros, padding);
        feed(bytes, size);
        CHECK(wire_reader_next(&reader, &frame));
        CHECK(!wire_reader_next(&reader, &frame));
    }
}

static void the_largest_frame_fits_and_a_larger_is_invalid(void)
{
    static uint8_t bytes[WIRE_FRAME_MAX];
    struct wire_frame frame;

    wire_reader_init(&reader);
    CHECK(wire_frame(bytes, WIRE_DATA, false, 1, WIRE_PAYLOAD_MAX) == WIRE_FRAME_MAX);
    feed("\0\0\0", 3);
    for (int i = 0; i < 5; i++) {
        feed(bytes, WIRE_FRAME_MAX);
        CHECK(wire_reader_next(&reader, &frame) && frame.length == WIRE_PAYLOAD_MAX);
    }
    wire_put_u32(bytes + 8, WIRE_PAYLOAD_MAX + 1);
    feed(bytes, WIRE_HEADER_SIZE);
    CHECK(!wire_reader_next(&reader, &frame));
    size_t size = make(bytes, WIRE_DATA, false, 3, "after");
    feed("\1\0", 2);
    feed(bytes, size);
    CHECK(wire_reader_next(&reader, &frame) && frame.stream == 3);
}

static void invalid_headers_put_the_reader_out_of_step_until_a_zero(void)
{
    static const uint8_t broken[][WIRE_HEADER_SIZE] = {
        {7, 0, 0, 0, 9, 9, 9, 9, 1, 0, 0, 0},
        {4, 2, 0, 0, 9, 9, 9, 9, 1, 0, 0, 0},
        {4, 0, 1, 0, 9, 9, 9, 9, 1, 0, 0, 0},
        {4, 0, 0, 1, 9, 9, 9, 9, 1, 0, 0, 0},
        {4, 0, 0, 0, 9, 9, 9, 9, 1, 0, 1, 0},
    };
    static const uint8_t zeros[WIRE_FRAME_MAX];
    struct wire_frame frame;
    uint8_t good[64];
    size_t size = make(good, WIRE_DATA, false, 5, "good");

    for (size_t i = 0; i < sizeof(broken) / sizeof(*broken); i++) {
        wire_reader_init(&reader);
        feed(broken[i], sizeof(broken[i]));
        feed(zeros, sizeof(zeros));
        CHECK(!wire_reader_next(&reader, &frame));
        feed(good, size);
        CHECK(wire_reader_next(&reader, &frame) && frame.stream == 5);
    }
}

static void a_wrong_mark_drops_the_frame(void)
{
    struct wire_frame frame;
    uint8_t bytes[64];
    size_t size = make(bytes, WIRE_DATA, false, 1, "x");

    wire_reader_init(&reader);
    bytes[size - 1] = 0; /* cut short: no trace */
    feed(bytes, size);
    bytes[size - 1] = 'x'; /* out of step up to the zero */
    feed(bytes, size);
    feed("rubbish\0", 8);
    bytes[size - 1] = WIRE_MARK;
    feed(bytes, size);
    CHECK(wire_reader_next(&reader, &frame) && frame.length == 1);
    CHECK(!wire_reader_next(&reader, &frame));
}

/* Section 3: wherever the former host stopped, HELLO is found behind the zeros. */
static void a_resync_completes_any_half_frame(void)
{
    static const uint8_t zeros[WIRE_FRAME_MAX];
    static uint8_t half[WIRE_FRAME_MAX];
    struct wire_hello hello = {1, 1, {1, 2, 3}};
    uint8_t greeting[WIRE_HELLO_SIZE + WIRE_OVERHEAD];
    struct wire_frame frame;

    memset(half, 0xff, sizeof(half));
    size_t whole = wire_frame(half, WIRE_DATA, true, 0xffffffff, WIRE_PAYLOAD_MAX);
    wire_hello_encode(greeting + WIRE_HEADER_SIZE, &hello);
    size_t size = wire_frame(greeting, WIRE_HELLO, false, 0, WIRE_HELLO_SIZE);
    for (size_t cut = 0; cut < whole; cut += cut < 64 ? 1 : 1021) {
        wire_reader_init(&reader);
        feed(half, cut);
        CHECK(!wire_reader_next(&reader, &frame));
        feed(zeros, WIRE_FRAME_MAX - cut); /* in two parts, as the reader has no room for all */
        CHECK(!wire_reader_next(&reader, &frame));
        feed(zeros, cut);
        CHECK(!wire_reader_next(&reader, &frame));
        feed(greeting, size);
        CHECK(wire_reader_next(&reader, &frame) && wire_hello_decode(&frame, &hello));
    }
}

static void hello_is_checked(void)
{
    struct wire_hello hello = {.lowest = 1, .highest = 0x0203};
    uint8_t payload[WIRE_HELLO_SIZE];
    struct wire_frame frame = {.type = WIRE_HELLO, .length = sizeof(payload), .payload = payload};

    memset(hello.nonce, 7, sizeof(hello.nonce));
    wire_hello_encode(payload, &hello);
    CHECK(memcmp(payload, "ATOL\1\0\3\2", 8) == 0);
    hello = (struct wire_hello){0};
    CHECK(wire_hello_decode(&frame, &hello) && hello.highest == 0x0203 && hello.nonce[15] == 7);
    frame.stream = 1;
    CHECK(!wire_hello_decode(&frame, &hello));
    frame.stream = 0;
    frame.length--;
    CHECK(!wire_hello_decode(&frame, &hello));
    frame.length++;
    payload[0] = 'a';
    CHECK(!wire_hello_decode(&frame, &hello));
}

const struct test wire_tests[] = {
    {"a frame is laid out as specified", a_frame_is_laid_out_as_specified},
    {"a frame is read whole however it is cut", a_frame_is_read_whole_however_it_is_cut},
    {"padding between frames is skipped", padding_between_frames_is_skipped},
    {"the largest frame fits and a larger is invalid", the_largest_frame_fits_and_a_larger_is_invalid},
    {"invalid headers put the reader out of step until a zero",
     invalid_headers_put_the_reader_out_of_step_until_a_zero},
    {"a wrong mark drops the frame", a_wrong_mark_drops_the_frame},
    {"a resync completes any half frame", a_resync_completes_any_half_frame},
    {"hello is checked", hello_is_checked},
    {0},
};
