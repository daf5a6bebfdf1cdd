/*
 * The only file of an image: tells what it was started with, and what is around it.
 *
 *     inside show [WORD ...]      arguments, variables, directory, user and groups
 *     inside look PATH ...        what each is
 *     inside cat PATH ...         what is in each
 *     inside write PATH TEXT      into what is there
 *     inside wait                 for SIGQUIT: ends with 7 then, and on nothing else
 *     inside serve PORT           answers each connection with a word
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static int show(char **words)
{
    char path[PATH_MAX];
    gid_t groups[64];
    int count = getgroups(64, groups);

    for (; *words; words++)
        printf("word %s\n", *words);
    for (char **each = environ; *each; each++)
        printf("env %s\n", *each);
    printf("cwd %s\n", getcwd(path, sizeof(path)) ? path : "?");
    printf("ids %u %u", (unsigned)getuid(), (unsigned)getgid());
    for (int i = 0; i < count; i++)
        printf(" %u", (unsigned)groups[i]);
    printf("\n");
    return 0;
}

static int look(char **paths)
{
    struct stat status;

    for (; *paths; paths++) {
        const char *kind = stat(*paths, &status) < 0     ? "nothing"
                           : S_ISDIR(status.st_mode)     ? "directory"
                           : S_ISCHR(status.st_mode)     ? "device"
                           : S_ISREG(status.st_mode)     ? "file"
                                                         : "other";
        printf("%s %s\n", *paths, kind);
    }
    return 0;
}

static int cat(char **paths)
{
    char data[4096];
    ssize_t got;

    for (; *paths; paths++) {
        int fd = open(*paths, O_RDONLY);

        if (fd < 0) {
            perror(*paths);
            return 1;
        }
        while ((got = read(fd, data, sizeof(data))) > 0)
            fwrite(data, 1, (size_t)got, stdout);
        close(fd);
    }
    return 0;
}

static int write_to(char **words)
{
    int fd = open(words[0], O_WRONLY);

    if (fd < 0 || write(fd, words[1], strlen(words[1])) < 0) {
        perror(words[0]);
        return 1;
    }
    return 0;
}

static void quit(int number)
{
    (void)number;
    _exit(7);
}

__attribute__((noreturn)) static void wait_for_quit(void)
{
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGQUIT, quit);
    puts("waiting");
    fflush(stdout);
    for (;;)
        pause();
}

static int serve(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(port))};
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(listener, 8) < 0) {
        perror("serve");
        return 1;
    }
    puts("serving");
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);

        if (client >= 0 && write(client, "served", 6) == 6)
            close(client);
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";

    if (strcmp(what, "show") == 0)
        return show(argv + 2);
    if (strcmp(what, "look") == 0)
        return look(argv + 2);
    if (strcmp(what, "cat") == 0)
        return cat(argv + 2);
    if (strcmp(what, "write") == 0 && argc == 4)
        return write_to(argv + 2);
    if (strcmp(what, "wait") == 0)
        wait_for_quit();
    if (strcmp(what, "serve") == 0 && argc == 3)
        return serve(argv[2]);
    return 2;
}
