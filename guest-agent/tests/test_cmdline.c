#include "cmdline.h"

#include <stdio.h>
#include <string.h>

#include "check.h"

static void parameters_are_read_and_others_ignored(void)
{
    struct cmdline cmdline;
    const char *wrong;

    CHECK(cmdline_parse("console=ttyS0 atoll.root=disk0 atoll.rootx=no atoll.init=/sbin/init "
                        "atoll.lifeline=1 xatoll.data=no  atoll.hostname=box atoll.emulator=e quiet\n",
                        &cmdline, &wrong));
    CHECK(strcmp(cmdline.root, "disk0") == 0 && strcmp(cmdline.init, "/sbin/init") == 0);
    CHECK(strcmp(cmdline.hostname, "box") == 0 && cmdline.lifeline);
    CHECK(strcmp(cmdline.emulator, "e") == 0);
    CHECK(strcmp(cmdline.data, "") == 0 && strcmp(cmdline.modules, "") == 0);
}

static void absent_parameters_have_defaults(void)
{
    struct cmdline cmdline;
    const char *wrong;

    CHECK(cmdline_parse("", &cmdline, &wrong));
    CHECK(strcmp(cmdline.rootfs, "erofs") == 0 && strcmp(cmdline.datafs, "ext4") == 0);
    CHECK(!*cmdline.root && !*cmdline.init && !cmdline.lifeline);
    CHECK(cmdline_parse("atoll.lifeline=0 atoll.lifeline=11", &cmdline, &wrong));
    CHECK(!cmdline.lifeline);
}

static void a_template_holds_and_a_machine_has_an_id(void)
{
    const char *const id = "0123456789abcdef0123456789abcdef";
    struct cmdline cmdline;
    const char *wrong = NULL;
    char text[64];

    CHECK(cmdline_parse("atoll.hold=1 atoll.machine_id=0123456789abcdef0123456789abcdef", &cmdline, &wrong));
    CHECK(cmdline.hold && strcmp(cmdline.machine_id, id) == 0);
    CHECK(cmdline_parse("atoll.hold=0 xatoll.hold=1 atoll.hold=10 atoll.hold", &cmdline, &wrong));
    CHECK(!cmdline.hold && !*cmdline.machine_id);
    snprintf(text, sizeof(text), "atoll.machine_id=%s0", id);
    CHECK(!cmdline_parse(text, &cmdline, &wrong) && strcmp(wrong, "machine_id") == 0);
}

static void a_value_that_is_too_long_is_named(void)
{
    struct cmdline cmdline;
    const char *wrong = NULL;

    CHECK(cmdline_parse("atoll.root=12345678901234567890", &cmdline, &wrong));
    CHECK(!cmdline_parse("atoll.root=123456789012345678901", &cmdline, &wrong));
    CHECK(strcmp(wrong, "root") == 0);
}

/* How many paths the list has, or -1 where it is wrong. */
static int count_paths(const char *list)
{
    char path[CMDLINE_PATH_MAX + 1];
    int count = 0;

    while (cmdline_next_path(&list, path))
        count++;
    return *list ? -1 : count;
}

static void a_list_of_paths_is_taken_apart(void)
{
    const char *list = "/var/lib/docker:/srv";
    char path[CMDLINE_PATH_MAX + 1];

    CHECK(cmdline_next_path(&list, path) && strcmp(path, "/var/lib/docker") == 0);
    CHECK(cmdline_next_path(&list, path) && strcmp(path, "/srv") == 0);
    CHECK(!cmdline_next_path(&list, path) && !*list);
    CHECK(count_paths("") == 0 && count_paths("/a") == 1 && count_paths("/a/..b:/.c") == 2);
}

static void a_path_that_is_not_plain_stops_the_list(void)
{
    static const char *const wrong[] = {"/", "a", "/a:b", "/a/../b", "/a/.", "/a//b", "/a/", "/a:", ":/a", "/.."};

    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        CHECK(count_paths(wrong[i]) == -1);
}

const struct test cmdline_tests[] = {
    {"a list of paths is taken apart", a_list_of_paths_is_taken_apart},
    {"a path that is not plain stops the list", a_path_that_is_not_plain_stops_the_list},
    {"parameters are read and others ignored", parameters_are_read_and_others_ignored},
    {"absent parameters have defaults", absent_parameters_have_defaults},
    {"a template holds, and a machine has an id", a_template_holds_and_a_machine_has_an_id},
    {"a value that is too long is named", a_value_that_is_too_long_is_named},
    {0},
};
