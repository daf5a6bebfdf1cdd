#include "cmdline.h"

#include <stddef.h>
#include <string.h>

#define BLANKS " \t\n"

static const struct parameter {
    const char *name;
    size_t offset;
    size_t size;
} parameters[] = {
#define PARAMETER(name) {"atoll." #name "=", offsetof(struct cmdline, name), sizeof(((struct cmdline *)0)->name)}
    PARAMETER(root),    PARAMETER(rootfs), PARAMETER(data),     PARAMETER(datafs),
    PARAMETER(modules), PARAMETER(init),   PARAMETER(hostname),
#undef PARAMETER
};

static bool set(struct cmdline *cmdline, const char *word, size_t length, const char **wrong)
{
    for (size_t i = 0; i < sizeof(parameters) / sizeof(*parameters); i++) {
        const struct parameter *parameter = &parameters[i];
        size_t prefix = strlen(parameter->name);
        char *field = (char *)cmdline + parameter->offset;

        if (length < prefix || memcmp(word, parameter->name, prefix) != 0)
            continue;
        if (length - prefix >= parameter->size) {
            *wrong = parameter->name;
            return false;
        }
        memcpy(field, word + prefix, length - prefix);
        field[length - prefix] = '\0';
    }
    return true;
}

bool cmdline_parse(const char *text, struct cmdline *cmdline, const char **wrong)
{
    static const char lifeline[] = "atoll.lifeline=1";

    *cmdline = (struct cmdline){.rootfs = "erofs", .datafs = "ext4"};
    for (text += strspn(text, BLANKS); *text; text += strspn(text, BLANKS)) {
        size_t length = strcspn(text, BLANKS);

        if (length == strlen(lifeline) && memcmp(text, lifeline, length) == 0)
            cmdline->lifeline = true;
        else if (!set(cmdline, text, length, wrong))
            return false;
        text += length;
    }
    return true;
}
