#include "net.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"
#include "file.h"
#include "netlink.h"

enum { POLL_MS = 5 };

#define NET_CLASS "/sys/class/net"
#define RESOLV_CONF "/etc/resolv.conf"

bool net_parse_mac(const char *text, uint8_t mac[NET_MAC_BYTES])
{
    int end = 0;

    return strspn(text, "0123456789abcdefABCDEF:") == NET_MAC_SIZE &&
           sscanf(text, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4],
                  &mac[5], &end) == NET_MAC_BYTES &&
           end == NET_MAC_SIZE && text[end] == '\0';
}

/* A bridge or a bond has the address of one of its members, but no device. */
static bool has_mac(const char *name, const char *mac)
{
    char path[sizeof(NET_CLASS) + NAME_MAX + 16];
    char found[64];

    snprintf(path, sizeof(path), NET_CLASS "/%s/address", name);
    if (!file_read_line(path, found, sizeof(found)) || strcmp(found, mac) != 0)
        return false;
    snprintf(path, sizeof(path), NET_CLASS "/%s/device", name);
    return access(path, F_OK) == 0;
}

static bool find_interface(const char *mac, char interface[IF_NAMESIZE])
{
    DIR *entries = opendir(NET_CLASS);
    const struct dirent *entry;
    bool found = false;

    while (entries && !found && (entry = readdir(entries))) {
        found = strlen(entry->d_name) < IF_NAMESIZE && has_mac(entry->d_name, mac);
        if (found)
            strcpy(interface, entry->d_name);
    }
    if (entries)
        closedir(entries);
    return found;
}

static bool await_interface(const struct net_config *config, char interface[IF_NAMESIZE], struct failure *failed)
{
    int64_t until = boot_ns() + config->wait_ms * NS_PER_MS;

    while (!find_interface(config->mac, interface)) {
        if (boot_ns() >= until) {
            *failed = failure_os(ENODEV, NULL, "interface %s", config->mac);
            return false;
        }
        usleep(POLL_MS * 1000);
    }
    return true;
}

static const char *set_up(int fd, const struct net_config *config, unsigned interface, int *error)
{
    if ((*error = netlink_raise(fd, interface)))
        return "raise";
    if ((*error = netlink_set_address(fd, interface, config->address, config->prefix)))
        return "address";
    *error = config->has_gateway ? netlink_set_gateway(fd, interface, config->gateway)
                                 : netlink_drop_gateway(fd, interface);
    return *error ? "default route" : NULL;
}

static bool set_up_interface(const struct net_config *config, const char *interface, struct failure *failed)
{
    unsigned index = if_nametoindex(interface);
    int fd = netlink_open();
    int error;

    if (fd < 0 || index == 0) {
        *failed = failure_os(errno, NULL, "%s", interface);
        if (fd >= 0)
            close(fd);
        return false;
    }
    const char *what = set_up(fd, config, index, &error);
    close(fd);
    if (what)
        *failed = failure_os(error, NULL, "%s: %s", interface, what);
    return what == NULL;
}

/* The file is replaced as a whole; a symbolic link in its place, as systemd-resolved has it, too. */
static bool write_resolvers(const struct net_config *config, struct failure *failed)
{
    char partial[64];

    snprintf(partial, sizeof(partial), "/etc/.resolv.conf.%.12s", config->mac + 5);
    mkdir("/etc", 0755);
    unlink(partial);
    FILE *file = fopen(partial, "wxe");
    for (size_t i = 0; file && i < config->resolvers_count; i++)
        fprintf(file, "nameserver %s\n", config->resolvers[i]);
    bool written = file && fchmod(fileno(file), 0644) == 0;
    if (file)
        written = fclose(file) == 0 && written;
    if (written && rename(partial, RESOLV_CONF) == 0)
        return true;
    *failed = failure_os(errno, NULL, RESOLV_CONF);
    unlink(partial);
    return false;
}

bool net_configure(const struct net_config *config, char interface[IF_NAMESIZE], struct failure *failed)
{
    return await_interface(config, interface, failed) && set_up_interface(config, interface, failed) &&
           (!config->has_resolvers || write_resolvers(config, failed));
}
