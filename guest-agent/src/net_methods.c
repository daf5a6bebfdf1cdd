/*
 * net.configure. Agent protocol, section 5.
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "net.h"
#include "task.h"

enum { WAIT_DEFAULT_MS = 5000, WAIT_MAX_MS = 600000, PREFIX_MAX = 32 };

struct configuration {
    struct task task;
    struct net_config config;
    char interface[IF_NAMESIZE];
};

static bool configure(struct task *task, struct failure *failed)
{
    struct configuration *configuration = list_entry(task, struct configuration, task);

    return net_configure(&configuration->config, configuration->interface, failed);
}

static void reply_interface(const struct task *task, struct mp_writer *writer)
{
    const struct configuration *configuration = (const struct configuration *)(const void *)task;

    mp_write_map(writer, 1);
    mp_put_str(writer, "interface", configuration->interface);
}

static bool invalid(struct request *request, const char *why)
{
    request_fail(request, failure(FAIL_INVALID, "%s", why));
    return false;
}

static bool decode_mac(struct request *request, char mac[NET_MAC_SIZE + 1])
{
    uint8_t bytes[NET_MAC_BYTES];

    if (!param_text(request, "mac", mac, NET_MAC_SIZE + 1))
        return false;
    if (!net_parse_mac(mac, bytes))
        return invalid(request, "mac: not six bytes in hexadecimal");
    for (char *each = mac; *each; each++)
        *each = (char)tolower((unsigned char)*each);
    return true;
}

static bool decode_address(struct request *request, struct net_config *config)
{
    char text[INET_ADDRSTRLEN + 3];
    char *end = NULL;

    if (!param_text(request, "address", text, sizeof(text)))
        return false;
    char *prefix = strchr(text, '/');
    if (prefix)
        *prefix++ = '\0';
    unsigned long bits = prefix && isdigit((unsigned char)*prefix) ? strtoul(prefix, &end, 10) : PREFIX_MAX + 1;
    if (bits > PREFIX_MAX || *end != '\0' || inet_pton(AF_INET, text, &config->address) != 1)
        return invalid(request, "address: not as 10.0.2.15/24");
    config->prefix = (uint8_t)bits;
    return true;
}

static bool decode_gateway(struct request *request, struct net_config *config)
{
    char text[INET_ADDRSTRLEN];

    if (!param_text_or(request, "gateway", text, sizeof(text), ""))
        return false;
    config->has_gateway = *text != '\0';
    if (config->has_gateway && inet_pton(AF_INET, text, &config->gateway) != 1)
        return invalid(request, "gateway: not an IPv4 address");
    return true;
}

static bool is_address(const struct mp_bytes *bytes, char text[INET6_ADDRSTRLEN])
{
    struct in6_addr parsed;

    if (bytes->size >= INET6_ADDRSTRLEN || memchr(bytes->data, 0, bytes->size))
        return false;
    memcpy(text, bytes->data, bytes->size);
    text[bytes->size] = '\0';
    return inet_pton(AF_INET, text, &parsed) == 1 || inet_pton(AF_INET6, text, &parsed) == 1;
}

static bool decode_resolvers(struct request *request, struct net_config *config)
{
    struct mp_reader array;
    struct mp_bytes bytes;

    config->has_resolvers = mp_find(request->params, "resolvers", &array);
    if (!config->has_resolvers)
        return true;
    if (!mp_read_array(&array, &config->resolvers_count) || config->resolvers_count > NET_RESOLVERS_MAX)
        return invalid(request, "resolvers: not an array, or too long");
    for (size_t i = 0; i < config->resolvers_count; i++) {
        if (!mp_read_bytes(&array, &bytes) || !is_address(&bytes, config->resolvers[i]))
            return invalid(request, "resolvers: not an address");
    }
    return true;
}

static bool decode(struct request *request, struct net_config *config)
{
    return decode_mac(request, config->mac) && decode_address(request, config) &&
           decode_gateway(request, config) && decode_resolvers(request, config) &&
           param_int_or(request, "wait", 0, WAIT_MAX_MS, &config->wait_ms, WAIT_DEFAULT_MS);
}

static void net_configure_method(struct request *request)
{
    struct configuration *configuration = task_new(request, sizeof(*configuration));

    if (!configuration)
        return;
    if (!decode(request, &configuration->config)) {
        free(configuration);
        return;
    }
    strcpy(configuration->interface, "lo"); /* what a hosted agent answers */
    configuration->task.run = configure;
    configuration->task.reply = reply_interface;
    task_start(request, &configuration->task);
}

const struct method net_methods[] = {
    {"net.configure", true, net_configure_method},
    {NULL, false, NULL},
};
