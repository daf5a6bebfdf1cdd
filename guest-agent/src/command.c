#include "command.h"

#include <stdlib.h>
#include <string.h>

enum {
    ARGUMENTS_MAX = 4096,
    VARIABLES_MAX = 4096,
    DEFAULTS_MAX = 6,
};

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define DEFAULT_TERM "xterm-256color"

/* What the defaults of the environment take at most, names included. */
static size_t defaults_size(const struct user *user)
{
    return strlen(DEFAULT_PATH DEFAULT_TERM) + strlen(user->home) + 2 * strlen(user->name) +
           strlen(user->shell) + DEFAULTS_MAX * sizeof("LOGNAME=");
}

static bool invalid(struct request *request, const char *why)
{
    request_fail(request, failure(FAIL_INVALID, "%s", why));
    return false;
}

/* Adds bytes to the string being built; there is room by construction. */
static void append(struct command *command, const void *bytes, size_t size)
{
    memcpy(command->text + command->text_used, bytes, size);
    command->text_used += size;
}

static void finish_string(struct command *command, char **slot, size_t from)
{
    append(command, "", 1);
    *slot = command->text + from;
}

static bool is_text(const struct mp_bytes *bytes)
{
    return memchr(bytes->data, 0, bytes->size) == NULL;
}

static bool decode_arguments(struct request *request, struct command *command, struct mp_reader array)
{
    struct mp_bytes bytes;
    size_t count;

    mp_read_array(&array, &count);
    for (size_t i = 0; i < count; i++) {
        size_t from = command->text_used;

        if (!mp_read_bytes(&array, &bytes) || !is_text(&bytes))
            return invalid(request, "argv: not a string, or a zero byte in it");
        append(command, bytes.data, bytes.size);
        finish_string(command, &command->pointers[i], from);
    }
    return true;
}

static bool decode_variable(struct command *command, struct mp_reader *map, char **slot)
{
    size_t from = command->text_used;
    struct mp_bytes name;
    struct mp_bytes value;

    if (!mp_read_bytes(map, &name) || name.size == 0 || !is_text(&name) ||
        memchr(name.data, '=', name.size) || !mp_read_bytes(map, &value) || !is_text(&value))
        return false;
    append(command, name.data, name.size);
    append(command, "=", 1);
    append(command, value.data, value.size);
    finish_string(command, slot, from);
    return true;
}

/* The value in a NULL-terminated environment, or NULL. */
static const char *lookup(char *const *env, const char *name)
{
    size_t length = strlen(name);

    for (; *env; env++) {
        if (strncmp(*env, name, length) == 0 && (*env)[length] == '=')
            return *env + length + 1;
    }
    return NULL;
}

static void add_defaults(struct command *command, char **env, size_t count)
{
    const struct user *user = &command->user;
    const char *term = command->launch.tty ? DEFAULT_TERM : NULL;
    const struct {
        const char *name;
        const char *value;
        bool everywhere; /* in containers, too */
    } defaults[DEFAULTS_MAX] = {
        {"PATH", DEFAULT_PATH, true},   {"HOME", user->home, true},    {"USER", user->name, false},
        {"LOGNAME", user->name, false}, {"SHELL", user->shell, false}, {"TERM", term, true},
    };

    for (size_t i = 0; i < DEFAULTS_MAX; i++) {
        size_t from = command->text_used;

        if (!defaults[i].value || (command->as_container && !defaults[i].everywhere) || lookup(env, defaults[i].name))
            continue;
        append(command, defaults[i].name, strlen(defaults[i].name));
        append(command, "=", 1);
        append(command, defaults[i].value, strlen(defaults[i].value));
        finish_string(command, &env[count++], from);
    }
}

static bool decode_environment(struct request *request, struct command *command, char **env,
                               struct mp_reader map)
{
    size_t count;

    mp_read_map(&map, &count);
    for (size_t i = 0; i < count; i++) {
        if (!decode_variable(command, &map, &env[i]))
            return invalid(request, "env: not a map of strings, or a name that cannot be");
    }
    add_defaults(command, env, count);
    return true;
}

static bool decode_strings(struct request *request, struct command *command)
{
    static const uint8_t empty_map[] = {0x80};
    struct mp_reader argv;
    struct mp_reader env = {empty_map, empty_map + sizeof(empty_map)};
    struct mp_reader ahead;
    size_t arguments;
    size_t variables;

    if (!mp_find(request->params, "argv", &argv) || (ahead = argv, !mp_read_array(&ahead, &arguments)) ||
        arguments < 1 || arguments > ARGUMENTS_MAX)
        return invalid(request, "argv: not an array of 1 to 4096 items");
    mp_find(request->params, "env", &env);
    ahead = env;
    if (!mp_read_map(&ahead, &variables) || variables > VARIABLES_MAX)
        return invalid(request, "env: not a map of at most 4096 items");

    /* All content is inside the request; each string grows by a zero byte, a variable by "=" as well. */
    command->text_size = (size_t)(request->params.end - request->params.at) + arguments + 2 * variables +
                         defaults_size(&command->user);
    command->text = malloc(command->text_size);
    command->pointers = calloc(arguments + 1 + variables + DEFAULTS_MAX + 1, sizeof(char *));
    if (!command->text || !command->pointers) {
        request_fail(request, failure(FAIL_RESOURCE, "out of memory"));
        return false;
    }
    char **env_pointers = command->pointers + arguments + 1;
    if (!decode_arguments(request, command, argv) ||
        !decode_environment(request, command, env_pointers, env))
        return false;
    command->launch.argv = command->pointers;
    command->launch.env = env_pointers;
    command->launch.path = lookup(env_pointers, "PATH");
    return true;
}

static bool decode_tty(struct request *request, struct command *command)
{
    struct request nested = *request;
    int64_t rows;
    int64_t columns;
    size_t count;

    if (!mp_find(request->params, "tty", &nested.params))
        return true;
    struct mp_reader ahead = nested.params;
    if (!mp_read_map(&ahead, &count))
        return invalid(request, "tty: not a map");
    if (!param_int(&nested, "rows", 1, UINT16_MAX, &rows) ||
        !param_int(&nested, "cols", 1, UINT16_MAX, &columns))
        return false;
    command->launch.tty = true;
    command->launch.rows = (uint16_t)rows;
    command->launch.columns = (uint16_t)columns;
    return true;
}

static bool decode_user(struct request *request, struct command *command)
{
    char spec[2 * USER_NAME_MAX];
    struct failure failed;

    if (!param_text_or(request, "user", spec, sizeof(spec), ""))
        return false;
    if (!user_resolve(*spec ? spec : NULL, &command->user, &failed)) {
        request_fail(request, failed);
        return false;
    }
    command->launch.user = &command->user;
    return true;
}

static bool decode_cwd(struct request *request, struct command *command)
{
    if (!param_text_or(request, "cwd", command->cwd, sizeof(command->cwd), ""))
        return false;
    command->launch.cwd = *command->cwd ? command->cwd : NULL;
    command->launch.make_cwd = command->as_container;
    return true;
}

bool command_decode(struct request *request, struct command *command)
{
    command->launch = (struct launch){0};
    command->pointers = NULL;
    command->text = NULL;
    command->text_used = 0;
    if (param_bool_or(request, "stdin", &command->launch.input, false) &&
        param_bool_or(request, "container", &command->as_container, false) && decode_tty(request, command) && decode_cwd(request, command) && decode_user(request, command) &&
        decode_strings(request, command))
        return true;
    command_free(command);
    return false;
}

void command_free(struct command *command)
{
    free(command->pointers);
    free(command->text);
}
