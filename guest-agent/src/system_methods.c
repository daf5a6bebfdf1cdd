/*
 * ping, system.*, boot.wait, clock.step, entropy.reseed. Agent protocol, section 5.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "clock.h"
#include "identity.h"
#include "request.h"
#include "stats.h"

enum {
    PING_MAX = 4096,
    GRACE_MAX_MS = 600000,
    LOAD_ONE = 1 << SI_LOAD_SHIFT,
};

static void ping(struct request *request)
{
    struct mp_writer writer = request_writer(request);
    struct mp_bytes data;

    if (!param_bytes(request, "data", 0, PING_MAX, &data))
        return;
    mp_write_map(&writer, 1);
    mp_write_str(&writer, "data");
    mp_write_bin(&writer, data.data, data.size);
    request_reply(request, &writer, true);
}

static void put_timeline(struct mp_writer *writer, const struct boot *boot)
{
    static const char *const names[BOOT_MOMENTS] = {
        [BOOT_START] = "start", [BOOT_CHANNEL] = "channel", [BOOT_MODULES] = "modules",
        [BOOT_ROOT] = "root",   [BOOT_READY] = "ready",
    };
    size_t reached = 0;

    for (size_t i = 0; i < BOOT_MOMENTS; i++)
        reached += boot->timeline[i] != 0;
    mp_write_str(writer, "timeline");
    mp_write_map(writer, reached);
    for (size_t i = 0; i < BOOT_MOMENTS; i++) {
        if (boot->timeline[i] != 0)
            mp_put_int(writer, names[i], boot->timeline[i]);
    }
}

static void boot_wait(struct request *request)
{
    struct mp_writer writer = request_writer(request);

    mp_write_map(&writer, 1);
    put_timeline(&writer, &request->agent->boot);
    request_reply(request, &writer, true);
}

/* In bytes; 0 if the kernel does not tell. */
static int64_t memory_available(void)
{
    FILE *file = fopen("/proc/meminfo", "re");
    char line[128];
    long long kilobytes = 0;

    while (file && fgets(line, sizeof(line), file)) {
        if (sscanf(line, "MemAvailable: %lld", &kilobytes) == 1)
            break;
    }
    if (file)
        fclose(file);
    return kilobytes * 1024;
}

static const char *phase_name(enum boot_phase phase)
{
    static const char *const names[] = {
        [BOOT_RUNNING] = "booting",
        [BOOT_HELD] = "held",
        [BOOT_DONE] = "ready",
        [BOOT_FAILED] = "failed",
    };

    return names[phase];
}

static const char *init_name(enum agent_mode mode)
{
    return mode == AGENT_HOSTED ? "hosted" : mode == AGENT_MINIMAL ? "minimal" : "root";
}

static void system_info(struct request *request)
{
    struct mp_writer writer = request_writer(request);
    const struct agent *agent = request->agent;
    struct utsname name;
    struct sysinfo info;

    uname(&name);
    sysinfo(&info);
    mp_write_map(&writer, 14);
    mp_put_str(&writer, "agent", ATOLL_VERSION);
    mp_put_int(&writer, "protocol", MUX_VERSION);
    mp_put_str(&writer, "kernel", name.release);
    mp_put_str(&writer, "machine", name.machine);
    mp_put_str(&writer, "hostname", name.nodename);
    mp_put_str(&writer, "phase", phase_name(agent->boot.phase));
    mp_put_str(&writer, "init", init_name(agent->mode));
    mp_put_int(&writer, "uptime", boot_ns());
    mp_put_int(&writer, "realtime", clock_ns(CLOCK_REALTIME));
    mp_put_int(&writer, "vcpus", sysconf(_SC_NPROCESSORS_ONLN));
    mp_put_int(&writer, "memory_total", (int64_t)info.totalram * info.mem_unit);
    mp_put_int(&writer, "memory_available", memory_available());
    mp_put_int(&writer, "load", (int64_t)info.loads[0] * 100 / LOAD_ONE);
    put_timeline(&writer, &agent->boot);
    request_reply(request, &writer, true);
}

static void system_stats(struct request *request)
{
    struct mp_writer writer = request_writer(request);

    stats_write(&writer);
    request_reply(request, &writer, true);
}

static void clock_step(struct request *request)
{
    struct mp_writer writer = request_writer(request);
    int64_t before = clock_ns(CLOCK_REALTIME);
    int64_t realtime;

    if (!param_int(request, "realtime", 0, INT64_MAX, &realtime))
        return;
    struct failure failed;

    if (request->agent->mode != AGENT_HOSTED && !identity_set_clock(realtime, &failed)) {
        request_fail(request, failed);
        return;
    }
    mp_write_map(&writer, 1);
    mp_put_int(&writer, "before", before);
    request_reply(request, &writer, true);
}

static void entropy_reseed(struct request *request)
{
    struct mp_bytes seed;

    struct failure failed;

    if (!param_bytes(request, "seed", IDENTITY_SEED_MIN, IDENTITY_SEED_MAX, &seed))
        return;
    if (request->agent->mode != AGENT_HOSTED && !identity_reseed(seed.data, seed.size, &failed))
        request_fail(request, failed);
    else
        request_reply_empty(request);
}

/* Only asks for it: the reply has to leave first. */
static void system_poweroff(struct request *request)
{
    struct power *power = &request->agent->power;
    char mode[16];
    int64_t grace;
    bool orderly;

    if (!param_text_or(request, "mode", mode, sizeof(mode), "poweroff") ||
        !param_int_or(request, "grace", 0, GRACE_MAX_MS, &grace, POWER_GRACE_MS) ||
        !param_bool_or(request, "orderly", &orderly, false))
        return;
    bool reboot = strcmp(mode, "reboot") == 0;
    if (!reboot && strcmp(mode, "poweroff") != 0) {
        request_fail(request, failure(FAIL_INVALID, "mode: neither poweroff nor reboot"));
        return;
    }
    *power = (struct power){
        .requested = true,
        .reboot = reboot,
        .orderly = orderly,
        .grace_ms = grace,
    };
    request_reply_empty(request);
}

const struct method system_methods[] = {
    {"ping", false, ping},
    {"system.info", false, system_info},
    {"system.stats", false, system_stats},
    {"system.poweroff", false, system_poweroff},
    {"boot.wait", true, boot_wait},
    {"clock.step", false, clock_step},
    {"entropy.reseed", false, entropy_reseed},
    {NULL, false, NULL},
};
