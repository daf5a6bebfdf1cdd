/* Answers each datagram to the UDP port of its argument with the same, behind "got ". */

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int count, char **words)
{
    static char data[65536] = "got ";
    struct sockaddr_in own = {.sin_family = AF_INET}, client;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    own.sin_port = htons((unsigned short)atoi(count > 1 ? words[1] : "7"));
    if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof own))
        return 1;
    for (;;) {
        socklen_t length = sizeof client;
        ssize_t size = recvfrom(fd, data + 4, sizeof data - 4, 0, (struct sockaddr *)&client, &length);

        if (size < 0 || sendto(fd, data, (size_t)size + 4, 0, (struct sockaddr *)&client, length) < 0)
            return 1;
    }
}
