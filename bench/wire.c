/* The guest's end of the network benchmark. Each way of use prints one line of numbers.
 *
 * wire push HOST PORT BYTES            send, wait for the other end: MiB/s
 * wire pull HOST PORT BYTES            receive so many: MiB/s
 * wire connect HOST PORT COUNT         connect and echo a byte: microseconds, median and p99
 * wire echo HOST PORT COUNT            echo a byte over one connection: microseconds, median and p99
 * wire datagrams HOST PORT SECONDS     echo datagrams of 100 bytes, 64 under way: datagrams each second
 * wire names HOST PORT SECONDS         ask for the name "localhost", 32 questions under way: answers each second
 * wire storm HOST PORT COUNT           so many transfers of 10,000 bytes, 32 at once: failures and seconds
 * wire share HOST PORT SECONDS         64 connections receive at once: the least and the most of one, MiB
 * wire serve PORT                      answer what the above ask for, for the guest's own loopback
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { AT_ONCE = 32, FLOWS = 64, DATAGRAMS = 64, TRANSFER = 10000 };

static char buffer[1 << 18];
static struct sockaddr_in place;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    if (connect(fd, (struct sockaddr *)&place, sizeof(place))) {
        close(fd);
        return -1;
    }
    return fd;
}

static int must_dial(void)
{
    int fd = dial();
    if (fd < 0)
        fail("connect");
    return fd;
}

/* What is asked of the server: a letter and a number, in a line. */
static void ask(int fd, char what, long number)
{
    char line[32];
    int size = snprintf(line, sizeof(line), "%c%ld\n", what, number);
    if (write(fd, line, (size_t)size) != size)
        fail("write");
}

static long receive(int fd)
{
    long got = 0;
    ssize_t count;
    while ((count = read(fd, buffer, sizeof(buffer))) > 0)
        got += count;
    return count < 0 ? -1 : got;
}

static void push(long bytes)
{
    double began = now();
    int fd = must_dial();
    ask(fd, 'S', bytes);
    for (long left = bytes; left > 0;) {
        ssize_t count = write(fd, buffer, left < (long)sizeof(buffer) ? (size_t)left : sizeof(buffer));
        if (count < 0)
            fail("write");
        left -= count;
    }
    shutdown(fd, SHUT_WR);
    receive(fd);
    printf("%.1f\n", (double)bytes / (now() - began) / 1048576);
}

static void pull(long bytes)
{
    double began = now();
    int fd = must_dial();
    ask(fd, 'R', bytes);
    if (receive(fd) != bytes)
        fail("read");
    printf("%.1f\n", (double)bytes / (now() - began) / 1048576);
}

static int compare(const void *one, const void *other)
{
    double difference = *(const double *)one - *(const double *)other;
    return (difference > 0) - (difference < 0);
}

static void tell(double *samples, long count)
{
    qsort(samples, (size_t)count, sizeof(*samples), compare);
    printf("%.0f %.0f\n", samples[count / 2] * 1e6, samples[count * 99 / 100] * 1e6);
}

static void echo(long count, int anew)
{
    double *samples = calloc((size_t)count, sizeof(*samples));
    int fd = -1;
    for (long i = 0; i < count; i++) {
        char byte = 'x';
        double began = now();
        if (fd < 0) {
            fd = must_dial();
            ask(fd, 'E', 0);
        }
        if (write(fd, &byte, 1) != 1 || read(fd, &byte, 1) != 1)
            fail("echo");
        samples[i] = now() - began;
        if (anew) {
            close(fd);
            fd = -1;
        }
    }
    tell(samples, count);
}

/* Keeps `under_way` questions out and counts answers. */
static void datagrams(long seconds, const char *question, size_t size, int under_way)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (connect(fd, (struct sockaddr *)&place, sizeof(place)))
        fail("connect");
    double began = now(), end = began + (double)seconds;
    long count = 0;
    for (int i = 0; i < under_way; i++)
        send(fd, question, size, 0);
    while (now() < end) {
        struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
        if (poll(&poll_fd, 1, 200) == 0) { /* some were lost: begin again */
            for (int i = 0; i < under_way; i++)
                send(fd, question, size, 0);
            continue;
        }
        if (recv(fd, buffer, sizeof(buffer), 0) > 0) {
            count++;
            send(fd, question, size, 0);
        }
    }
    printf("%.0f\n", (double)count / (now() - began));
}

