#include "stats.h"

#include <ctype.h>
#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "clock.h"
#include "file.h"

enum {
    SECTOR = 512, /* the unit of /proc/diskstats, whatever the disk's own */
    DISK_NAME_MAX = 32,
    LOAD_ONE = 1 << SI_LOAD_SHIFT,
};

static void put_cpu(struct mp_writer *writer)
{
    char line[256] = "";
    int64_t user = 0, nice = 0, system = 0, idle = 0, iowait = 0, irq = 0, softirq = 0, steal = 0;
    int64_t tick = NS_PER_SECOND / sysconf(_SC_CLK_TCK);

    file_read_line("/proc/stat", line, sizeof(line));
    sscanf(line, "cpu %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64 " %" SCNd64,
           &user, &nice, &system, &idle, &iowait, &irq, &softirq, &steal);
    mp_write_str(writer, "cpu");
    mp_write_map(writer, 5);
    mp_put_int(writer, "user", (user + nice) * tick);
    mp_put_int(writer, "system", (system + irq + softirq) * tick);
    mp_put_int(writer, "idle", idle * tick);
    mp_put_int(writer, "iowait", iowait * tick);
    mp_put_int(writer, "steal", steal * tick);
}

/* A line of /proc/meminfo, in bytes. */
static int64_t memory_field(const char *text, const char *name)
{
    const char *found = text ? strstr(text, name) : NULL;

    return found ? strtoll(found + strlen(name), NULL, 10) * 1024 : 0;
}

static void put_memory(struct mp_writer *writer)
{
    char *text = file_read("/proc/meminfo");

    mp_write_str(writer, "memory");
    mp_write_map(writer, 6);
    mp_put_int(writer, "total", memory_field(text, "MemTotal:"));
    mp_put_int(writer, "free", memory_field(text, "MemFree:"));
    mp_put_int(writer, "available", memory_field(text, "MemAvailable:"));
    mp_put_int(writer, "cached", memory_field(text, "\nCached:"));
    mp_put_int(writer, "swap_total", memory_field(text, "SwapTotal:"));
    mp_put_int(writer, "swap_free", memory_field(text, "SwapFree:"));
    free(text);
}

/* sysinfo(2) would count threads. */
static int64_t count_processes(void)
{
    DIR *entries = opendir("/proc");
    const struct dirent *entry;
    int64_t count = 0;

    while (entries && (entry = readdir(entries)))
        count += isdigit((unsigned char)*entry->d_name) != 0;
    if (entries)
        closedir(entries);
    return count;
}

/* vda, not its partition vda1. */
static bool is_virtio_disk(const char *name)
{
    return strncmp(name, "vd", 2) == 0 && !isdigit((unsigned char)name[strlen(name) - 1]);
}

static void put_disk(struct mp_writer *writer)
{
    char *text = file_read("/proc/diskstats");
    int64_t read = 0, written = 0;
    struct statvfs root = {0};
    char *rest;

    for (char *line = text ? strtok_r(text, "\n", &rest) : NULL; line; line = strtok_r(NULL, "\n", &rest)) {
        char name[DISK_NAME_MAX];
        int64_t in, out;

        if (sscanf(line, "%*d %*d %31s %*d %*d %" SCNd64 " %*d %*d %*d %" SCNd64, name, &in, &out) == 3 &&
            is_virtio_disk(name)) {
            read += in * SECTOR;
            written += out * SECTOR;
        }
    }
    free(text);
    statvfs("/", &root);
    mp_write_str(writer, "disk");
    mp_write_map(writer, 4);
    mp_put_int(writer, "read", read);
    mp_put_int(writer, "written", written);
    mp_put_int(writer, "size", (int64_t)(root.f_blocks * root.f_frsize));
    mp_put_int(writer, "free", (int64_t)(root.f_bavail * root.f_frsize));
}

static void put_network(struct mp_writer *writer)
{
    char *text = file_read("/proc/net/dev");
    int64_t received = 0, sent = 0;
    char *rest;

    for (char *line = text ? strtok_r(text, "\n", &rest) : NULL; line; line = strtok_r(NULL, "\n", &rest)) {
        const char *numbers = strchr(line, ':');
        const char *name = line + strspn(line, " ");
        int64_t in, out;

        if (numbers && strncmp(name, "lo:", 3) != 0 &&
            sscanf(numbers + 1, "%" SCNd64 " %*d %*d %*d %*d %*d %*d %*d %" SCNd64, &in, &out) == 2) {
            received += in;
            sent += out;
        }
    }
    free(text);
    mp_write_str(writer, "network");
    mp_write_map(writer, 2);
    mp_put_int(writer, "received", received);
    mp_put_int(writer, "sent", sent);
}

void stats_write(struct mp_writer *writer)
{
    struct sysinfo info = {0};

    sysinfo(&info);
    mp_write_map(writer, 7);
    put_cpu(writer);
    put_memory(writer);
    mp_put_int(writer, "load", (int64_t)info.loads[0] * 100 / LOAD_ONE);
    mp_put_int(writer, "processes", count_processes());
    put_disk(writer);
    put_network(writer);
    mp_put_int(writer, "uptime", boot_ns());
}
