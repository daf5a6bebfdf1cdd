#include "connection.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>

static const uint8_t empty_map[] = {0x80}; /* as MessagePack has it */

void connections_init(struct connections *connections, const struct loop *loop)
{
    *connections = (struct connections){.loop = loop};
    list_init(&connections->all);
}

static void drop_waiting(struct connection *connection, size_t size)
{
    ring_drop(&connection->waiting, size);
    connection->all->kept -= size;
}

void connection_free(struct connection *connection)
{
    drop_waiting(connection, connection->waiting.used);
    loop_close(&connection->source);
    ring_free(&connection->waiting);
    list_remove(&connection->link);
    connection->all->count--;
    free(connection);
}

static void abort_connection(struct connection *connection)
{
    dial_abort(connection->source.fd);
    connection->source.fd = -1;
    connection_free(connection);
}

static void accept_bytes(struct connection *connection, size_t size)
{
    if (connection->stream)
        mux_consumed(connection->stream, size);
}

/* The server takes no more: what is here and what follows is discarded. What it has sent can still be read. */
static void go_deaf(struct connection *connection, int error)
{
    size_t size = connection->waiting.used;

    connection->deaf = true;
    connection->failure = failure_os(error, NULL, "%s", connection->name);
    drop_waiting(connection, size);
    accept_bytes(connection, size);
    connection->readable = true;
    if (connection->stream)
        mux_ready(connection->stream);
}

/* Writes what the server takes now and returns how much that was. */
static size_t write_now(struct connection *connection, const uint8_t *bytes, size_t size)
{
    size_t done = 0;

    while (done < size && !connection->deaf) {
        ssize_t put = send(connection->source.fd, bytes + done, size - done, MSG_NOSIGNAL);

        if (put >= 0)
            done += (size_t)put;
        else if (errno == EAGAIN)
            break;
        else if (errno != EINTR)
            go_deaf(connection, errno);
    }
    return done;
}

static bool keep(struct connection *connection, const uint8_t *bytes, size_t size)
{
    if (size > CONNECTIONS_KEPT_MAX - connection->all->kept || !ring_reserve(&connection->waiting))
        return false;
    ring_put(&connection->waiting, bytes, size);
    connection->all->kept += size;
    return true;
}

/* Passes on what can be passed on now, and the end behind it. */
static void flush(struct connection *connection)
{
    while (connection->connected && connection->waiting.used > 0) {
        size_t size;
        const uint8_t *bytes = ring_peek(&connection->waiting, &size);
        size_t done = write_now(connection, bytes, size);

        if (connection->deaf)
            return;
        drop_waiting(connection, done);
        accept_bytes(connection, done);
        if (done < size)
            return;
    }
    if (connection->connected && connection->end && !connection->deaf)
        shutdown(connection->source.fd, SHUT_WR);
}

/* May free the connection: the last thing that is done in each event. */
static void settle(struct connection *connection)
{
    struct stream *stream = connection->stream;

    if (!stream && (connection->deaf || connection->waiting.used == 0))
        connection_free(connection);
    else if (stream && connection->deaf && stream->local_end)
        mux_reset(stream, &connection->failure); /* else pull_bytes() does it, behind what can still be read */
}

static void take_bytes(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct connection *connection = stream->owner;
    size_t done = 0;

    if (connection->connected && connection->waiting.used == 0)
        done = write_now(connection, bytes, size);
    if (connection->deaf)
        done = size;
    if (done < size && !keep(connection, bytes + done, size - done)) {
        struct failure failed = failure(FAIL_RESOURCE, "too much waits for servers that do not read");

        mux_reset(stream, &failed);
        return;
    }
    accept_bytes(connection, done);
    connection->end = end;
    if (end)
        flush(connection);
    settle(connection);
}

static size_t pull_bytes(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct connection *connection = stream->owner;
    ssize_t got;

    if (!connection->readable || max == 0)
        return 0;
    do
        got = recv(connection->source.fd, out, max, 0);
    while (got < 0 && errno == EINTR);
    if (got > 0)
        return (size_t)got;
    if (got == 0 && !connection->deaf) {
        *end = true;
    } else if (got == 0 || errno != EAGAIN) {
        if (!connection->deaf)
            connection->failure = failure_os(errno, NULL, "%s", connection->name);
        stream->failure = &connection->failure;
    }
    connection->readable = false;
    return 0;
}

static void stream_closed(struct stream *stream)
{
    struct connection *connection = stream->owner;
    bool orderly = stream->local_end && stream->remote_end;

    connection->stream = NULL;
    if (!orderly)
        abort_connection(connection);
    else if (connection->deaf || connection->waiting.used == 0)
        connection_free(connection);
}

/* Whether it is connected now; if it cannot be, the stream and the connection are gone. */
static bool finish_connecting(struct connection *connection)
{
    struct stream *stream = connection->stream;
    int error = dial_error(connection->source.fd);

    if (error) {
        struct failure failed = failure_os(error, NULL, "%s", connection->name);

        mux_reset(stream, &failed);
        return false;
    }
    connection->connected = true;
    mux_reply(stream, empty_map, sizeof(empty_map), false);
    mux_ready(stream);
    return true;
}

static int lost(int fd)
{
    int error = dial_error(fd);

    return error ? error : EPIPE;
}

static void connection_event(struct source *source, uint32_t events)
{
    struct connection *connection = list_entry(source, struct connection, source);

    if (!connection->connected && (!(events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) || !finish_connecting(connection)))
        return;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        connection->readable = true;
        if (connection->stream)
            mux_ready(connection->stream);
    }
    if (events & EPOLLERR && connection->stream && connection->stream->local_end && !connection->deaf)
        go_deaf(connection, lost(source->fd)); /* nothing reads from it any more, so nothing else tells */
    flush(connection);
    settle(connection);
}

static struct connection *connection_new(struct connections *connections, struct stream *stream, const char *name)
{
    static const struct stream_ops ops = {
        .data = take_bytes,
        .pull = pull_bytes,
        .closed = stream_closed,
    };
    struct connection *connection = connections->count < CONNECTIONS_MAX ? calloc(1, sizeof(*connection)) : NULL;

    if (!connection)
        return NULL;
    connection->all = connections;
    connection->stream = stream;
    connection->end = stream->remote_end;
    snprintf(connection->name, sizeof(connection->name), "%s", name);
    connection->source = (struct source){-1, connection_event};
    ring_init(&connection->waiting, stream->window);
    list_append(&connections->all, &connection->link);
    connections->count++;
    stream->ops = &ops;
    stream->owner = connection;
    return connection;
}

void connection_open(struct connections *connections, struct stream *stream, const struct dial_target *target,
                     const char *name)
{
    struct connection *connection = connection_new(connections, stream, name);
    struct failure failed = failure(FAIL_RESOURCE, "too many connections");

    if (!connection) {
        mux_reset(stream, &failed);
        return;
    }
    connection->source.fd = dial(target);
    if (connection->source.fd >= 0 && loop_watch(connections->loop, &connection->source))
        return;
    failed = failure_os(errno, NULL, "%s", name);
    mux_reset(stream, &failed);
}