static void names(long seconds)
{
    static const char question[] = "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";
    datagrams(seconds, question, sizeof(question) - 1, AT_ONCE);
}

static void storm(long count)
{
    double began = now();
    int *failures = mmap(NULL, sizeof(int), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int child = 0; child < AT_ONCE; child++) {
        if (fork())
            continue;
        for (long i = child; i < count; i += AT_ONCE) {
            int fd = dial();
            if (fd >= 0)
                ask(fd, 'R', TRANSFER);
            if (fd < 0 || receive(fd) != TRANSFER)
                __atomic_add_fetch(failures, 1, __ATOMIC_RELAXED);
            if (fd >= 0)
                close(fd);
        }
        _exit(0);
    }
    while (wait(NULL) > 0)
        ;
    printf("%d %.1f\n", *failures, now() - began);
}

static void share(long seconds)
{
    struct pollfd flows[FLOWS];
    long got[FLOWS] = {0};
    for (int i = 0; i < FLOWS; i++) {
        flows[i] = (struct pollfd){.fd = must_dial(), .events = POLLIN};
        ask(flows[i].fd, 'R', 1L << 40);
    }
    for (double end = now() + (double)seconds; now() < end;) {
        poll(flows, FLOWS, 100);
        for (int i = 0; i < FLOWS; i++)
            if (flows[i].revents & POLLIN) {
                ssize_t count = read(flows[i].fd, buffer, sizeof(buffer));
                if (count <= 0)
                    fail("read");
                got[i] += count;
            }
    }
    long least = got[0], most = got[0], all = 0;
    for (int i = 0; i < FLOWS; i++) {
        least = got[i] < least ? got[i] : least;
        most = got[i] > most ? got[i] : most;
        all += got[i];
    }
    printf("%.2f %.2f %.2f\n", (double)least / 1048576, (double)most / 1048576, (double)all / FLOWS / 1048576);
}

static void answer(int fd)
{
    char line[32];
    size_t size = 0;
    while (size < sizeof(line) - 1 && read(fd, line + size, 1) == 1 && line[size] != '\n')
        size++;
    line[size] = '\0';
    long number = atol(line + 1);
    if (line[0] == 'S') {
        receive(fd);
    } else if (line[0] == 'E') {
        for (char byte; read(fd, &byte, 1) == 1;)
            if (write(fd, &byte, 1) != 1)
                break;
    }
    for (ssize_t count; line[0] == 'R' && number > 0; number -= count)
        if ((count = write(fd, buffer, number < (long)sizeof(buffer) ? (size_t)number : sizeof(buffer))) < 0)
            break;
    _exit(0);
}

static void reflect(int port)
{
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)}, client;
    if (bind(fd, (struct sockaddr *)&own, sizeof(own)))
        fail("bind");
    for (;;) {
        socklen_t size = sizeof(client);
        ssize_t count = recvfrom(fd, buffer, sizeof(buffer), 0, (struct sockaddr *)&client, &size);
        if (count >= 0)
            sendto(fd, buffer, (size_t)count, 0, (struct sockaddr *)&client, size);
    }
}

static void serve(int port)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!fork()) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        reflect(port);
    }
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, (struct sockaddr *)&own, sizeof(own)) || listen(fd, 128))
        fail("listen");
    puts("ready");
    fflush(stdout);
    for (;;) {
        int client = accept(fd, NULL, NULL);
        if (client >= 0 && !fork())
            answer(client);
        close(client);
        while (waitpid(-1, NULL, WNOHANG) > 0)
            ;
    }
}

int main(int count, char **words)
{
    if (count == 3 && !strcmp(words[1], "serve"))
        serve(atoi(words[2]));
    if (count != 5)
        return 2;
    place = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[3]))};
    if (inet_pton(AF_INET, words[2], &place.sin_addr) != 1)
        return 2;
    long number = atol(words[4]);
    if (!strcmp(words[1], "push"))
        push(number);
    else if (!strcmp(words[1], "pull"))
        pull(number);
    else if (!strcmp(words[1], "connect"))
        echo(number, 1);
    else if (!strcmp(words[1], "echo"))
        echo(number, 0);
    else if (!strcmp(words[1], "datagrams"))
        datagrams(number, buffer, 100, DATAGRAMS);
    else if (!strcmp(words[1], "names"))
        names(number);
    else if (!strcmp(words[1], "storm"))
        storm(number);
    else if (!strcmp(words[1], "share"))
        share(number);
    else
        return 2;
    return 0;
}
