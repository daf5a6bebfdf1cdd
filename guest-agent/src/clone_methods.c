/*
 * clone.begin. Agent protocol, section 7.1.
 */
#include <string.h>

#include "growth.h"
#include "identity.h"
#include "names.h"
#include "net.h"
#include "request.h"

#define GROWTH_MAX ((int64_t)1 << 48)

struct beginning {
    int64_t realtime;
    int64_t growth;
    struct mp_bytes seed;
    bool has_mac;
    uint8_t mac[NET_MAC_BYTES];
    struct cmdline options;
};

static bool decode_mac(struct request *request, struct beginning *beginning)
{
    char text[NET_MAC_SIZE + 1];

    if (!param_text_or(request, "mac", text, sizeof(text), ""))
        return false;
    beginning->has_mac = *text != '\0';
    if (!beginning->has_mac || net_parse_mac(text, beginning->mac))
        return true;
    request_fail(request, failure(FAIL_INVALID, "mac: not six bytes in hexadecimal"));
    return false;
}

/* What is absent stays as it is. */
static bool decode_options(struct request *request, struct cmdline *options)
{
    for (const struct cmdline_parameter *each = cmdline_parameters; each->name; each++) {
        char *field = (char *)options + each->offset;
        char value[CMDLINE_PATH_MAX + 1];

        if (!param_text_or(request, each->name, value, each->size, ""))
            return false;
        if (*value)
            strcpy(field, value);
    }
    const char *id = options->machine_id;
    if (*id && strspn(id, "0123456789abcdef") != CMDLINE_MACHINE_ID_SIZE) {
        request_fail(request, failure(FAIL_INVALID, "machine_id: not 32 digits in hexadecimal"));
        return false;
    }
    return true;
}

static bool decode(struct request *request, struct beginning *beginning)
{
    return param_int(request, "realtime", 0, INT64_MAX, &beginning->realtime) &&
           param_bytes(request, "seed", IDENTITY_SEED_MIN, IDENTITY_SEED_MAX, &beginning->seed) &&
           param_int_or(request, "growth", 0, GROWTH_MAX, &beginning->growth, 0) &&
           decode_mac(request, beginning) && decode_options(request, &beginning->options);
}

static bool rename_machine(const char *hostname, bool in_files, struct failure *failed)
{
    if (!identity_set_hostname(hostname, failed))
        return false;
    if (in_files)
        names_write(hostname); /* what is odd in /etc was told of at the boot */
    return true;
}

static bool apply(const struct beginning *beginning, const struct boot *boot, struct failure *failed)
{
    bool has_root = boot->phase == BOOT_DONE;
    bool renamed = strcmp(beginning->options.hostname, boot->options.hostname) != 0;
    bool renumbered = strcmp(beginning->options.machine_id, boot->options.machine_id) != 0;

    return identity_set_clock(beginning->realtime, failed) &&
           identity_reseed(beginning->seed.data, beginning->seed.size, failed) &&
           (!renamed || rename_machine(beginning->options.hostname, has_root && boot->options.names, failed)) &&
           (!renumbered || !has_root ||
            identity_set_machine_id(beginning->options.machine_id, failed)) &&
           (!has_root || growth_raise_limits(boot->memory_mount, beginning->growth, failed)) &&
           (!beginning->has_mac || identity_set_mac(beginning->mac, failed));
}

static void clone_begin(struct request *request)
{
    struct boot *boot = &request->agent->boot;
    struct beginning beginning = {.options = boot->options};
    struct failure failed;

    if (!decode(request, &beginning))
        return;
    if (request->agent->mode != AGENT_HOSTED && !apply(&beginning, boot, &failed)) {
        request_fail(request, failed);
        return;
    }
    boot->options = beginning.options;
    boot_release(boot);
    request_reply_empty(request);
}

const struct method clone_methods[] = {
    {"clone.begin", false, clone_begin},
    {NULL, false, NULL},
};
