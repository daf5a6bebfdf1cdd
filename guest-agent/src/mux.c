#include "mux.h"

#include <assert.h>
#include <stdlib.h>

#include "msgpack.h"

enum {
    CREDIT_SIZE = 4,
    RESET_MAX = 512,
    /* Data is not cut into frames smaller than this to fill up a chunk. */
    ROOM_WORTH_USING = 4096,
};

static struct list *bucket_of(struct mux *mux, uint32_t id)
{
    return &mux->buckets[id / 2 % MUX_BUCKETS];
}

bool mux_init(struct mux *mux,
              void (*open)(void *context, struct stream *stream, const uint8_t *payload, size_t length),
              void *context)
{
    *mux = (struct mux){.open = open, .context = context};
    list_init(&mux->ready);
    for (size_t i = 0; i < MUX_BUCKETS; i++)
        list_init(&mux->buckets[i]);
    ring_init(&mux->control, MUX_CONTROL_MAX);
    return ring_reserve(&mux->control);
}

static void queue_control(struct mux *mux, enum wire_type type, bool end, uint32_t id,
                          const uint8_t *payload, size_t length)
{
    static const uint8_t mark = WIRE_MARK;
    uint8_t header[WIRE_OVERHEAD];

    wire_frame(header, type, end, id, 0);
    wire_put_u32(header + 8, (uint32_t)length);
    ring_put(&mux->control, header, WIRE_HEADER_SIZE);
    ring_put(&mux->control, payload, length);
    ring_put(&mux->control, &mark, 1);
}

static void queue_reset(struct mux *mux, uint32_t id, const struct failure *failed)
{
    uint8_t payload[RESET_MAX];
    struct mp_writer writer;

    mp_writer_init(&writer, payload, sizeof(payload));
    mp_write_map(&writer, 2U + (failed->error != 0) + (failed->stage != NULL));
    mp_put_str(&writer, "code", failed->code);
    mp_put_str(&writer, "message", failed->message);
    if (failed->error)
        mp_put_int(&writer, "errno", failed->error);
    if (failed->stage)
        mp_put_str(&writer, "stage", failed->stage);
    assert(!writer.overflow);
    queue_control(mux, WIRE_RESET, false, id, payload, mp_written(&writer));
}

static void close_stream(struct stream *stream)
{
    list_remove(&stream->bucket);
    list_remove(&stream->ready);
    if (stream->ops && stream->ops->closed)
        stream->ops->closed(stream);
    list_remove(&stream->link);
    stream->mux->streams--;
    free(stream);
}

static void close_if_ended(struct stream *stream)
{
    if (stream->local_end && stream->remote_end)
        close_stream(stream);
}

void mux_drop(struct mux *mux)
{
    for (size_t i = 0; i < MUX_BUCKETS; i++) {
        list_each(item, after, &mux->buckets[i])
            close_stream(list_entry(item, struct stream, bucket));
    }
    ring_drop(&mux->control, mux->control.used);
    mux->in_session = false;
    mux->last_id = 0;
}

void mux_free(struct mux *mux)
{
    mux_drop(mux);
    ring_free(&mux->control);
}

bool mux_accepts(const struct mux *mux)
{
    return mux->control.used <= MUX_CONTROL_PAUSE;
}

struct stream *mux_find(struct mux *mux, uint32_t id)
{
    struct list *bucket = bucket_of(mux, id);

    list_each(item, after, bucket) {
        struct stream *stream = list_entry(item, struct stream, bucket);

        if (stream->id == id)
            return stream;
    }
    return NULL;
}

void mux_reply(struct stream *stream, const uint8_t *payload, size_t length, bool end)
{
    queue_control(stream->mux, WIRE_REPLY, end, stream->id, payload, length);
    stream->replied = true;
    if (end) {
        stream->local_end = true;
        close_if_ended(stream);
    }
}

void mux_reset(struct stream *stream, const struct failure *failed)
{
    queue_reset(stream->mux, stream->id, failed);
    close_stream(stream);
}

void mux_cancel(struct stream *stream, const char *why)
{
    struct failure failed = failure(FAIL_CANCELLED, "%s", why);

    if (stream)
        mux_reset(stream, &failed);
}

bool mux_set_window(struct stream *stream, uint32_t window)
{
    uint32_t received = MUX_WINDOW - stream->receive_window;

    if (received > window)
        return false;
    stream->window = window;
    stream->send_window = window;
    stream->receive_window = window - received;
    return true;
}

void mux_ready(struct stream *stream)
{
    if (list_empty(&stream->ready) && !stream->local_end)
        list_append(&stream->mux->ready, &stream->ready);
}

void mux_consumed(struct stream *stream, size_t size)
{
    uint8_t payload[CREDIT_SIZE];

    stream->consumed += (uint32_t)size;
    if (stream->consumed < stream->window / 4 || stream->remote_end)
        return;
    wire_put_u32(payload, stream->consumed);
    queue_control(stream->mux, WIRE_CREDIT, false, stream->id, payload, CREDIT_SIZE);
    stream->receive_window += stream->consumed;
    stream->consumed = 0;
}

static void violation(struct mux *mux, uint32_t id, const char *what)
{
    struct failure failed = failure(FAIL_PROTOCOL, "%s", what);
    struct stream *stream = mux_find(mux, id);

    if (stream)
        mux_reset(stream, &failed);
    else
        queue_reset(mux, id, &failed);
}

