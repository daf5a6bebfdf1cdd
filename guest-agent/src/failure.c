#include "failure.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* The first bytes of characters, by their size, and which second bytes may follow them. */
static const struct {
    unsigned char first, last, second, second_last;
    size_t size;
} forms[] = {
    {0x01, 0x7f, 0, 0, 1},       {0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3},
    {0xe1, 0xec, 0x80, 0xbf, 3}, {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3},
    {0xf0, 0xf0, 0x90, 0xbf, 4}, {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4},
};

/* The size of the UTF-8 character that begins here, or 0 if none does. */
static size_t character(const unsigned char *text)
{
    size_t form = 0;
    size_t size = 1;

    while (form < sizeof(forms) / sizeof(*forms) && (*text < forms[form].first || *text > forms[form].last))
        form++;
    if (form == sizeof(forms) / sizeof(*forms))
        return 0;
    if (forms[form].size > 1 && (text[1] < forms[form].second || text[1] > forms[form].second_last))
        return 0;
    while (size < forms[form].size && (text[size] & 0xc0) == 0x80)
        size++;
    return size == forms[form].size ? size : 0;
}

/* Names may hold any bytes, and may have been cut: whoever decodes strictly shall read the rest. */
static void make_text(char *message)
{
    for (unsigned char *at = (unsigned char *)message; *at;) {
        size_t size = character(at);

        if (size == 0)
            *at = '?';
        at += size ? size : 1;
    }
}

struct failure failure(const char *code, const char *format, ...)
{
    struct failure failed = {.code = code};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(failed.message, sizeof(failed.message), format, arguments);
    va_end(arguments);
    make_text(failed.message);
    return failed;
}

struct failure failure_os(int error, const char *stage, const char *format, ...)
{
    struct failure failed = {.code = FAIL_OS, .stage = stage, .error = error};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(failed.message, sizeof(failed.message), format, arguments);
    va_end(arguments);

    size_t used = strlen(failed.message);
    snprintf(failed.message + used, sizeof(failed.message) - used, ": %s", strerror(error));
    make_text(failed.message);
    return failed;
}
