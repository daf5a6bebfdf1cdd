#include "mux.h"

#include <string.h>

#include "check.h"
#include "msgpack.h"

static struct mux mux;
static struct wire_reader sent;

/* A stream whose owner sends as much as it can, and keeps what it gets without consuming it. */
static struct owner {
    struct stream *stream;
    size_t to_send;
    size_t received;
    size_t credited;
    bool end;
    bool closed;
} owners[8];
static size_t opened;

static void on_data(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct owner *owner = stream->owner;

    (void)bytes;
    owner->received += size;
    owner->end = end;
}

static size_t on_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct owner *owner = stream->owner;
    size_t size = owner->to_send < max ? owner->to_send : max;

    memset(out, 'x', size);
    owner->to_send -= size;
    *end = owner->to_send == 0;
    return size;
}

static void on_credit(struct stream *stream, size_t size)
{
    struct owner *owner = stream->owner;

    owner->credited += size;
}

static void on_closed(struct stream *stream)
{
    struct owner *owner = stream->owner;

    owner->stream = NULL;
    owner->closed = true;
}

static void on_open(void *context, struct stream *stream, const uint8_t *payload, size_t length)
{
    static const struct stream_ops ops = {on_data, on_pull, on_credit, on_closed};
    struct owner *owner = &owners[opened++];

    (void)context;
    (void)payload;
    (void)length;
    *owner = (struct owner){.stream = stream};
    stream->ops = &ops;
    stream->owner = owner;
}

static void receive(enum wire_type type, bool end, uint32_t stream, const void *payload, size_t size)
{
    struct wire_frame frame = {type, end, stream, (uint32_t)size, payload};

    mux_receive(&mux, &frame);
}

static void receive_credit(uint32_t stream, uint32_t size)
{
    uint8_t payload[4];

    wire_put_u32(payload, size);
    receive(WIRE_CREDIT, false, stream, payload, sizeof(payload));
}

/* The next frame that the mux sends; NULL if there is none. */
static const struct wire_frame *next(void)
{
    static struct wire_frame frame;
    size_t room;

    if (!wire_reader_next(&sent, &frame)) {
        uint8_t *space = wire_reader_space(&sent, &room);
        wire_reader_filled(&sent, mux_pull(&mux, space, room < 32768 ? room : 32768));
        if (!wire_reader_next(&sent, &frame))
            return NULL;
    }
    return &frame;
}

static bool next_is_reset(uint32_t stream, const char *code)
{
    const struct wire_frame *frame = next();
    struct mp_reader value;
    struct mp_bytes bytes;

    return frame && frame->type == WIRE_RESET && frame->stream == stream &&
           mp_find((struct mp_reader){frame->payload, frame->payload + frame->length}, "code", &value) &&
           mp_read_bytes(&value, &bytes) && memcmp(bytes.data, code, bytes.size) == 0;
}

static void hello(uint16_t lowest, uint16_t highest)
{
    struct wire_hello greeting = {.lowest = lowest, .highest = highest, .nonce = {1, 2, 3}};
    uint8_t payload[WIRE_HELLO_SIZE];

    wire_hello_encode(payload, &greeting);
    receive(WIRE_HELLO, false, 0, payload, sizeof(payload));
}

static void begin(void)
{
    opened = 0;
    wire_reader_init(&sent);
    CHECK(mux_init(&mux, on_open, NULL));
    hello(1, 1);
    CHECK(next()->type == WIRE_HELLO);
}

static void open_stream(uint32_t id, bool end)
{
    receive(WIRE_OPEN, end, id, "\x80", 1);
}

static void reply(size_t owner, bool end)
{
    mux_reply(owners[owner].stream, (const uint8_t *)"\x80", 1, end);
    CHECK(next()->type == WIRE_REPLY);
}

static void hello_is_answered_with_the_version_and_drops_all_streams(void)
{
    struct wire_hello answer;

    begin();
    open_stream(1, false);
    CHECK(mux.streams == 1);
    hello(1, 9);
    CHECK(owners[0].closed && mux.streams == 0);
    CHECK(wire_hello_decode(next(), &answer));
    CHECK(answer.lowest == 1 && answer.highest == 1 && answer.nonce[2] == 3);
    open_stream(1, false); /* ids start anew */
    CHECK(mux.streams == 1);
    hello(2, 9);
    CHECK(wire_hello_decode(next(), &answer) && answer.lowest == 0 && answer.highest == 0);
    open_stream(1, false);
    CHECK(mux.streams == 0 && !next());
    mux_free(&mux);
}

