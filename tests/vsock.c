/* AF_VSOCK in a guest.
 *
 * "serve PORT" listens. The first byte of each connection says what is done with it: E sends back what comes,
 * S counts what comes and sends the count, G sends as many bytes as eight further ones say, little-endian.
 * "connect PORT" connects to the host, sends its input, and writes what comes back.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <signal.h>
#include <unistd.h>

static char data[65536];

static int send_all(int fd, const char *from, size_t size)
{
    while (size > 0) {
        ssize_t sent = write(fd, from, size);

        if (sent <= 0)
            return -1;
        from += sent;
        size -= (size_t)sent;
    }
    return 0;
}

static int pass_on(int from, int to)
{
    ssize_t size;

    while ((size = read(from, data, sizeof data)) > 0)
        if (send_all(to, data, (size_t)size) < 0)
            return -1;
    return (int)size;
}

static int generate(int fd)
{
    uint64_t left;

    if (recv(fd, &left, sizeof left, MSG_WAITALL) != sizeof left)
        return -1;
    while (left > 0) {
        size_t size = left < sizeof data ? (size_t)left : sizeof data;

        if (send_all(fd, data, size) < 0)
            return -1;
        left -= size;
    }
    return 0;
}

static int sink(int fd)
{
    uint64_t count = 0;
    ssize_t size;

    while ((size = read(fd, data, sizeof data)) > 0)
        count += (uint64_t)size;
    return size < 0 ? -1 : send_all(fd, (char *)&count, sizeof count);
}

static int serve(int listener)
{
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        char what;

        if (fd < 0)
            return 1;
        if (fork() == 0) {
            if (read(fd, &what, 1) != 1)
                _exit(1);
            _exit((what == 'E' ? pass_on(fd, fd) : what == 'S' ? sink(fd) : generate(fd)) < 0);
        }
        close(fd);
    }
}

int main(int count, char **words)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

    if (count != 3 || fd < 0)
        return 2;
    signal(SIGCHLD, SIG_IGN);
    address.svm_port = (unsigned int)strtoul(words[2], NULL, 10);
    if (strcmp(words[1], "serve") == 0) {
        address.svm_cid = VMADDR_CID_ANY;
        if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 64))
            return 3;
        return serve(fd);
    }
    address.svm_cid = VMADDR_CID_HOST;
    if (connect(fd, (struct sockaddr *)&address, sizeof address))
        return 4;
    if (pass_on(0, fd) < 0 || shutdown(fd, SHUT_WR) || pass_on(fd, 1) < 0)
        return 5;
    return 0;
}
