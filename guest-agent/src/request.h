/*
 * Requests: from OPEN to the method, its parameters and its reply. Agent protocol, section 5.
 *
 * A method answers with request_reply() or request_fail(), exactly once, or keeps the stream and answers
 * later. The parameter functions fail the request themselves when they return false.
 */
#ifndef ATOLL_REQUEST_H
#define ATOLL_REQUEST_H

#include "agent.h"
#include "msgpack.h"

enum { PARKED_MAX = 8 << 20 }; /* bytes of requests and data that wait for the root */

struct request {
    struct agent *agent;
    struct stream *stream;
    struct mp_reader params;
};

struct method {
    const char *name;
    bool needs_root;
    void (*handle)(struct request *request);
};

extern const struct method system_methods[];
extern const struct method clone_methods[];
extern const struct method exec_methods[];
extern const struct method hardware_methods[];
extern const struct method net_methods[];
extern const struct method connection_methods[];
extern const struct method listening_methods[];
extern const struct method mount_methods[];
extern const struct method data_methods[];
extern const struct method freeze_methods[];
extern const struct method tree_methods[];
extern const struct method file_methods[];

/* For mux_init(); `context` is the agent. */
void request_open(void *context, struct stream *stream, const uint8_t *payload, size_t length);

/* Goes on with the requests that wait for the root, if it is there or is known not to come. True if some are
 * left, since the mux must send first. */
bool requests_resume(struct agent *agent);

/* A writer for the reply. */
struct mp_writer request_writer(struct request *request);
/* `end`: no DATA will follow. */
void request_reply(struct request *request, const struct mp_writer *writer, bool end);
void request_reply_empty(struct request *request);
void request_fail(struct request *request, struct failure failed);

bool param_int(struct request *request, const char *name, int64_t min, int64_t max, int64_t *value);
bool param_int_or(struct request *request, const char *name, int64_t min, int64_t max, int64_t *value,
                  int64_t absent);
bool param_bool_or(struct request *request, const char *name, bool *value, bool absent);
/* Text ends with a zero byte and holds no other. */
bool param_text(struct request *request, const char *name, char *out, size_t size);
bool param_text_or(struct request *request, const char *name, char *out, size_t size,
                   const char *absent);
bool param_bytes(struct request *request, const char *name, size_t min, size_t max,
                 struct mp_bytes *bytes);

#endif