static void a_stream_ends_when_both_sides_have(void)
{
    begin();
    open_stream(1, false);
    reply(0, true);
    CHECK(!owners[0].closed);
    receive(WIRE_DATA, true, 1, "ab", 2);
    CHECK(owners[0].closed && owners[0].received == 2 && owners[0].end);
    receive(WIRE_DATA, true, 1, "ab", 2); /* crossed the end: ignored */
    CHECK(!next());
    open_stream(3, true);
    reply(1, true);
    CHECK(owners[1].closed && mux.streams == 0);
    mux_free(&mux);
}

static void sending_stops_at_the_window_and_goes_on_with_credit(void)
{
    size_t total = 0;
    const struct wire_frame *frame;

    begin();
    open_stream(1, true);
    reply(0, false);
    owners[0].to_send = 4 * MUX_WINDOW;
    mux_ready(owners[0].stream);
    while ((frame = next()))
        total += frame->length;
    CHECK(total == MUX_WINDOW);
    receive_credit(1, 1000);
    CHECK((frame = next()) && frame->length == 1000 && !next());
    CHECK(owners[0].credited == 1000);
    receive_credit(1, MUX_WINDOW);
    receive_credit(1, 1);
    CHECK(next_is_reset(1, FAIL_PROTOCOL));
    CHECK(owners[0].closed);
    mux_free(&mux);
}

static void the_end_needs_no_window(void)
{
    const struct wire_frame *frame;
    bool ended = false;

    begin();
    open_stream(1, true);
    reply(0, false);
    owners[0].to_send = MUX_WINDOW;
    mux_ready(owners[0].stream);
    while ((frame = next()))
        ended = frame->end;
    CHECK(ended && owners[0].closed);
    mux_free(&mux);
}

static void streams_are_served_in_turn(void)
{
    begin();
    for (uint32_t id = 1; id <= 5; id += 2)
        open_stream(id, true);
    for (size_t i = 0; i < 3; i++)
        reply(i, false);
    for (size_t i = 0; i < 3; i++) {
        owners[i].to_send = 100000;
        mux_ready(owners[i].stream);
    }
    for (int round = 0; round < 3; round++) {
        for (uint32_t id = 1; id <= 5; id += 2)
            CHECK(next()->stream == id);
    }
    mux_free(&mux);
}

static void a_full_data_frame_is_one_write(void)
{
    uint8_t chunk[32768];

    begin();
    open_stream(1, true);
    reply(0, false);
    owners[0].to_send = 100000;
    mux_ready(owners[0].stream);
    CHECK(mux_pull(&mux, chunk, sizeof(chunk)) == sizeof(chunk));
    CHECK(chunk[0] == WIRE_DATA && wire_get_u32(chunk + 8) == 32755);
    mux_free(&mux);
}

static void control_goes_before_data(void)
{
    begin();
    open_stream(1, true);
    reply(0, false);
    owners[0].to_send = 100000;
    mux_ready(owners[0].stream);
    CHECK(next()->type == WIRE_DATA);
    open_stream(3, true);
    mux_reply(owners[1].stream, (const uint8_t *)"\x80", 1, true);
    CHECK(next()->type == WIRE_REPLY && next()->type == WIRE_DATA);
    mux_free(&mux);
}

static void no_data_before_the_reply(void)
{
    begin();
    open_stream(1, true);
    owners[0].to_send = 10;
    mux_ready(owners[0].stream);
    CHECK(!next());
    reply(0, false);
    mux_ready(owners[0].stream);
    CHECK(next()->length == 10);
    mux_free(&mux);
}

