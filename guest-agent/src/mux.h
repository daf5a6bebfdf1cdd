/*
 * Streams over one link: opening, replies, credit, resets, and whose turn it is to send.
 * Agent protocol, sections 3 and 4. Pure: frames go in through mux_receive(), bytes come out of mux_pull().
 *
 * Control frames are queued; data is not: a stream that has some is asked for it when the link has room, so
 * nothing is buffered here that a stream could not take back.
 */
#ifndef ATOLL_MUX_H
#define ATOLL_MUX_H

#include "failure.h"
#include "list.h"
#include "ring.h"
#include "wire.h"

enum {
    MUX_VERSION = 1,
    MUX_WINDOW = 1048576,
    MUX_STREAMS_MAX = 2048,

    /* While more control bytes than this wait for the link, no further frame is taken from it. */
    MUX_CONTROL_PAUSE = 262144,
    /* Above the pause there is room for the frames that one received frame can cause, and for a late reply,
     * a reset and all credit of each open stream: the queue cannot overflow. */
    MUX_CONTROL_PER_STREAM = 1024,
    MUX_CONTROL_MAX =
        MUX_CONTROL_PAUSE + 2 * WIRE_FRAME_MAX + MUX_STREAMS_MAX * MUX_CONTROL_PER_STREAM,

    MUX_BUCKETS = 256, /* of the table of streams */
};

struct mux;
struct stream;

/* What the owner of a stream does. Any of these may be NULL. */
struct stream_ops {
    /* Takes bytes from the peer, all of them; mux_consumed() is due when they have been passed on.
     * It may reset the stream. Without it the bytes are dropped and credited. */
    void (*data)(struct stream *stream, const uint8_t *bytes, size_t size, bool end);
    /* Copies up to `max` bytes to send and returns how many; sets `end` if no more will come. It must not reset
     * the stream, but may set stream->failure to have that done. */
    size_t (*pull)(struct stream *stream, uint8_t *out, size_t max, bool *end);
    /* The peer has consumed `size` bytes. */
    void (*credit)(struct stream *stream, size_t size);
    /* The stream is over, for whatever reason; it is freed on return. */
    void (*closed)(struct stream *stream);
};

struct stream {
    struct mux *mux;
    uint32_t id;
    bool replied;
    bool local_end;
    bool remote_end;
    uint32_t window; /* the largest in either direction */
    uint32_t send_window;
    uint32_t receive_window;
    uint32_t consumed; /* and not credited yet */
    struct list bucket;
    struct list ready;

    /* The owner's. */
    const struct stream_ops *ops;
    void *owner;
    const struct failure *failure; /* why the stream cannot go on */
    struct list link;
};

struct mux {
    bool in_session;
    uint32_t last_id;
    size_t streams;
    struct ring control;
    struct list ready;
    struct list buckets[MUX_BUCKETS];

    /* Called for each OPEN: sets the stream's owner, replies or resets, now or later. */
    void (*open)(void *context, struct stream *stream, const uint8_t *payload, size_t length);
    void *context;
};

/* False if memory is short. */
bool mux_init(struct mux *mux,
              void (*open)(void *context, struct stream *stream, const uint8_t *payload, size_t length),
              void *context);
void mux_free(struct mux *mux);

/* Drops all streams and queued frames: the link is gone. */
void mux_drop(struct mux *mux);

/* Whether the next frame may be taken from the link. */
bool mux_accepts(const struct mux *mux);

/* Handles a frame. True if it began a new session: what was pulled and not sent must be dropped. */
bool mux_receive(struct mux *mux, const struct wire_frame *frame);

/* Fills `out` with bytes for the link and returns how many; 0 when nothing is to be sent. */
size_t mux_pull(struct mux *mux, uint8_t *out, size_t room);

struct stream *mux_find(struct mux *mux, uint32_t id);

/* Both may free the stream. */
void mux_reply(struct stream *stream, const uint8_t *payload, size_t length, bool end);
void mux_reset(struct stream *stream, const struct failure *failed);

/* Resets the stream, if there is one, since it is no longer wanted. */
void mux_cancel(struct stream *stream, const char *why);

/* Before the reply: either direction begins with this window, at most MUX_WINDOW, in the place of that. False if the
 * peer has sent more than that allows. */
bool mux_set_window(struct stream *stream, uint32_t window);

/* The stream has something to send, or its end. */
void mux_ready(struct stream *stream);

/* Gives the stream's owner bytes from the peer. For an owner that kept them for another. */
void mux_deliver(struct stream *stream, const uint8_t *bytes, size_t size, bool end);

/* Bytes from the peer have been passed on. */
void mux_consumed(struct stream *stream, size_t size);

#endif