/* Section 3. The answer tells the chosen version, or 0; only a chosen version begins a session. */
static bool receive_hello(struct mux *mux, const struct wire_frame *frame)
{
    uint8_t payload[WIRE_HELLO_SIZE];
    struct wire_hello hello;

    if (!wire_hello_decode(frame, &hello))
        return false;
    mux_drop(mux);
    mux->in_session = hello.lowest <= MUX_VERSION && MUX_VERSION <= hello.highest;
    hello.lowest = hello.highest = mux->in_session ? MUX_VERSION : 0;
    wire_hello_encode(payload, &hello);
    queue_control(mux, WIRE_HELLO, false, 0, payload, sizeof(payload));
    return true;
}

static struct stream *new_stream(struct mux *mux, const struct wire_frame *frame)
{
    struct stream *stream = mux->streams < MUX_STREAMS_MAX ? malloc(sizeof(*stream)) : NULL;

    if (!stream)
        return NULL;
    *stream = (struct stream){
        .mux = mux,
        .id = frame->stream,
        .remote_end = frame->end,
        .window = MUX_WINDOW,
        .send_window = MUX_WINDOW,
        .receive_window = MUX_WINDOW,
    };
    list_init(&stream->ready);
    list_init(&stream->link);
    list_append(bucket_of(mux, stream->id), &stream->bucket);
    mux->streams++;
    return stream;
}

static void receive_open(struct mux *mux, const struct wire_frame *frame)
{
    if (frame->stream % 2 == 0 || frame->stream <= mux->last_id) {
        violation(mux, frame->stream, "stream id used before, or not the host's");
        return;
    }
    mux->last_id = frame->stream;
    if (!mp_valid_map(frame->payload, frame->length)) {
        violation(mux, frame->stream, "OPEN holds no MessagePack map");
        return;
    }
    struct stream *stream = new_stream(mux, frame);
    if (!stream) {
        struct failure failed = failure(FAIL_RESOURCE, "too many streams");

        queue_reset(mux, frame->stream, &failed);
        return;
    }
    mux->open(mux->context, stream, frame->payload, frame->length);
}

void mux_deliver(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct mux *mux = stream->mux;
    uint32_t id = stream->id;

    stream->remote_end = end;
    if (stream->ops && stream->ops->data)
        stream->ops->data(stream, bytes, size, end);
    else
        mux_consumed(stream, size);
    stream = mux_find(mux, id); /* its owner may have reset it */
    if (stream)
        close_if_ended(stream);
}

static void receive_data(struct stream *stream, const struct wire_frame *frame)
{
    if (stream->remote_end) {
        violation(stream->mux, stream->id, "DATA after END");
        return;
    }
    if (frame->length > stream->receive_window) {
        violation(stream->mux, stream->id, "DATA beyond the window");
        return;
    }
    stream->receive_window -= frame->length;
    mux_deliver(stream, frame->payload, frame->length, frame->end);
}

static void receive_credit(struct stream *stream, const struct wire_frame *frame)
{
    uint32_t size = frame->length == CREDIT_SIZE ? wire_get_u32(frame->payload) : UINT32_MAX;

    if (size > stream->window - stream->send_window) {
        violation(stream->mux, stream->id, "CREDIT beyond the window");
        return;
    }
    stream->send_window += size;
    if (stream->ops && stream->ops->credit)
        stream->ops->credit(stream, size);
    mux_ready(stream);
}

bool mux_receive(struct mux *mux, const struct wire_frame *frame)
{
    if (frame->type == WIRE_HELLO)
        return receive_hello(mux, frame);
    if (!mux->in_session)
        return false;
    if (frame->type == WIRE_OPEN) {
        receive_open(mux, frame);
        return false;
    }
    struct stream *stream = mux_find(mux, frame->stream);
    if (!stream)
        return false; /* it crossed our RESET or END */

    if (frame->type == WIRE_DATA)
        receive_data(stream, frame);
    else if (frame->type == WIRE_CREDIT)
        receive_credit(stream, frame);
    else if (frame->type == WIRE_RESET)
        close_stream(stream);
    else
        violation(mux, stream->id, "REPLY on a stream of the host");
    return false;
}

static size_t pull_control(struct mux *mux, uint8_t *out, size_t room)
{
    size_t size = mux->control.used < room ? mux->control.used : room;

    ring_copy(&mux->control, 0, out, size);
    ring_drop(&mux->control, size);
    return size;
}

/* One DATA frame of the stream, which goes to the end of the queue, or leaves it if it has nothing to send. */
static size_t pull_data(struct stream *stream, uint8_t *out, size_t room)
{
    size_t max = room - WIRE_OVERHEAD;
    bool end = false;

    if (max > WIRE_PAYLOAD_MAX)
        max = WIRE_PAYLOAD_MAX;
    if (max > stream->send_window)
        max = stream->send_window;
    list_remove(&stream->ready);
    if (!stream->replied || !stream->ops || !stream->ops->pull)
        return 0;
    size_t size = stream->ops->pull(stream, out + WIRE_HEADER_SIZE, max, &end);
    if (stream->failure) {
        mux_reset(stream, stream->failure);
        return 0;
    }
    if (size == 0 && !end)
        return 0;

    size_t framed = wire_frame(out, WIRE_DATA, end, stream->id, size);
    stream->send_window -= (uint32_t)size;
    if (end) {
        stream->local_end = true;
        close_if_ended(stream);
    } else {
        mux_ready(stream);
    }
    return framed;
}

size_t mux_pull(struct mux *mux, uint8_t *out, size_t room)
{
    size_t size = pull_control(mux, out, room);

    while (!list_empty(&mux->ready) && room - size >= ROOM_WORTH_USING)
        size += pull_data(list_entry(mux->ready.next, struct stream, ready), out + size, room - size);
    return size > 0 ? size : pull_control(mux, out, room); /* a stream may have failed only now */
}