static void credit_is_given_back_at_a_quarter_of_the_window(void)
{
    static uint8_t data[WIRE_PAYLOAD_MAX];
    const struct wire_frame *frame;

    begin();
    open_stream(1, false);
    for (int i = 0; i < MUX_WINDOW / WIRE_PAYLOAD_MAX; i++)
        receive(WIRE_DATA, false, 1, data, sizeof(data));
    mux_consumed(owners[0].stream, MUX_WINDOW / 4 - 1);
    CHECK(!next());
    mux_consumed(owners[0].stream, 1);
    CHECK((frame = next()) && frame->type == WIRE_CREDIT && wire_get_u32(frame->payload) == MUX_WINDOW / 4);
    for (int i = 0; i < MUX_WINDOW / 4 / WIRE_PAYLOAD_MAX; i++)
        receive(WIRE_DATA, false, 1, data, sizeof(data));
    CHECK(!next());
    receive(WIRE_DATA, false, 1, data, 1);
    CHECK(next_is_reset(1, FAIL_PROTOCOL));
    mux_free(&mux);
}

static void violations_reset_the_stream(void)
{
    begin();
    open_stream(1, true);
    receive(WIRE_DATA, false, 1, "x", 1); /* after END */
    CHECK(next_is_reset(1, FAIL_PROTOCOL) && owners[0].closed);
    open_stream(3, false);
    open_stream(3, false); /* twice */
    CHECK(next_is_reset(3, FAIL_PROTOCOL) && owners[1].closed);
    open_stream(1, false); /* lower */
    CHECK(next_is_reset(1, FAIL_PROTOCOL));
    open_stream(6, false); /* the guest's */
    CHECK(next_is_reset(6, FAIL_PROTOCOL));
    receive(WIRE_OPEN, true, 5, "\xc1", 1);
    CHECK(next_is_reset(5, FAIL_PROTOCOL));
    open_stream(7, false);
    receive(WIRE_REPLY, false, 7, "\x80", 1);
    CHECK(next_is_reset(7, FAIL_PROTOCOL));
    open_stream(9, false);
    receive(WIRE_CREDIT, false, 9, "abc", 3);
    CHECK(next_is_reset(9, FAIL_PROTOCOL));
    open_stream(11, false);
    receive(WIRE_RESET, false, 11, "\x80", 1);
    CHECK(!next() && mux.streams == 0);
    mux_free(&mux);
}

static void refuse(void *context, struct stream *stream, const uint8_t *payload, size_t length)
{
    (void)context;
    (void)stream;
    (void)payload;
    (void)length;
}

static void a_limit_of_streams_is_a_reset_and_the_queue_cannot_overflow(void)
{
    char long_message[400];
    size_t frames = 0;

    wire_reader_init(&sent);
    CHECK(mux_init(&mux, refuse, NULL));
    hello(1, 1);
    memset(long_message, 'm', sizeof(long_message));
    long_message[sizeof(long_message) - 1] = '\0';
    for (uint32_t i = 0; i <= MUX_STREAMS_MAX; i++)
        open_stream(2 * i + 1, false);
    CHECK(mux.streams == MUX_STREAMS_MAX);
    /* As much as may be queued, then a reset of everything. */
    while (mux_accepts(&mux))
        open_stream(2, false);
    CHECK(mux.control.used < MUX_CONTROL_PAUSE + WIRE_FRAME_MAX);
    for (uint32_t i = 0; i < MUX_STREAMS_MAX; i++) {
        struct failure failed = failure_os(1, "stage", "%s", long_message);
        mux_reset(mux_find(&mux, 2 * i + 1), &failed);
    }
    CHECK(mux.streams == 0);
    while (next())
        frames++;
    CHECK(frames > MUX_STREAMS_MAX);
    mux_free(&mux);
}

const struct test mux_tests[] = {
    {"hello is answered with the version and drops all streams",
     hello_is_answered_with_the_version_and_drops_all_streams},
    {"a stream ends when both sides have", a_stream_ends_when_both_sides_have},
    {"sending stops at the window and goes on with credit", sending_stops_at_the_window_and_goes_on_with_credit},
    {"the end needs no window", the_end_needs_no_window},
    {"streams are served in turn", streams_are_served_in_turn},
    {"a full data frame is one write", a_full_data_frame_is_one_write},
    {"control goes before data", control_goes_before_data},
    {"no data before the reply", no_data_before_the_reply},
    {"credit is given back at a quarter of the window", credit_is_given_back_at_a_quarter_of_the_window},
    {"violations reset the stream", violations_reset_the_stream},
    {"a limit of streams is a reset and the queue cannot overflow",
     a_limit_of_streams_is_a_reset_and_the_queue_cannot_overflow},
    {0},
};
