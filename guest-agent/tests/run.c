#include "check.h"
#include "launch.h"

int main(void)
{
    const struct test *const groups[] = {
        wire_tests, msgpack_tests, ring_tests, mux_tests, cmdline_tests, request_tests, exec_tests,
        machine_tests, clone_tests, names_tests, tree_tests, file_tests, connection_tests, datagram_tests,
        survey_tests, listening_tests,
    };
    int count = 0;

    launch_init(false);
    for (size_t i = 0; i < sizeof(groups) / sizeof(*groups); i++) {
        for (const struct test *test = groups[i]; test->name; test++, count++) {
            fprintf(stderr, "%s\n", test->name);
            test->run();
        }
    }
    fprintf(stderr, "%d tests passed\n", count);
    return 0;
}
