#include "survey.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"
#include "msgpack.h"
#include "wire.h"

/* Two trees in a directory of the test, and what is said of them. */
static char directory[64];
static int upper, lower;
static struct survey survey;
static char *said;
static size_t said_size;

static void enter(void)
{
    strcpy(directory, "/tmp/atoll-survey-XXXXXX");
    CHECK(mkdtemp(directory) && chdir(directory) == 0);
    CHECK(mkdir("upper", 0755) == 0 && mkdir("lower", 0755) == 0);
    upper = open("upper", O_RDONLY | O_DIRECTORY);
    lower = open("lower", O_RDONLY | O_DIRECTORY);
    survey = (struct survey){0};
}

static void leave(void)
{
    char command[128];

    free(said);
    said = NULL;
    close(upper);
    close(lower);
    CHECK(chdir("/") == 0);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    CHECK(system(command) == 0);
}

static void write_file(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static void remove_by_overlay(const char *path)
{
    CHECK(mknod(path, S_IFCHR, makedev(0, 0)) == 0);
}

static bool walk(bool all)
{
    survey.all = all;
    survey.out = open_memstream(&said, &said_size);
    bool done = survey_walk(&survey, upper, lower);
    CHECK(fclose(survey.out) == 0);
    return done;
}

static bool find(const char *path, struct mp_reader *record)
{
    struct mp_bytes found;

    for (size_t at = 0; at < said_size;) {
        const uint8_t *body = (const uint8_t *)said + at + 4;
        size_t size = wire_get_u32(body - 4);
        struct mp_reader value;

        CHECK(size <= said_size - at - 4 && mp_valid_map(body, size));
        *record = (struct mp_reader){body, body + size};
        CHECK(mp_find(*record, "path", &value) && mp_read_bytes(&value, &found));
        if (found.size == strlen(path) && memcmp(found.data, path, found.size) == 0)
            return true;
        at += 4 + size;
    }
    return false;
}

/* The type of a file on one side, or "". */
static const char *type(const char *path, const char *side)
{
    static char text[16];
    struct mp_reader record;
    struct mp_reader value;
    struct mp_bytes bytes;

    text[0] = '\0';
    CHECK(find(path, &record));
    if (mp_find(record, side, &record)) {
        CHECK(mp_find(record, "type", &value) && mp_read_bytes(&value, &bytes) && bytes.size < sizeof(text));
        memcpy(text, bytes.data, bytes.size);
        text[bytes.size] = '\0';
    }
    return text;
}

static bool is(const char *path, const char *here, const char *base)
{
    return strcmp(type(path, "here"), here) == 0 && strcmp(type(path, "base"), base) == 0;
}

static bool is_untold(const char *path)
{
    struct mp_reader record;

    return !find(path, &record);
}

static void what_was_written_is_told_beside_what_the_root_has(void)
{
    enter();
    write_file("lower/kept", "kept");
    write_file("lower/changed", "old");
    write_file("upper/changed", "new");
    write_file("upper/odd\n\xff", "");
    CHECK(symlink("../target", "upper/link") == 0 && mkfifo("upper/fifo", 0600) == 0);
    CHECK(walk(false));
    CHECK(is("", "directory", "directory"));
    CHECK(is("changed", "file", "file") && is("odd\n\xff", "file", ""));
    CHECK(is("link", "symlink", "") && is("fifo", "fifo", ""));
    CHECK(is_untold("kept"));
    leave();
}

static void all_below_a_directory_that_was_removed_is_told(void)
{
    enter();
    CHECK(mkdir("lower/tree", 0755) == 0 && mkdir("lower/tree/in", 0755) == 0);
    write_file("lower/tree/in/file", "x");
    write_file("lower/tree/file", "x");
    remove_by_overlay("upper/tree");
    CHECK(mkdir("lower/other", 0755) == 0);
    write_file("lower/other/file", "x");
    write_file("upper/other", "a file in the place of a directory");
    CHECK(walk(false));
    CHECK(is("tree", "", "directory") && is("tree/in/file", "", "file") && is("tree/file", "", "file"));
    CHECK(is("other", "file", "directory") && is("other/file", "", "file"));
    leave();
}

static void an_opaque_directory_hides_what_lies_below(void)
{
    enter();
    CHECK(mkdir("lower/tree", 0755) == 0 && mkdir("lower/tree/in", 0755) == 0);
    write_file("lower/tree/in/gone", "x");
    write_file("lower/tree/in/again", "x");
    write_file("lower/tree/gone", "x");
    CHECK(mkdir("upper/tree", 0755) == 0 && mkdir("upper/tree/in", 0755) == 0);
    write_file("upper/tree/in/again", "y");
    if (setxattr("upper/tree", "trusted.overlay.opaque", "y", 1, 0) == 0) { /* for the superuser only */
        CHECK(walk(false));
        CHECK(is("tree/gone", "", "file") && is("tree/in/gone", "", "file"));
        CHECK(is("tree/in/again", "file", "file"));
        free(said);
        CHECK(walk(true));
        CHECK(is_untold("tree/gone") && is_untold("tree/in/gone") && is("tree/in/again", "file", ""));
    }
    leave();
}

static void all_that_shows_can_be_asked_for(void)
{
    enter();
    CHECK(mkdir("lower/tree", 0755) == 0 && mkdir("upper/tree", 0755) == 0);
    write_file("lower/tree/kept", "x");
    write_file("lower/tree/gone", "x");
    remove_by_overlay("upper/tree/gone");
    write_file("upper/tree/new", "x");
    CHECK(walk(true));
    CHECK(is("tree/kept", "file", "") && is("tree/new", "file", "") && is_untold("tree/gone"));
    leave();
}

static void a_tree_may_be_as_deep_as_a_path_can_name(void)
{
    enter();
    CHECK(fchdir(upper) == 0);
    for (int depth = 0; depth < 300; depth++)
        CHECK(mkdir("d", 0755) == 0 && chdir("d") == 0);
    CHECK(walk(false) && chdir(directory) == 0);
    free(said);
    CHECK(fchdir(upper) == 0);
    for (int depth = 0; depth < 40; depth++) {
        char name[129] = "";

        memset(name, 'n', 128);
        CHECK(mkdir(name, 0755) == 0 && chdir(name) == 0);
    }
    CHECK(!walk(false) && survey.failure.error == ENAMETOOLONG);
    leave();
}

static void contents_are_told_without_their_holes(void)
{
    static const char paths[] = "sparse\0below\0missing";

    enter();
    int fd = open("upper/sparse", O_WRONLY | O_CREAT, 0600);
    CHECK(fd >= 0 && pwrite(fd, "end", 3, 1 << 20) == 3 && ftruncate(fd, 2 << 20) == 0 && close(fd) == 0);
    write_file("lower/below", "text");
    FILE *in = tmpfile();
    CHECK(in && fwrite(paths, sizeof(paths), 1, in) == 1 && fseek(in, 0, SEEK_SET) == 0);
    survey.out = open_memstream(&said, &said_size);
    CHECK(survey_read(&survey, upper, lower, in));
    CHECK(fclose(survey.out) == 0 && fclose(in) == 0);
    CHECK(said_size < 16384);
    const uint8_t *at = (const uint8_t *)said;
    uint64_t end = 0;
    for (uint32_t size; (size = wire_get_u32(at + 8)) > 0; at += 12 + size)
        end = wire_get_u32(at) + size;
    CHECK(end >= (1 << 20) + 3 && wire_get_u32(at) == 2 << 20);
    at += 12;
    CHECK(wire_get_u32(at) == 0 && wire_get_u32(at + 8) == 4 && memcmp(at + 12, "text", 4) == 0);
    CHECK(wire_get_u32(at + 16) == 4 && wire_get_u32(at + 24) == 0);
    CHECK(wire_get_u32(at + 28) == ENOENT && wire_get_u32(at + 36) == UINT32_MAX);
    leave();
}

const struct test survey_tests[] = {
    {"what was written is told beside what the root has", what_was_written_is_told_beside_what_the_root_has},
    {"all below a directory that was removed is told", all_below_a_directory_that_was_removed_is_told},
    {"an opaque directory hides what lies below", an_opaque_directory_hides_what_lies_below},
    {"all that shows can be asked for", all_that_shows_can_be_asked_for},
    {"a tree may be as deep as a path can name", a_tree_may_be_as_deep_as_a_path_can_name},
    {"contents are told without their holes", contents_are_told_without_their_holes},
    {NULL, NULL},
};
