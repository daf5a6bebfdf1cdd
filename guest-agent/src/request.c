#include "request.h"

#include <stdlib.h>
#include <string.h>

enum { METHOD_NAME_MAX = 64 };

/* A request that waits for the root, with the input that came behind it. */
struct parked {
    struct list link;
    struct stream *stream;
    bool open_end; /* OPEN had END */
    struct parked_bytes {
        uint8_t *bytes;
        size_t size;
    } open, data;
};

struct mp_writer request_writer(struct request *request)
{
    struct mp_writer writer;

    mp_writer_init(&writer, request->agent->reply, sizeof(request->agent->reply));
    return writer;
}

void request_reply(struct request *request, const struct mp_writer *writer, bool end)
{
    if (writer->overflow)
        request_fail(request, failure(FAIL_RESOURCE, "the reply does not fit in a frame"));
    else
        mux_reply(request->stream, writer->start, mp_written(writer), end);
}

void request_reply_empty(struct request *request)
{
    struct mp_writer writer = request_writer(request);

    mp_write_map(&writer, 0);
    request_reply(request, &writer, true);
}

void request_fail(struct request *request, struct failure failed)
{
    mux_reset(request->stream, &failed);
}

static bool invalid(struct request *request, const char *name, const char *why)
{
    request_fail(request, failure(FAIL_INVALID, "%s: %s", name, why));
    return false;
}

bool param_int_or(struct request *request, const char *name, int64_t min, int64_t max, int64_t *value,
                  int64_t absent)
{
    struct mp_reader reader;

    *value = absent;
    if (!mp_find(request->params, name, &reader))
        return true;
    if (!mp_read_int(&reader, value))
        return invalid(request, name, "not an integer");
    if (*value < min || *value > max)
        return invalid(request, name, "out of range");
    return true;
}

bool param_int(struct request *request, const char *name, int64_t min, int64_t max, int64_t *value)
{
    struct mp_reader reader;

    if (!mp_find(request->params, name, &reader))
        return invalid(request, name, "missing");
    return param_int_or(request, name, min, max, value, 0);
}

bool param_bool_or(struct request *request, const char *name, bool *value, bool absent)
{
    struct mp_reader reader;

    *value = absent;
    if (mp_find(request->params, name, &reader) && !mp_read_bool(&reader, value))
        return invalid(request, name, "not a boolean");
    return true;
}

bool param_bytes(struct request *request, const char *name, size_t min, size_t max,
                 struct mp_bytes *bytes)
{
    struct mp_reader reader;

    *bytes = (struct mp_bytes){(const uint8_t *)"", 0};
    if (mp_find(request->params, name, &reader) && !mp_read_bytes(&reader, bytes))
        return invalid(request, name, "not bytes");
    if (bytes->size < min || bytes->size > max)
        return invalid(request, name, "missing, too short or too long");
    return true;
}

bool param_text_or(struct request *request, const char *name, char *out, size_t size,
                   const char *absent)
{
    struct mp_reader reader;
    struct mp_bytes bytes = {(const uint8_t *)absent, strlen(absent)};

    if (mp_find(request->params, name, &reader) && !mp_read_bytes(&reader, &bytes))
        return invalid(request, name, "not a string");
    if (bytes.size >= size || memchr(bytes.data, 0, bytes.size))
        return invalid(request, name, "too long, or a zero byte in it");
    memcpy(out, bytes.data, bytes.size);
    out[bytes.size] = '\0';
    return true;
}

bool param_text(struct request *request, const char *name, char *out, size_t size)
{
    struct mp_reader reader;

    if (!mp_find(request->params, name, &reader))
        return invalid(request, name, "missing");
    return param_text_or(request, name, out, size, "");
}

/* Parking. */

static void parked_closed(struct stream *stream)
{
    struct parked *parked = stream->owner;
    struct agent *agent = stream->mux->context;

    agent->parked_size -= parked->open.size + parked->data.size;
    list_remove(&parked->link);
    free(parked->open.bytes);
    free(parked->data.bytes);
    free(parked);
}

