/*
 * The agent without a link: frames go in and come out by function calls.
 */
#ifndef ATOLL_TEST_SESSION_H
#define ATOLL_TEST_SESSION_H

#include "msgpack.h"
#include "request.h"

struct reply {
    enum wire_type type;
    bool end;
    uint32_t stream;
    size_t size;
    uint8_t payload[WIRE_PAYLOAD_MAX];
};

/* A session that has begun, with a root unless `phase` says otherwise. */
struct agent *session_open(enum boot_phase phase);
void session_close(struct agent *agent);

void session_send(struct agent *agent, enum wire_type type, bool end, uint32_t stream,
                  const void *payload, size_t size);

/* Begins an OPEN with a map of `count` parameters besides the method. */
struct mp_writer session_request(const char *method, size_t count);
void session_call(struct agent *agent, uint32_t stream, const struct mp_writer *writer, bool end);

/* The next frame from the agent; handles events until there is one. */
const struct reply *session_next(struct agent *agent);
/* Whether there is none. */
bool session_silent(struct agent *agent);

bool reply_has(const struct reply *reply, const char *key, const char *text);
int64_t reply_int(const struct reply *reply, const char *key);

#endif
