/* Calls of Docker's API over a unix socket, each on a connection of its own; the same program for both sides.
 *
 * calls SOCKET ping COUNT          GET /_ping
 * calls SOCKET run COUNT IMAGE     what `docker run --rm IMAGE true` asks for: create, attach, wait, start
 * calls SOCKET load COUNT FILE     POST /images/load
 *
 * Prints the milliseconds of each, one a line. Without words it does nothing, as a container's program does.
 */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const char *place;
static char answer[65536], id[65];

static void fail(const char *what)
{
    fprintf(stderr, "calls: %s\n%s\n", what, answer);
    exit(1);
}

static void put(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t sent = write(fd, data, size);

        if (sent < 0)
            fail("write");
        data += sent;
        size -= (size_t)sent;
    }
}

/* Send a request with its head, and as much of a body as is given here. */
static int ask(const char *method, const char *path, const char *more, const char *body)
{
    static char head[4096];
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    strncpy(address.sun_path, place, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    snprintf(head, sizeof head, "%s %s HTTP/1.1\r\nHost: docker\r\n%s\r\n%s", method, path, more, body);
    put(fd, head, strlen(head));
    return fd;
}

/* Read until the head of an answer is there, or with `all` until its end. */
static void hear(int fd, int all)
{
    size_t have = 0;
    ssize_t count;

    answer[0] = 0;
    while ((count = read(fd, answer + have, sizeof answer - 1 - have)) > 0) {
        have += (size_t)count;
        answer[have] = 0;
        if (!all && strstr(answer, "\r\n\r\n"))
            break;
        if (have == sizeof answer - 1)
            have = 0;
    }
    if (strncmp(answer, "HTTP/1.1 2", 10) && strncmp(answer, "HTTP/1.1 101", 12))
        fail("refused");
}

static void drain(int fd)
{
    while (read(fd, answer, sizeof answer) > 0)
        ;
    close(fd);
}

static void whole(int fd)
{
    hear(fd, 1);
    close(fd);
}

static void run(const char *image)
{
    static char body[512], more[256], path[256];
    int attached, waiting;
    const char *found;

    snprintf(body, sizeof body,
             "{\"Image\":\"%s\",\"Cmd\":[\"true\"],\"AttachStdout\":true,\"AttachStderr\":true,"
             "\"HostConfig\":{\"AutoRemove\":true}}", image);
    snprintf(more, sizeof more, "Connection: close\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n",
             strlen(body));
    whole(ask("POST", "/v1.45/containers/create", more, body));
    found = strstr(answer, "\"Id\":\"");
    if (!found)
        fail("create");
    memcpy(id, found + 6, 64);
    snprintf(path, sizeof path, "/v1.45/containers/%s/attach?stream=1&stdout=1&stderr=1", id);
    attached = ask("POST", path, "Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n", "");
    hear(attached, 0);
    snprintf(path, sizeof path, "/v1.45/containers/%s/wait?condition=removed", id);
    waiting = ask("POST", path, "Connection: close\r\nContent-Length: 0\r\n", "");
    hear(waiting, 0);
    snprintf(path, sizeof path, "/v1.45/containers/%s/start", id);
    whole(ask("POST", path, "Connection: close\r\nContent-Length: 0\r\n", ""));
    drain(attached);
    drain(waiting);
}

static void load(const char *file)
{
    static char data[1 << 20], more[256];
    struct stat status;
    ssize_t count;
    int from = open(file, O_RDONLY | O_CLOEXEC), fd;

    if (from < 0 || fstat(from, &status))
        fail(file);
    snprintf(more, sizeof more, "Connection: close\r\nContent-Type: application/x-tar\r\nContent-Length: %lld\r\n",
             (long long)status.st_size);
    fd = ask("POST", "/v1.45/images/load?quiet=1", more, "");
    while ((count = read(from, data, sizeof data)) > 0)
        put(fd, data, (size_t)count);
    close(from);
    whole(fd);
}

int main(int count, char **words)
{
    struct timespec began, ended;
    int left;

    if (count < 4)
        return count > 1 ? 2 : 0;
    place = words[1];
    for (left = atoi(words[3]); left; left--) {
        clock_gettime(CLOCK_MONOTONIC, &began);
        if (!strcmp(words[2], "run") && count > 4)
            run(words[4]);
        else if (!strcmp(words[2], "load") && count > 4)
            load(words[4]);
        else
            whole(ask("GET", "/_ping", "Connection: close\r\n", ""));
        clock_gettime(CLOCK_MONOTONIC, &ended);
        printf("%.3f\n", (double)(ended.tv_sec - began.tv_sec) * 1e3 + (double)(ended.tv_nsec - began.tv_nsec) / 1e6);
        fflush(stdout);
    }
    return 0;
}
