/*
 * net.listening: ports on which programs of the guest listen, as they come and go. Agent protocol, section 10.
 *
 * The kernel tells nobody of them, so they are looked at again and again, as long as somebody wants to know.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "file_record.h"
#include "listening.h"
#include "request.h"

enum {
    INTERVAL_MS = 1000,
    INTERVAL_MIN_MS = 100,
    INTERVAL_MAX_MS = 60000,
    RECORDS_SIZE = 4096,
    RECORD_ROOM = 64,
};

struct watching {
    struct source timer;
    struct stream *stream;
    struct ring records;
    struct listeners told; /* as the records say that there are */
    struct listeners now;
};

static void put_record(struct ring *records, const struct listener *listener)
{
    uint8_t record[FILE_LENGTH_SIZE + FILE_RECORD_MAX];
    struct mp_writer writer = file_record_begin(record, listener->size > 0 ? 2 : 1);

    mp_put_int(&writer, "port", listener->port);
    if (listener->size > 0)
        file_put_bytes(&writer, "address", (const char *)listener->address, listener->size);
    ring_put(records, record, file_record_end(record, &writer));
}

/* As far as there is room. */
static void tell(struct watching *watching)
{
    struct listener change;

    while (ring_room(&watching->records) >= RECORD_ROOM &&
           listeners_change(&watching->told, &watching->now, &change)) {
        put_record(&watching->records, &change);
        listeners_apply(&watching->told, &change);
    }
    if (watching->records.used > 0)
        mux_ready(watching->stream);
}

static void look(struct source *source, uint32_t events)
{
    struct watching *watching = list_entry(source, struct watching, timer);
    uint64_t count;

    if (!(events & EPOLLIN) || read(source->fd, &count, sizeof(count)) < 0)
        return;
    listeners_read(&watching->now);
    tell(watching);
}

static size_t watching_pull(struct stream *stream, uint8_t *out, size_t max, bool *end)
{
    struct watching *watching = stream->owner;
    struct ring *records = &watching->records;
    size_t size = records->used < max ? records->used : max;

    (void)end;
    ring_copy(records, 0, out, size);
    ring_drop(records, size);
    return size;
}

/* There may be room for records that had to wait. */
static void watching_credit(struct stream *stream, size_t size)
{
    (void)size;
    tell(stream->owner);
}

static void watching_closed(struct stream *stream)
{
    struct watching *watching = stream->owner;

    loop_close(&watching->timer);
    ring_free(&watching->records);
    free(watching);
}

static bool begin(struct watching *watching, const struct loop *loop, int64_t interval_ms)
{
    const struct timespec interval = {.tv_sec = interval_ms / 1000, .tv_nsec = interval_ms % 1000 * NS_PER_MS};
    const struct itimerspec times = {.it_value = interval, .it_interval = interval};

    ring_init(&watching->records, RECORDS_SIZE);
    watching->timer = (struct source){
        .fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK),
        .handle = look,
    };
    if (watching->timer.fd >= 0 && ring_reserve(&watching->records) &&
        timerfd_settime(watching->timer.fd, 0, &times, NULL) == 0 && loop_watch(loop, &watching->timer))
        return true;
    loop_close(&watching->timer);
    ring_free(&watching->records);
    return false;
}

static void net_listening(struct request *request)
{
    static const struct stream_ops ops = {
        .pull = watching_pull,
        .credit = watching_credit,
        .closed = watching_closed,
    };
    struct mp_writer writer = request_writer(request);
    int64_t interval_ms;

    if (!param_int_or(request, "interval", INTERVAL_MIN_MS, INTERVAL_MAX_MS, &interval_ms, INTERVAL_MS))
        return;
    struct watching *watching = calloc(1, sizeof(*watching));
    if (!watching || !begin(watching, &request->agent->loop, interval_ms)) {
        free(watching);
        request_fail(request, failure(FAIL_RESOURCE, "memory, or descriptors"));
        return;
    }
    watching->stream = request->stream;
    request->stream->ops = &ops;
    request->stream->owner = watching;
    mp_write_map(&writer, 0);
    request_reply(request, &writer, false);
    listeners_read(&watching->now);
    tell(watching);
}

const struct method listening_methods[] = {
    {"net.listening", true, net_listening},
    {NULL, false, NULL},
};
