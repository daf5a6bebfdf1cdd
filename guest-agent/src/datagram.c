#include "datagram.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

/* A socket tells by an error of a call what became of a datagram before, and does nothing else then. */
enum { TRIES = 4 };

static const uint8_t empty_map[] = {0x80}; /* as MessagePack has it */

void flows_init(struct flows *flows, const struct loop *loop)
{
    *flows = (struct flows){.loop = loop};
    list_init(&flows->all);
}

static size_t length_of(const struct packet *packet)
{
    return packet->bytes[0] | (size_t)packet->bytes[1] << 8;
}

/* Whatever becomes of it: a server that is not there, or does not keep up, is none that is waited for. */
static void send_packet(struct flow *flow)
{
    ssize_t sent = -1;

    for (int tries = 0; sent < 0 && tries < TRIES; tries++) {
        sent = send(flow->source.fd, flow->in.bytes + DATAGRAM_HEAD, length_of(&flow->in), MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN)
            break;
    }
    flow->in.used = 0;
}

/* Takes what still belongs to the packet on its way; returns how much, and -1 if there can be no such packet. */
static ssize_t gather(struct packet *packet, const uint8_t *bytes, size_t size)
{
    size_t wanted = packet->used < DATAGRAM_HEAD ? DATAGRAM_HEAD : DATAGRAM_HEAD + length_of(packet);
    size_t taken = wanted - packet->used < size ? wanted - packet->used : size;

    memcpy(packet->bytes + packet->used, bytes, taken);
    packet->used += taken;
    return packet->used >= DATAGRAM_HEAD && length_of(packet) > DATAGRAM_MAX ? -1 : (ssize_t)taken;
}

static bool is_whole(const struct packet *packet)
{
    return packet->used >= DATAGRAM_HEAD && packet->used == DATAGRAM_HEAD + length_of(packet);
}

static void take_bytes(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct flow *flow = stream->owner;
    size_t done = 0;

    while (done < size) {
        ssize_t taken = gather(&flow->in, bytes + done, size - done);

        if (taken < 0) {
            struct failure failed = failure(FAIL_INVALID, "a datagram longer than %d bytes", DATAGRAM_MAX);

            mux_reset(stream, &failed);
            return;
        }
        done += (size_t)taken;
        if (is_whole(&flow->in))
            send_packet(flow);
    }
    mux_consumed(stream, size);
    flow->end = end;
    if (end)
        mux_ready(stream);
}

/* Whether there is something to pull. */
static bool receive(struct flow *flow)
{
    if (flow->pulled < flow->out.used)
        return true;
    flow->pulled = flow->out.used = 0;
    for (int tries = 0; flow->readable && tries < TRIES; tries++) {
        ssize_t got = recv(flow->source.fd, flow->out.bytes + DATAGRAM_HEAD, DATAGRAM_MAX, 0);

        if (got >= 0) {
            flow->out.bytes[0] = (uint8_t)got;
            flow->out.bytes[1] = (uint8_t)((size_t)got >> 8);
            flow->out.used = DATAGRAM_HEAD + (size_t)got;
            return true;
        }
        if (errno == EAGAIN)
            break;
    }
    flow->readable = false;
    return false;
}

static size_t pull_bytes(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct flow *flow = stream->owner;
    size_t done = 0;

    while (done < max && !flow->end && receive(flow)) {
        size_t left = flow->out.used - flow->pulled;
        size_t size = left < max - done ? left : max - done;

        memcpy(out + done, flow->out.bytes + flow->pulled, size);
        flow->pulled += size;
        done += size;
    }
    *end = flow->end;
    return done;
}

static void flow_free(struct flow *flow)
{
    loop_close(&flow->source);
    list_remove(&flow->link);
    flow->all->count--;
    free(flow);
}

static void stream_closed(struct stream *stream)
{
    flow_free(stream->owner);
}

static void flow_event(struct source *source, uint32_t events)
{
    struct flow *flow = list_entry(source, struct flow, source);

    if (events & (EPOLLIN | EPOLLERR)) {
        flow->readable = true;
        mux_ready(flow->stream);
    }
}

static struct flow *flow_new(struct flows *flows, struct stream *stream)
{
    static const struct stream_ops ops = {
        .data = take_bytes,
        .pull = pull_bytes,
        .closed = stream_closed,
    };
    struct flow *flow = flows->count < FLOWS_MAX ? malloc(sizeof(*flow)) : NULL;

    if (!flow)
        return NULL;
    *flow = (struct flow){.all = flows, .stream = stream, .end = stream->remote_end, .source = {-1, flow_event}};
    list_append(&flows->all, &flow->link);
    flows->count++;
    stream->ops = &ops;
    stream->owner = flow;
    return flow;
}

void flow_open(struct flows *flows, struct stream *stream, const struct dial_target *target, const char *name)
{
    struct flow *flow = flow_new(flows, stream);
    struct failure failed = failure(FAIL_RESOURCE, "too many flows of datagrams");

    if (!flow) {
        mux_reset(stream, &failed);
        return;
    }
    flow->source.fd = dial(target);
    if (flow->source.fd < 0 || !loop_watch(flows->loop, &flow->source)) {
        failed = failure_os(errno, NULL, "%s", name);
        mux_reset(stream, &failed);
        return;
    }
    mux_reply(stream, empty_map, sizeof(empty_map), false);
    if (flow->end)
        mux_ready(stream);
}