static bool parked_append(struct agent *agent, struct parked_bytes *to, const uint8_t *bytes, size_t size)
{
    uint8_t *grown =
        size <= PARKED_MAX - agent->parked_size ? realloc(to->bytes, to->size + size + 1) : NULL;

    if (!grown)
        return false;
    memcpy(grown + to->size, bytes, size);
    to->bytes = grown;
    to->size += size;
    agent->parked_size += size;
    return true;
}

static void parked_data(struct stream *stream, const uint8_t *bytes, size_t size, bool end)
{
    struct parked *parked = stream->owner;
    struct failure failed = failure(FAIL_RESOURCE, "too much waits for the root");

    (void)end; /* the stream remembers */
    if (!parked_append(stream->mux->context, &parked->data, bytes, size))
        mux_reset(stream, &failed);
}

static void park(struct request *request)
{
    const struct mp_reader *open = &request->params;
    static const struct stream_ops ops = {.data = parked_data, .closed = parked_closed};
    struct agent *agent = request->agent;
    struct parked *parked = calloc(1, sizeof(*parked));

    if (!parked || !parked_append(agent, &parked->open, open->at, (size_t)(open->end - open->at))) {
        free(parked);
        request_fail(request, failure(FAIL_RESOURCE, "too much waits for the root"));
        return;
    }
    parked->stream = request->stream;
    parked->open_end = request->stream->remote_end;
    request->stream->ops = &ops;
    request->stream->owner = parked;
    list_append(&agent->parked, &parked->link);
}

/* Dispatch. */

static const struct method *find_method(const char *name)
{
    const struct method *const tables[] = {
        system_methods, clone_methods,  exec_methods,       hardware_methods,
        net_methods,    mount_methods,  connection_methods, data_methods,
        tree_methods,   file_methods,   freeze_methods,     listening_methods,
    };

    for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++) {
        for (const struct method *method = tables[i]; method->name; method++) {
            if (strcmp(method->name, name) == 0)
                return method;
        }
    }
    return NULL;
}

static struct failure boot_failure(const struct boot *boot)
{
    struct failure failed = boot->failure;

    failed.code = FAIL_BOOT;
    return failed;
}

static void dispatch(struct request *request, bool may_wait)
{
    const struct boot *boot = &request->agent->boot;
    char name[METHOD_NAME_MAX];

    if (!param_text(request, "method", name, sizeof(name)))
        return;
    const struct method *method = find_method(name);
    if (!method)
        request_fail(request, failure(FAIL_UNKNOWN_METHOD, "%s", name));
    else if (method->needs_root && may_wait)
        park(request);
    else if (method->needs_root && boot->phase == BOOT_FAILED)
        request_fail(request, boot_failure(boot));
    else
        method->handle(request);
}

void request_open(void *context, struct stream *stream, const uint8_t *payload, size_t length)
{
    struct agent *agent = context;
    struct request request = {agent, stream, {payload, payload + length}};

    /* Also while earlier ones wait, since they are handled in the order in which they came. */
    dispatch(&request, !boot_is_over(&agent->boot) || !list_empty(&agent->parked));
}

static void resume(struct agent *agent, struct parked *parked)
{
    struct stream *stream = parked->stream;
    const uint8_t *open = parked->open.bytes;
    struct request request = {agent, stream, {open, open + parked->open.size}};
    uint32_t id = stream->id;
    bool data_end = stream->remote_end && !parked->open_end;

    agent->parked_size -= parked->open.size + parked->data.size;
    list_remove(&parked->link);
    stream->ops = NULL;
    stream->owner = NULL;
    stream->remote_end = parked->open_end;
    dispatch(&request, false);

    stream = mux_find(&agent->mux, id);
    if (stream && parked->data.bytes)
        mux_deliver(stream, parked->data.bytes, parked->data.size, data_end);
    free(parked->open.bytes);
    free(parked->data.bytes);
    free(parked);
}

bool requests_resume(struct agent *agent)
{
    while (boot_is_over(&agent->boot) && !list_empty(&agent->parked)) {
        if (!mux_accepts(&agent->mux))
            return true;
        resume(agent, list_entry(agent->parked.next, struct parked, link));
    }
    return false;
}
