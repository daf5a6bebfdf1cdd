#include "names.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "file.h"

#define BLANKS " \t"
#define OWN "127.0.1.1" /* as Debian has it */
#define MARK "# atoll"  /* behind the host's line for an address that others have, too */

static const char local_hosts[] = "127.0.0.1 localhost\n"
                                  "::1 localhost ip6-localhost ip6-loopback\n"
                                  "ff02::1 ip6-allnodes\n"
                                  "ff02::2 ip6-allrouters\n";

/* The next word of a line, which is a string without its end and its comment; false behind the last one. */
static bool next_word(const char **at, size_t *left, const char **word, size_t *length)
{
    while (*left > 0 && strchr(BLANKS, **at))
        ++*at, --*left;
    *word = *at;
    while (*left > 0 && !strchr(BLANKS, **at))
        ++*at, --*left;
    *length = (size_t)(*at - *word);
    return *length > 0;
}

static bool equals(const char *word, size_t length, const char *other)
{
    return length == strlen(other) && memcmp(word, other, length) == 0;
}

static size_t without_comment(const char *line, size_t length)
{
    const char *comment = memchr(line, '#', length);

    return comment ? (size_t)(comment - line) : length;
}

/* Whether a line gives an address to `name`; NULL for any. */
static bool gives(const char *line, size_t length, const char *name)
{
    size_t left = without_comment(line, length);
    const char *word;
    size_t size;

    if (!next_word(&line, &left, &word, &size))
        return false;
    while (next_word(&line, &left, &word, &size)) {
        if (equals(word, size, name))
            return true;
    }
    return false;
}

/* Whether it is a line that was written here, or by the host, for this machine or one that it is a copy of. */
static bool is_own(const char *line, size_t length)
{
    const size_t mark = strlen(MARK);
    const char *at = line;
    const char *word;
    size_t left = length;
    size_t size;

    if (length > mark && memcmp(line + length - mark, MARK, mark) == 0)
        return true;
    return next_word(&at, &left, &word, &size) && equals(word, size, OWN) &&
           next_word(&at, &left, &word, &size) && !next_word(&at, &left, &word, &size);
}

static char *append(char *to, const char *text, size_t length)
{
    memcpy(to, text, length);
    return to + length;
}

char *names_hosts(const char *text, const char *hostname)
{
    char *hosts = malloc(sizeof(local_hosts) + strlen(text) + strlen(OWN) + strlen(hostname) + 4);
    bool knows_local = false;
    bool knows_own = false;
    char *to;

    if (!hosts)
        return NULL;
    for (const char *line = text; *line; line += strspn(line, "\n")) {
        size_t length = strcspn(line, "\n");

        if (!is_own(line, length)) {
            knows_local = knows_local || gives(line, length, "localhost");
            knows_own = knows_own || gives(line, length, hostname);
        }
        line += length;
    }
    to = knows_local ? hosts : append(hosts, local_hosts, strlen(local_hosts));
    for (const char *line = text; *line;) {
        size_t length = strcspn(line, "\n");

        if (!is_own(line, length)) {
            to = append(to, line, length);
            *to++ = '\n';
        }
        line += length + (line[length] == '\n');
    }
    if (!knows_own) {
        to = append(to, OWN " ", strlen(OWN " "));
        to = append(to, hostname, strlen(hostname));
        *to++ = '\n';
    }
    *to = '\0';
    return hosts;
}

/* Over what there is: to cut it off first would take longer than all else here. */
static bool write_text(const char *path, const char *text)
{
    const int flags = O_WRONLY | O_CREAT | O_NONBLOCK | O_CLOEXEC;
    size_t size = strlen(text);
    struct stat status;
    int fd = open(path, flags, 0644);

    if (fd < 0 && unlink(path) == 0) /* a link that leads nowhere */
        fd = open(path, flags | O_EXCL, 0644);
    if (fd < 0)
        return false;
    bool written = fstat(fd, &status) == 0 && write(fd, text, size) == (ssize_t)size &&
                   (status.st_size <= (off_t)size || ftruncate(fd, (off_t)size) == 0);
    close(fd);
    return written;
}

static bool write_hosts(const char *hostname)
{
    static const char path[] = "/etc/hosts";
    struct stat status;
    bool there = stat(path, &status) == 0;
    char *before = there && S_ISREG(status.st_mode) ? file_read(path) : NULL;

    if (there && !before)
        return false; /* something else, or a very long one */
    char *after = names_hosts(before ? before : "", hostname);
    bool written = after && ((before && strcmp(before, after) == 0) || write_text(path, after));
    free(after);
    free(before);
    return written;
}

bool names_write(const char *hostname)
{
    char line[256];
    struct stat status;

    if (!*hostname || strlen(hostname) + 2 > sizeof(line))
        return true;
    mkdir("/etc", 0755);
    strcpy(line, hostname);
    strcat(line, "\n");
    bool named = write_text("/etc/hostname", line);
    bool known = write_hosts(hostname);
    bool resolving = stat("/etc/resolv.conf", &status) == 0 || write_text("/etc/resolv.conf", "# no network\n");
    return named && known && resolving;
}
