/*
 * The smallest test runner that names what failed. A failed check ends the run: sanitizers do, too.
 */
#ifndef ATOLL_CHECK_H
#define ATOLL_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

struct test {
    const char *name;
    void (*run)(void);
};

/* Ends with a test without a name. */
extern const struct test wire_tests[];
extern const struct test msgpack_tests[];
extern const struct test ring_tests[];
extern const struct test mux_tests[];
extern const struct test cmdline_tests[];
extern const struct test request_tests[];
extern const struct test exec_tests[];
extern const struct test connection_tests[];
extern const struct test datagram_tests[];
extern const struct test listening_tests[];
extern const struct test machine_tests[];
extern const struct test clone_tests[];
extern const struct test names_tests[];
extern const struct test tree_tests[];
extern const struct test file_tests[];
extern const struct test survey_tests[];

#endif
