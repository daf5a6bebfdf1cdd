#include "failure.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct failure failure(const char *code, const char *format, ...)
{
    struct failure failed = {.code = code};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(failed.message, sizeof(failed.message), format, arguments);
    va_end(arguments);
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
    return failed;
}
