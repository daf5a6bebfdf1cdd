#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"

bool identity_set_clock(int64_t realtime, struct failure *failed)
{
    struct timespec now = {
        .tv_sec = realtime / NS_PER_SECOND,
        .tv_nsec = realtime % NS_PER_SECOND,
    };

    if (clock_settime(CLOCK_REALTIME, &now) == 0)
        return true;
    *failed = failure_os(errno, NULL, "clock_settime");
    return false;
}

/* Without the second ioctl all clones would draw the same bytes until the kernel reseeds by itself. */
bool identity_reseed(const uint8_t *seed, size_t size, struct failure *failed)
{
    struct {
        int entropy_bits;
        int size;
        uint8_t bytes[IDENTITY_SEED_MAX];
    } pool = {.entropy_bits = (int)size * 8, .size = (int)size};
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);

    memcpy(pool.bytes, seed, size);
    bool done = fd >= 0 && ioctl(fd, RNDADDENTROPY, &pool) == 0 && ioctl(fd, RNDRESEEDCRNG) == 0;
    if (!done)
        *failed = failure_os(errno, NULL, "/dev/urandom");
    if (fd >= 0)
        close(fd);
    return done;
}

bool identity_set_hostname(const char *hostname, struct failure *failed)
{
    if (!*hostname || sethostname(hostname, strlen(hostname)) == 0)
        return true;
    *failed = failure_os(errno, NULL, "hostname %s", hostname);
    return false;
}

bool identity_set_machine_id(const char *machine_id, struct failure *failed)
{
    if (!*machine_id)
        return true;
    char text[64];
    int size = snprintf(text, sizeof(text), "%s\n", machine_id);
    struct stat status;
    int fd = open("/etc/machine-id", O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC, 0444);
    /* One of the same length is written over: to cut it off first would take longer than all else here. */
    bool written = fd >= 0 && fstat(fd, &status) == 0 &&
                   (status.st_size <= size || ftruncate(fd, 0) == 0) && write(fd, text, (size_t)size) == size;
    int error = errno;
    if (fd >= 0)
        close(fd);
    /* A root without /etc, or with something else there, names no machine. */
    if (written || error == ENOENT || error == ENOTDIR || error == EISDIR || error == ENXIO || error == ELOOP)
        return true;
    *failed = failure_os(error, NULL, "/etc/machine-id");
    return false;
}

/* The first interface with an Ethernet address, in `request`. */
static bool find_ethernet(int fd, struct ifreq *request)
{
    struct if_nameindex *interfaces = if_nameindex();
    bool found = false;

    for (struct if_nameindex *each = interfaces; each && each->if_index && !found; each++) {
        *request = (struct ifreq){0};
        snprintf(request->ifr_name, sizeof(request->ifr_name), "%s", each->if_name);
        found = ioctl(fd, SIOCGIFHWADDR, request) == 0 && request->ifr_hwaddr.sa_family == ARPHRD_ETHER;
    }
    if (interfaces)
        if_freenameindex(interfaces);
    return found;
}

bool identity_set_mac(const uint8_t mac[6], struct failure *failed)
{
    struct ifreq request;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    errno = ENODEV;
    bool found = fd >= 0 && find_ethernet(fd, &request);
    if (found)
        memcpy(request.ifr_hwaddr.sa_data, mac, 6);
    bool done = found && ioctl(fd, SIOCSIFHWADDR, &request) == 0;
    if (!done)
        *failed = failure_os(found ? errno : ENODEV, NULL, "the network interface's address");
    if (fd >= 0)
        close(fd);
    return done;
}
