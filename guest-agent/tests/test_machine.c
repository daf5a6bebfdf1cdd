/*
 * The methods for machines, as a hosted agent answers them: it decodes all and touches nothing.
 */
#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "session.h"

static struct mp_reader field(const struct reply *reply, const char *name)
{
    struct mp_reader value;

    CHECK(mp_find((struct mp_reader){reply->payload, reply->payload + reply->size}, name, &value));
    return value;
}

static int64_t inner_int(const struct reply *reply, const char *name, const char *key)
{
    struct mp_reader value;
    int64_t number;

    CHECK(mp_find(field(reply, name), key, &value) && mp_read_int(&value, &number));
    return number;
}

static void stats_are_those_of_the_system(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("system.stats", 0);

    session_call(agent, 1, &writer, true);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_REPLY && reply->end);
    CHECK(inner_int(reply, "cpu", "user") > 0 && inner_int(reply, "cpu", "idle") >= 0);
    CHECK(inner_int(reply, "cpu", "steal") >= 0 && inner_int(reply, "cpu", "iowait") >= 0);
    CHECK(inner_int(reply, "memory", "total") > inner_int(reply, "memory", "available"));
    CHECK(inner_int(reply, "memory", "free") > 0 && inner_int(reply, "memory", "cached") >= 0);
    CHECK(inner_int(reply, "memory", "swap_total") >= inner_int(reply, "memory", "swap_free"));
    CHECK(inner_int(reply, "disk", "size") > inner_int(reply, "disk", "free"));
    CHECK(inner_int(reply, "disk", "written") >= 0 && inner_int(reply, "network", "sent") >= 0);
    CHECK(reply_int(reply, "processes") > 0 && reply_int(reply, "uptime") > 0);
    session_close(agent);
}

/* Calls a method with string parameters, given as name, value, ..., NULL. */
static const struct reply *call(const char *method, const char *const *parameters)
{
    static struct reply kept;
    struct agent *agent = session_open(BOOT_DONE);
    size_t count = 0;

    while (parameters && parameters[2 * count])
        count++;
    struct mp_writer writer = session_request(method, count);
    for (size_t i = 0; i < count; i++)
        mp_put_str(&writer, parameters[2 * i], parameters[2 * i + 1]);
    session_call(agent, 1, &writer, true);
    kept = *session_next(agent);
    session_close(agent);
    return &kept;
}

static bool accepted(const char *method, const char *const *parameters)
{
    const struct reply *reply = call(method, parameters);

    return reply->type == WIRE_REPLY && reply->end;
}

static bool refused(const char *method, const char *const *parameters)
{
    const struct reply *reply = call(method, parameters);

    return reply->type == WIRE_RESET && reply_has(reply, "code", FAIL_INVALID);
}

#define LIST(...) (const char *const[]){__VA_ARGS__, NULL, NULL}
#define MAC "mac", "02:00:00:00:AB:01"
#define ADDRESS "address", "10.0.2.15/24"

static void an_interface_is_configured(void)
{
    CHECK(reply_has(call("net.configure", LIST(MAC, ADDRESS)), "interface", "lo"));
    CHECK(accepted("net.configure", LIST(MAC, ADDRESS, "gateway", "10.0.2.2")));
    CHECK(refused("net.configure", LIST(ADDRESS)));
    CHECK(refused("net.configure", LIST(MAC)));
    CHECK(refused("net.configure", LIST("mac", "02:00:00:00:00", ADDRESS)));
    CHECK(refused("net.configure", LIST("mac", "02:00:00:00:00:0g", ADDRESS)));
    CHECK(refused("net.configure", LIST("mac", "02-00-00-00-00-01", ADDRESS)));
    CHECK(refused("net.configure", LIST(MAC, "address", "10.0.2.15")));
    CHECK(refused("net.configure", LIST(MAC, "address", "10.0.2.15/")));
    CHECK(refused("net.configure", LIST(MAC, "address", "10.0.2.15/33")));
    CHECK(refused("net.configure", LIST(MAC, "address", "10.0.2.15/2x")));
    CHECK(refused("net.configure", LIST(MAC, "address", "10.0.2/24")));
    CHECK(refused("net.configure", LIST(MAC, ADDRESS, "gateway", "router")));
    CHECK(refused("net.configure", LIST(MAC, ADDRESS, "resolvers", "10.0.2.3")));
    CHECK(refused("net.configure", LIST(MAC, ADDRESS, "wait", "1")));
}

static void file_systems_are_mounted_and_unmounted(void)
{
    CHECK(accepted("fs.mount", LIST("type", "virtiofs", "source", "tag", "target", "/a/b")));
    CHECK(refused("fs.mount", LIST("type", "virtiofs", "source", "tag", "target", "a/b")));
    CHECK(refused("fs.mount", LIST("type", "virtiofs", "target", "/a")));
    CHECK(accepted("fs.unmount", LIST("target", "/a/b")));
    CHECK(refused("fs.unmount", LIST("target", "a")));
    CHECK(refused("fs.unmount", LIST("target", "/a", "lazy", "yes")));
}

static void the_data_disk_is_told_of(void)
{
    CHECK(reply_int(call("data.grow", NULL), "size") > 0);
    CHECK(reply_int(call("data.trim", NULL), "trimmed") == 0);
    CHECK(reply_int(call("cpu.online", NULL), "vcpus") > 0);
    CHECK(accepted("data.freeze", NULL));
    CHECK(refused("data.freeze", LIST("limit", "soon")));
    CHECK(accepted("data.thaw", NULL));
}

static const struct reply *load(const char *path)
{
    static struct reply kept;
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("module.load", 1);

    mp_write_str(&writer, "paths");
    mp_write_array(&writer, 1);
    mp_write_str(&writer, path);
    session_call(agent, 1, &writer, true);
    kept = *session_next(agent);
    session_close(agent);
    return &kept;
}

static void modules_come_from_their_directory_only(void)
{
    CHECK(reply_int(load("kernel/net/x.ko"), "loaded") == 0);
    CHECK(reply_int(load("kernel/..x/x.ko"), "loaded") == 0);
    CHECK(load("")->type == WIRE_RESET);
    CHECK(load("../x.ko")->type == WIRE_RESET);
    CHECK(load("kernel/..")->type == WIRE_RESET);
    CHECK(load("kernel/../../x.ko")->type == WIRE_RESET);
    CHECK(load("/tmp/x.ko")->type == WIRE_RESET);
    CHECK(refused("module.load", NULL));
    CHECK(refused("module.load", LIST("paths", "kernel/x.ko")));
}

const struct test machine_tests[] = {
    {"stats are those of the system", stats_are_those_of_the_system},
    {"an interface is configured", an_interface_is_configured},
    {"file systems are mounted and unmounted", file_systems_are_mounted_and_unmounted},
    {"the data disk is told of", the_data_disk_is_told_of},
    {"modules come from their directory only", modules_come_from_their_directory_only},
    {NULL, NULL},
};
