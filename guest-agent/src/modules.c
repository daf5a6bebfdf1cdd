#include "modules.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "file.h"

bool modules_open(struct module_list *list, const char *path, struct failure *failed)
{
    list->text = file_read(path);
    list->next = list->text;
    if (list->text || errno == ENOENT)
        return true;
    *failed = failure_os(errno, NULL, "%s", path);
    return false;
}

void modules_close(struct module_list *list)
{
    free(list->text);
    *list = (struct module_list){0};
}

bool module_load(const char *path, bool *new, struct failure *failed)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0) {
        *failed = failure_os(errno, NULL, "%s", path);
        return false;
    }
    *new = syscall(SYS_finit_module, fd, "", 0) == 0;
    /* EEXIST: it is built in, or came as another's dependency. */
    bool loaded = *new || errno == EEXIST;
    if (!loaded)
        *failed = failure_os(errno, NULL, "%s", path);
    close(fd);
    return loaded;
}

bool modules_load_next(struct module_list *list, bool *more, struct failure *failed)
{
    bool new;
    const char *path = list->next ? strtok_r(list->next, "\n", &list->next) : NULL;

    *more = path != NULL;
    return !path || module_load(path, &new, failed);
}

bool modules_load(const char *path, struct failure *failed)
{
    struct module_list list;
    bool more = true;

    if (!modules_open(&list, path, failed))
        return false;
    bool loaded = true;
    while (loaded && more)
        loaded = modules_load_next(&list, &more, failed);
    modules_close(&list);
    return loaded;
}
