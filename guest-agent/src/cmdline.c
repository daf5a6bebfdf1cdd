#include "cmdline.h"

#include <string.h>

#define BLANKS " \t\n"

#define PREFIX "atoll."

const struct cmdline_parameter cmdline_parameters[] = {
#define PARAMETER(name) {#name, offsetof(struct cmdline, name), sizeof(((struct cmdline *)0)->name)}
    PARAMETER(root),     PARAMETER(rootfs),     PARAMETER(data), PARAMETER(datafs), PARAMETER(modules),
    PARAMETER(emulator), PARAMETER(init),       PARAMETER(direct), PARAMETER(hostname),
    PARAMETER(machine_id), {NULL, 0, 0},
#undef PARAMETER
};

static bool equals(const char *word, size_t length, const char *other)
{
    return length == strlen(other) && memcmp(word, other, length) == 0;
}

/* The parameter that a word is about, or NULL; `value` is where its value begins. */
static const struct cmdline_parameter *find(const char *word, size_t length, const char **value)
{
    const size_t prefix = strlen(PREFIX);
    const char *end = memchr(word, '=', length);

    if (!end || (size_t)(end - word) < prefix || memcmp(word, PREFIX, prefix) != 0)
        return NULL;
    *value = end + 1;
    for (const struct cmdline_parameter *parameter = cmdline_parameters; parameter->name; parameter++) {
        if (equals(word + prefix, (size_t)(end - word) - prefix, parameter->name))
            return parameter;
    }
    return NULL;
}

static bool set(struct cmdline *cmdline, const char *word, size_t length, const char **wrong)
{
    const char *value;
    const struct cmdline_parameter *parameter = find(word, length, &value);

    if (!parameter)
        return true;
    size_t size = length - (size_t)(value - word);
    if (size >= parameter->size) {
        *wrong = parameter->name;
        return false;
    }
    char *field = (char *)cmdline + parameter->offset;
    memcpy(field, value, size);
    field[size] = '\0';
    return true;
}

bool cmdline_parse(const char *text, struct cmdline *cmdline, const char **wrong)
{
    *cmdline = (struct cmdline){.rootfs = "erofs", .datafs = "ext4"};
    for (text += strspn(text, BLANKS); *text; text += strspn(text, BLANKS)) {
        size_t length = strcspn(text, BLANKS);

        if (equals(text, length, PREFIX "lifeline=1"))
            cmdline->lifeline = true;
        else if (equals(text, length, PREFIX "hold=1"))
            cmdline->hold = true;
        else if (equals(text, length, PREFIX "names=1"))
            cmdline->names = true;
        else if (!set(cmdline, text, length, wrong))
            return false;
        text += length;
    }
    return true;
}

/* Absolute, and without a part that is empty, "." or "..". */
static bool is_plain(const char *path)
{
    if (*path != '/')
        return false;
    while (*path == '/') {
        size_t length = strcspn(++path, "/");

        if (length == 0 || equals(path, length, ".") || equals(path, length, ".."))
            return false;
        path += length;
    }
    return true;
}

bool cmdline_next_path(const char **list, char path[CMDLINE_PATH_MAX + 1])
{
    size_t length = strcspn(*list, ":");

    if (!**list || length > CMDLINE_PATH_MAX)
        return false;
    memcpy(path, *list, length);
    path[length] = '\0';
    if (!is_plain(path))
        return false;
    *list += length;
    if (**list == ':' && (*list)[1]) /* a colon with nothing behind it is wrong */
        ++*list;
    return true;
}
