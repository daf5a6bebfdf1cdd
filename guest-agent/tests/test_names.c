#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "names.h"

#define LOCAL                                                                                                \
    "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"

static void becomes(const char *before, const char *after)
{
    char *once = names_hosts(before, "box");

    CHECK(once && strcmp(once, after) == 0);
    char *twice = names_hosts(once, "box");
    CHECK(twice && strcmp(twice, once) == 0);
    free(once);
    free(twice);
}

static void hosts_knows_localhost_and_the_machine(void)
{
    becomes("", LOCAL "127.0.1.1 box\n");
    becomes("\n", LOCAL "\n127.0.1.1 box\n");
    becomes("127.0.0.1\tlocalhost", "127.0.0.1\tlocalhost\n127.0.1.1 box\n");
    becomes("#127.0.0.1 localhost\n", LOCAL "#127.0.0.1 localhost\n127.0.1.1 box\n");
    becomes("10.0.0.1 a b # c\n", LOCAL "10.0.0.1 a b # c\n127.0.1.1 box\n");
}

static void a_former_name_is_taken_out(void)
{
    becomes(LOCAL "127.0.1.1 old\n", LOCAL "127.0.1.1 box\n");
    becomes("127.0.1.1 old\n" LOCAL, LOCAL "127.0.1.1 box\n");
    becomes(LOCAL "10.9.9.9 old # atoll\n", LOCAL "127.0.1.1 box\n");
}

static void what_somebody_wrote_stays(void)
{
    becomes(LOCAL "127.0.1.1 box.example box\n", LOCAL "127.0.1.1 box.example box\n");
    becomes(LOCAL "10.1.1.1 box", LOCAL "10.1.1.1 box\n");
    becomes(LOCAL "10.1.1.1 boxes # box", LOCAL "10.1.1.1 boxes # box\n127.0.1.1 box\n");
}

const struct test names_tests[] = {
    {"hosts knows localhost and the machine", hosts_knows_localhost_and_the_machine},
    {"a former name is taken out", a_former_name_is_taken_out},
    {"what somebody wrote stays", what_somebody_wrote_stays},
    {0},
};
