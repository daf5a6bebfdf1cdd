#include "listening.h"

#include <string.h>

enum {
    LINE_MAX_SIZE = 512,
    STATE_LISTENS = 0x0A, /* include/net/tcp_states.h */
    WORD_DIGITS = 8,
    FOUR = 4,
    MAPPED = 12, /* bytes before an IPv4 address in one of IPv6 (RFC 4291, section 2.5.5.2) */
    LOOPBACK_NET = 127,
};

static const uint8_t mapped[MAPPED] = {[10] = 0xFF, [11] = 0xFF};
static const uint8_t zeros[LISTENER_ADDRESS_MAX];

static bool is_loopback(const struct listener *listener)
{
    static const uint8_t six[LISTENER_ADDRESS_MAX] = {[15] = 1};

    return listener->size == FOUR ? listener->address[0] == LOOPBACK_NET
                                  : memcmp(listener->address, six, sizeof(six)) == 0;
}

/* The lower, the more can reach it. */
static int rank(const struct listener *listener)
{
    int version = listener->size != FOUR;

    if (memcmp(listener->address, zeros, listener->size) == 0)
        return version;
    return (is_loopback(listener) ? 4 : 2) + version;
}

/* Words of 32 bits in the host's order, in hexadecimal. */
static bool decode(struct listener *listener, const char *digits)
{
    size_t length = strlen(digits);

    if (length != (size_t)2 * FOUR && length != (size_t)2 * LISTENER_ADDRESS_MAX)
        return false;
    listener->size = (uint8_t)(length / 2);
    for (size_t at = 0; at < length; at += WORD_DIGITS) {
        unsigned int word;

        if (sscanf(digits + at, "%8x", &word) != 1)
            return false;
        memcpy(listener->address + at / 2, &word, sizeof(word));
    }
    if (listener->size == LISTENER_ADDRESS_MAX && memcmp(listener->address, mapped, MAPPED) == 0) {
        memmove(listener->address, listener->address + MAPPED, FOUR);
        memset(listener->address + FOUR, 0, MAPPED);
        listener->size = FOUR;
    }
    return true;
}

/* Where a port is, or would be. */
static size_t position(const struct listeners *listeners, uint16_t port)
{
    size_t low = 0, high = listeners->count;

    while (low < high) {
        size_t middle = (low + high) / 2;

        if (listeners->all[middle].port < port)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool is_at(const struct listeners *listeners, size_t at, uint16_t port)
{
    return at < listeners->count && listeners->all[at].port == port;
}

static bool precedes(const struct listener *one, const struct listener *other)
{
    int first = rank(one), second = rank(other);

    return first != second ? first < second : memcmp(one->address, other->address, one->size) < 0;
}

static void add(struct listeners *listeners, const struct listener *found)
{
    size_t at = position(listeners, found->port);

    if (!is_at(listeners, at, found->port) || precedes(found, &listeners->all[at]))
        listeners_apply(listeners, found);
}

void listeners_apply(struct listeners *listeners, const struct listener *change)
{
    size_t at = position(listeners, change->port);
    struct listener *place = &listeners->all[at];
    bool known = is_at(listeners, at, change->port);

    if (change->size == 0) {
        if (known)
            memmove(place, place + 1, (--listeners->count - at) * sizeof(*place));
        return;
    }
    if (!known) {
        if (listeners->count == LISTENERS_MAX)
            return;
        memmove(place + 1, place, (listeners->count++ - at) * sizeof(*place));
    }
    *place = *change;
}

void listeners_parse(struct listeners *listeners, FILE *table)
{
    char line[LINE_MAX_SIZE];
    char digits[2 * LISTENER_ADDRESS_MAX + 1];
    unsigned int port, state;

    if (!fgets(line, sizeof(line), table)) /* the names of the columns */
        return;
    while (fgets(line, sizeof(line), table) &&
           sscanf(line, " %*u: %32[0-9A-F]:%4x %*32[0-9A-F]:%*4x %2x", digits, &port, &state) == 3 &&
           state == STATE_LISTENS) {
        struct listener found = {.port = (uint16_t)port};

        if (port > 0 && decode(&found, digits))
            add(listeners, &found);
    }
}

void listeners_read(struct listeners *listeners)
{
    static const char *const tables[] = {"/proc/net/tcp", "/proc/net/tcp6"};

    listeners->count = 0;
    for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++) {
        FILE *table = fopen(tables[i], "re");

        if (!table)
            continue;
        listeners_parse(listeners, table);
        fclose(table);
    }
}

static bool same(const struct listener *one, const struct listener *other)
{
    return one->port == other->port && one->size == other->size &&
           memcmp(one->address, other->address, one->size) == 0;
}

bool listeners_change(const struct listeners *told, const struct listeners *now, struct listener *change)
{
    size_t at = 0;

    while (at < told->count && at < now->count && same(&told->all[at], &now->all[at]))
        at++;
    bool more_told = at < told->count, more_now = at < now->count;
    if (!more_told && !more_now)
        return false;
    if (more_told && (!more_now || told->all[at].port < now->all[at].port))
        *change = (struct listener){.port = told->all[at].port};
    else
        *change = now->all[at];
    return true;
}
