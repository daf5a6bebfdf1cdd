#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "session.h"
#include "tree_record.h"

enum { TREE_ROOM = 4 << 20, HOLE = 2 << 20 };

/* A tree as it goes over a stream. */
static uint8_t tree[TREE_ROOM];
static size_t tree_size;

static char directory[64]; /* of the test */

static void enter_directory(void)
{
    strcpy(directory, "/tmp/atoll-tree-XXXXXX");
    CHECK(mkdtemp(directory) && chdir(directory) == 0);
}

static void leave_directory(void)
{
    char command[128];

    CHECK(chdir("/") == 0);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    CHECK(system(command) == 0);
}

static const char *at(const char *name)
{
    static char path[256];

    snprintf(path, sizeof(path), "%s/%s", directory, name);
    return path;
}

static struct tree_record record(const char *path, enum tree_type type)
{
    return (struct tree_record){
        .path = {(const uint8_t *)path, strlen(path)},
        .type = type,
        .mode = type == TREE_DIRECTORY ? 0755 : 0640,
        .uid = geteuid(),
        .gid = getegid(),
        .mtime = -1500000000,
    };
}

static void add_record(const struct tree_record *added)
{
    struct mp_writer writer;

    mp_writer_init(&writer, tree + tree_size, TREE_ROOM - tree_size);
    tree_write_record(&writer, added);
    CHECK(!writer.overflow);
    tree_size += mp_written(&writer);
}

static void add(const char *path, enum tree_type type)
{
    struct tree_record added = record(path, type);

    add_record(&added);
}

static void add_to(const char *path, enum tree_type type, const char *target)
{
    struct tree_record added = record(path, type);

    added.target = (struct mp_bytes){(const uint8_t *)target, strlen(target)};
    add_record(&added);
}

static void add_segment(uint64_t offset, const char *text)
{
    tree_put_head(tree + tree_size, offset, (uint32_t)strlen(text));
    memcpy(tree + tree_size + TREE_SEGMENT_HEAD, text, strlen(text));
    tree_size += TREE_SEGMENT_HEAD + strlen(text);
}

static void add_file(const char *path, uint64_t size)
{
    struct tree_record added = record(path, TREE_FILE);

    added.size = size;
    add_record(&added);
}

static void begin_tree(void)
{
    tree_size = 0;
    add("", TREE_DIRECTORY);
}

/* Sends the tree in frames of this size; the last frame that came back, of stream 1. */
static struct reply *write_tree_as(const char *path, const char *name, const char *user, size_t piece)
{
    static struct reply kept;
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("tree.write", 3);

    mp_put_str(&writer, "path", path);
    mp_put_str(&writer, "name", name);
    mp_put_str(&writer, "user", user);
    session_call(agent, 1, &writer, false);
    for (size_t done = 0; done < tree_size;) {
        size_t size = piece < tree_size - done ? piece : tree_size - done;

        session_send(agent, WIRE_DATA, done + size == tree_size, 1, tree + done, size);
        done += size;
    }
    if (tree_size == 0)
        session_send(agent, WIRE_DATA, true, 1, tree, 0);
    do {
        kept = *session_next(agent);
    } while (kept.type == WIRE_CREDIT || (kept.type == WIRE_REPLY && !kept.end));
    session_close(agent);
    return &kept;
}

static struct reply *write_tree(const char *name)
{
    return write_tree_as(directory, name, "", WIRE_PAYLOAD_MAX);
}

static bool written(const struct reply *reply)
{
    return reply->type == WIRE_DATA && reply->end;
}

static bool failed(const struct reply *reply, const char *code)
{
    return reply->type == WIRE_RESET && reply_has(reply, "code", code);
}

/* Reads a tree into `tree`; the last frame. */
static struct reply *read_tree(const char *path)
{
    static struct reply kept;
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("tree.read", 1);
    uint8_t credit[4];

    mp_put_str(&writer, "path", path);
    session_call(agent, 1, &writer, true);
    tree_size = 0;
    do {
        kept = *session_next(agent);
        if (kept.type != WIRE_DATA)
            continue;
        CHECK(kept.size <= TREE_ROOM - tree_size);
        memcpy(tree + tree_size, kept.payload, kept.size);
        tree_size += kept.size;
        wire_put_u32(credit, (uint32_t)kept.size);
        if (!kept.end)
            session_send(agent, WIRE_CREDIT, false, 1, credit, sizeof(credit));
    } while (kept.type != WIRE_RESET && !(kept.type == WIRE_DATA && kept.end));
    session_close(agent);
    return &kept;
}

static bool holds(const char *path, const char *text)
{
    char found[256] = "";
    FILE *file = fopen(path, "r");
    size_t size = file ? fread(found, 1, sizeof(found) - 1, file) : 0;

    if (file)
        fclose(file);
    return file && size == strlen(text) && memcmp(found, text, size) == 0;
}

static void make(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

/* One of each kind, with holes in a file. */
static void add_all_kinds(void)
{
    begin_tree();
    add_file("file", HOLE);
    add_segment(5, "hello");
    add_segment(HOLE / 2, "middle");
    add_segment(HOLE, "");
    add("sub", TREE_DIRECTORY);
    add_file("sub/empty", 0);
    add_segment(0, "");
    add_to("sub/symlink", TREE_SYMLINK, "../file");
    add_to("sub/link", TREE_LINK, "file");
    add("fifo", TREE_FIFO);
}

static void check_all_kinds(const char *top)
{
    struct stat status;
    struct stat other;
    char target[16] = "";
    char part[16] = "";

    CHECK(chdir(top) == 0 && stat(".", &status) == 0 && (status.st_mode & 07777) == 0755);
    CHECK(status.st_mtim.tv_sec == -2 && status.st_mtim.tv_nsec == 500000000);
    CHECK(lstat("file", &status) == 0 && S_ISREG(status.st_mode) && (status.st_mode & 07777) == 0640);
    CHECK(status.st_size == HOLE && status.st_blocks * 512 < HOLE && status.st_mtim.tv_sec == -2);
    CHECK(lstat("sub/link", &other) == 0 && other.st_ino == status.st_ino && status.st_nlink == 2);
    int fd = open("file", O_RDONLY);
    CHECK(pread(fd, part, 6, HOLE / 2) == 6 && strcmp(part, "middle") == 0 && close(fd) == 0);
    CHECK(lstat("sub/empty", &status) == 0 && status.st_size == 0);
    CHECK(readlink("sub/symlink", target, sizeof(target)) == 7 && strcmp(target, "../file") == 0);
    CHECK(lstat("fifo", &status) == 0 && S_ISFIFO(status.st_mode) && (status.st_mode & 07777) == 0640);
    CHECK(lstat("sub", &status) == 0 && status.st_mtim.tv_sec == -2);
    CHECK(chdir(directory) == 0);
}

static void a_tree_is_written_as_it_was(void)
{
    enter_directory();
    add_all_kinds();
    const struct reply *reply = write_tree("all");
    CHECK(written(reply) && reply_int(reply, "entries") == 7 && reply_int(reply, "bytes") == 11);
    check_all_kinds("all");
    leave_directory();
}

static void a_tree_may_come_in_single_bytes(void)
{
    enter_directory();
    add_all_kinds();
    CHECK(written(write_tree_as(directory, "all", "", 1)));
    check_all_kinds("all");
    leave_directory();
}

static void what_is_read_can_be_written(void)
{
    enter_directory();
    add_all_kinds();
    CHECK(written(write_tree("all")));
    CHECK(written(read_tree(at("all"))));
    CHECK(tree_size < HOLE / 8); /* the holes were not sent */
    CHECK(written(write_tree("again")));
    check_all_kinds("again");
    leave_directory();
}

static void a_tree_merges_into_what_is_there(void)
{
    struct stat status;

    enter_directory();
    CHECK(mkdir("top", 0700) == 0 && mkdir("top/sub", 0700) == 0);
    make("top/kept", "kept");
    make("outside", "outside");
    CHECK(symlink("../outside", "top/file") == 0);
    begin_tree();
    add_file("file", 3);
    add_segment(0, "new");
    add_segment(3, "");
    add("sub", TREE_DIRECTORY);
    CHECK(written(write_tree_as(at("top"), "", "", WIRE_PAYLOAD_MAX)));
    CHECK(holds("top/kept", "kept") && holds("outside", "outside") && holds("top/file", "new"));
    CHECK(lstat("top/file", &status) == 0 && S_ISREG(status.st_mode));
    leave_directory();
}

/* How many names there are in it. */
static int names_in(const char *path)
{
    DIR *entries = opendir(path);
    int count = -2; /* "." and ".." */

    CHECK(entries);
    while (readdir(entries))
        count++;
    closedir(entries);
    return count;
}

static bool names(const struct reply *reply, const char *path, int error)
{
    char message[256];

    snprintf(message, sizeof(message), "%s: %s", at(path), strerror(error));
    return failed(reply, FAIL_OS) && reply_int(reply, "errno") == error && reply_has(reply, "message", message);
}

static void a_directory_replaces_nothing_else(void)
{
    struct stat status;

    enter_directory();
    CHECK(mkdir("top", 0755) == 0 && symlink("/etc", "top/link") == 0);
    make("top/file", "kept");
    begin_tree();
    add("link", TREE_DIRECTORY);
    CHECK(names(write_tree("top"), "top/link", ENOTDIR));
    begin_tree();
    add("file", TREE_DIRECTORY);
    CHECK(names(write_tree("top"), "top/file", ENOTDIR));
    CHECK(lstat("top/link", &status) == 0 && S_ISLNK(status.st_mode) && holds("top/file", "kept"));
    leave_directory();
}

static void directories_that_are_there_stay_as_they_are(void)
{
    const struct timespec both[2] = {{.tv_sec = 1000}, {.tv_sec = 1000}};
    struct stat status;

    enter_directory();
    CHECK(mkdir("top", 0700) == 0 && mkdir("top/sub", 0700) == 0 && mkdir("top/quiet", 0711) == 0);
    CHECK(utimensat(AT_FDCWD, "top/quiet", both, 0) == 0);
    begin_tree();
    add("sub", TREE_DIRECTORY);
    add("quiet", TREE_DIRECTORY);
    add("new", TREE_DIRECTORY);
    add("sub/new", TREE_DIRECTORY);
    CHECK(written(write_tree_as(at("top"), "", geteuid() == 0 ? "1234:1235" : "", WIRE_PAYLOAD_MAX)));
    CHECK(stat("top", &status) == 0 && (status.st_mode & 07777) == 0700 && status.st_uid == geteuid());
    CHECK(status.st_mtim.tv_sec > 1000);
    CHECK(stat("top/sub", &status) == 0 && (status.st_mode & 07777) == 0700 && status.st_uid == geteuid());
    CHECK(stat("top/quiet", &status) == 0 && (status.st_mode & 07777) == 0711 && status.st_mtim.tv_sec == 1000);
    CHECK(stat("top/new", &status) == 0 && (status.st_mode & 07777) == 0755 && status.st_mtim.tv_sec == -2);
    CHECK(stat("top/sub/new", &status) == 0 && (status.st_mode & 07777) == 0755 && status.st_mtim.tv_sec == -2);
    leave_directory();
}

static void a_directory_is_replaced_by_nothing_else(void)
{
    enter_directory();
    CHECK(mkdir("top", 0755) == 0 && mkdir("top/x", 0755) == 0);
    begin_tree();
    add_file("x", 0);
    add_segment(0, "");
    CHECK(names(write_tree("top"), "top/x", EISDIR));
    begin_tree();
    add_to("x", TREE_SYMLINK, "y");
    CHECK(names(write_tree("top"), "top/x", EISDIR));
    begin_tree();
    add("x", TREE_FIFO);
    CHECK(names(write_tree("top"), "top/x", EISDIR));
    CHECK(names_in("top") == 1);
    begin_tree();
    add_file("f", 0);
    add_segment(0, "");
    add_to("x", TREE_LINK, "f");
    CHECK(names(write_tree("top"), "top/x", EISDIR));
    CHECK(names_in("top") == 2 && names_in("top/x") == 0);
    leave_directory();
}

/* Begins to replace top/old, and looks at what is there meanwhile. */
static struct agent *begin_to_replace(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("tree.write", 2);

    make("top/old", "old");
    begin_tree();
    add_file("old", 10);
    add_segment(0, "half");
    mp_put_str(&writer, "path", directory);
    mp_put_str(&writer, "name", "top");
    session_call(agent, 1, &writer, false);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    session_send(agent, WIRE_DATA, false, 1, tree, tree_size);
    CHECK(session_silent(agent) && names_in("top") == 2 && holds("top/old", "old"));
    return agent;
}

static void a_file_is_replaced_at_once_or_not_at_all(void)
{
    struct agent *agent;

    enter_directory();
    CHECK(mkdir("top", 0755) == 0);
    agent = begin_to_replace();
    session_send(agent, WIRE_RESET, false, 1, "\x80", 1);
    CHECK(agent->mux.streams == 0 && names_in("top") == 1 && holds("top/old", "old"));
    session_close(agent);

    agent = begin_to_replace();
    session_close(agent);
    CHECK(names_in("top") == 1 && holds("top/old", "old"));

    agent = begin_to_replace();
    session_send(agent, WIRE_DATA, true, 1, tree, 0); /* cut short */
    CHECK(failed(session_next(agent), FAIL_INVALID) && names_in("top") == 1 && holds("top/old", "old"));
    session_close(agent);

    agent = begin_to_replace();
    tree_size = 0;
    add_segment(4, "length");
    add_segment(10, "");
    session_send(agent, WIRE_DATA, false, 1, tree, tree_size);
    CHECK(session_silent(agent) && names_in("top") == 1 && holds("top/old", "halflength"));
    session_close(agent);
    leave_directory();
}

static void errors_name_the_file(void)
{
    const struct rlimit small = {1000, RLIM_INFINITY};
    struct rlimit former;

    enter_directory();
    CHECK(getrlimit(RLIMIT_FSIZE, &former) == 0 && setrlimit(RLIMIT_FSIZE, &small) == 0);
    signal(SIGXFSZ, SIG_IGN);
    begin_tree();
    add("sub", TREE_DIRECTORY);
    add_file("sub/file", 2000);
    add_segment(1500, "beyond");
    add_segment(2000, "");
    CHECK(names(write_tree("top"), "top/sub/file", EFBIG));
    begin_tree();
    add_file("hole", 2000);
    add_segment(2000, "");
    CHECK(names(write_tree("top"), "top/hole", EFBIG));
    CHECK(names(write_tree_as(at("top//"), "", "", WIRE_PAYLOAD_MAX), "top/hole", EFBIG));
    tree_size = 0;
    add_file("", 2000);
    add_segment(2000, "");
    CHECK(names(write_tree("file"), "file", EFBIG));
    CHECK(names_in("top") == 1 && names_in("top/sub") == 0);
    CHECK(setrlimit(RLIMIT_FSIZE, &former) == 0);
    begin_tree();
    add_to("link", TREE_LINK, "none");
    CHECK(names(write_tree("top"), "top/none", ENOENT));
    begin_tree();
    add("none/x", TREE_FIFO);
    CHECK(names(write_tree("top"), "top/none", ENOENT));
    begin_tree();
    add("none\xff\xed\xa0\x80\xc3\xa4\xe2\x82/x", TREE_FIFO);
    CHECK(names(write_tree("top"), "top/none????\xc3\xa4??", ENOENT));
    leave_directory();
}

static void errors_show_the_end_of_a_long_path(void)
{
    enum { DEPTH = 10, WIDTH = 200 };
    char path[DEPTH * (WIDTH + 1) + 8];
    char message[256];
    size_t size = 0;

    enter_directory();
    begin_tree();
    for (int i = 0; i < DEPTH; i++) {
        memset(path + size, 'a' + i, WIDTH);
        path[size + WIDTH] = '\0';
        add(path, TREE_DIRECTORY);
        size += WIDTH;
        path[size++] = '/';
    }
    strcpy(path + size, "none/x");
    add(path, TREE_FIFO);
    path[size + 4] = '\0';
    snprintf(message, sizeof(message), "...%s: %s", path + size + 4 - 160, strerror(ENOENT));
    const struct reply *reply = write_tree("top");
    CHECK(failed(reply, FAIL_OS) && reply_has(reply, "message", message));
    leave_directory();
}

static void links_replace_what_is_there(void)
{
    struct stat status;
    struct stat other;

    enter_directory();
    add_all_kinds();
    CHECK(written(write_tree("all")) && stat("all/fifo", &status) == 0);
    CHECK(written(write_tree("all")) && stat("all/fifo", &other) == 0 && status.st_ino != other.st_ino);
    CHECK(names_in("all") == 3 && names_in("all/sub") == 3);
    CHECK(stat("all/file", &status) == 0 && stat("all/sub/link", &other) == 0 && status.st_ino == other.st_ino);
    begin_tree();
    add_file("f", 0);
    add_segment(0, "");
    add_to("l", TREE_LINK, "f");
    add_to("l", TREE_LINK, "f"); /* which rename(2) takes for nothing to be done */
    CHECK(written(write_tree("top")) && names_in("top") == 2);
    CHECK(stat("top/f", &status) == 0 && stat("top/l", &other) == 0 && status.st_ino == other.st_ino);
    leave_directory();
}

static void no_symbolic_link_leads_out_of_the_tree(void)
{
    enter_directory();
    CHECK(mkdir("top", 0755) == 0 && mkdir("outside", 0755) == 0 && symlink("../outside", "top/link") == 0);
    begin_tree();
    add("link/x", TREE_DIRECTORY);
    const struct reply *reply = write_tree("top");
    CHECK(failed(reply, FAIL_OS) && reply_int(reply, "errno") == ENOTDIR);
    begin_tree();
    add_to("s", TREE_SYMLINK, "../outside");
    add("s/x", TREE_DIRECTORY);
    CHECK(failed(write_tree("top"), FAIL_OS));
    make("outside/secret", "secret");
    begin_tree();
    add_to("hard", TREE_LINK, "link/secret");
    CHECK(failed(write_tree("top"), FAIL_OS));
    CHECK(rmdir("outside") < 0 && access("outside/x", F_OK) < 0 && access("top/hard", F_OK) < 0);
    leave_directory();
}

static void directories_keep_their_time_in_any_order(void)
{
    struct stat status;

    enter_directory();
    begin_tree();
    add("a", TREE_DIRECTORY);
    add("b", TREE_DIRECTORY);
    add("a/c", TREE_DIRECTORY);
    add("b/c", TREE_DIRECTORY);
    add("a/d", TREE_DIRECTORY);
    CHECK(written(write_tree("top")));
    CHECK(stat("top", &status) == 0 && status.st_mtim.tv_sec == -2);
    CHECK(stat("top/a", &status) == 0 && status.st_mtim.tv_sec == -2);
    CHECK(stat("top/b", &status) == 0 && status.st_mtim.tv_sec == -2);
    leave_directory();
}

static bool refused(void)
{
    return failed(write_tree("top"), FAIL_INVALID);
}

static void malformed_trees_are_refused(void)
{
    static const char *const paths[] = {"", "/a", "a/", "a//b", ".", "..", "a/..", "../a", "./a"};

    enter_directory();
    tree_size = 0;
    CHECK(refused());
    for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++) {
        begin_tree();
        add(paths[i], TREE_DIRECTORY);
        CHECK(refused());
    }
    tree_size = 0;
    add("a", TREE_DIRECTORY); /* no top */
    CHECK(refused());
    tree_size = 0;
    add_file("", 0);
    add_segment(0, "");
    add("a", TREE_DIRECTORY); /* below a file */
    CHECK(failed(write_tree("file"), FAIL_INVALID));
    begin_tree();
    tree_size--; /* cut short */
    CHECK(refused());
    begin_tree();
    add_file("f", 1);
    CHECK(refused());
    add_segment(0, "ab"); /* beyond the size */
    CHECK(refused());
    begin_tree();
    add_file("f", 4);
    add_segment(2, "ab");
    add_segment(1, "a"); /* falls back */
    CHECK(refused());
    begin_tree();
    add_file("f", 4);
    add_segment(1, ""); /* an end that is none */
    CHECK(refused());
    begin_tree();
    add_to("l", TREE_LINK, "l");
    CHECK(refused());
    begin_tree();
    add("d", TREE_DIRECTORY);
    add_to("l", TREE_LINK, "d");
    CHECK(refused());
    begin_tree();
    add_to("s", TREE_SYMLINK, "");
    CHECK(refused());
    begin_tree();
    memset(tree + tree_size, 0xff, TREE_LENGTH_SIZE);
    tree_size += TREE_LENGTH_SIZE;
    CHECK(refused());
    leave_directory();
}

static void the_top_is_where_the_path_says(void)
{
    enter_directory();
    tree_size = 0;
    add_file("", 1);
    add_segment(0, "x");
    add_segment(1, "");
    CHECK(written(write_tree("name")) && holds("name", "x")); /* in a directory */
    CHECK(written(write_tree_as(at("new"), "name", "", WIRE_PAYLOAD_MAX)) && holds("new", "x"));
    CHECK(written(write_tree_as(at("new"), "name", "", WIRE_PAYLOAD_MAX)) && holds("new", "x"));
    const struct reply *reply = write_tree("");
    CHECK(failed(reply, FAIL_OS) && reply_int(reply, "errno") == EISDIR);
    reply = write_tree_as(at("none/x"), "", "", WIRE_PAYLOAD_MAX);
    CHECK(failed(reply, FAIL_OS) && reply_int(reply, "errno") == ENOENT);
    CHECK(failed(write_tree(".."), FAIL_INVALID) && failed(write_tree("a/b"), FAIL_INVALID));
    CHECK(failed(write_tree_as("relative", "", "", WIRE_PAYLOAD_MAX), FAIL_INVALID));
    CHECK(failed(write_tree_as(directory, "x", "no-such-user", WIRE_PAYLOAD_MAX), FAIL_OS));
    leave_directory();
}

static void files_belong_to_whom_they_shall(void)
{
    struct stat status;

    if (geteuid() != 0)
        return;
    enter_directory();
    add_all_kinds();
    CHECK(written(write_tree_as(directory, "top", "1234:1235", WIRE_PAYLOAD_MAX)));
    CHECK(stat("top", &status) == 0 && status.st_uid == 1234 && status.st_gid == 1235);
    CHECK(stat("top/file", &status) == 0 && status.st_uid == 1234 && status.st_gid == 1235);
    CHECK(lstat("top/sub/symlink", &status) == 0 && status.st_uid == 1234);
    struct tree_record added = record("", TREE_FILE);
    added.uid = 77;
    added.mode = 06755;
    tree_size = 0;
    add_record(&added);
    add_segment(0, "");
    CHECK(written(write_tree("set-id")));
    CHECK(stat("set-id", &status) == 0 && status.st_uid == 77 && (status.st_mode & 07777) == 06755);
    leave_directory();
}

static void trees_that_cannot_be_read_are_refused(void)
{
    enter_directory();
    const struct reply *reply = read_tree(at("none"));
    CHECK(failed(reply, FAIL_OS) && reply_int(reply, "errno") == ENOENT);
    CHECK(failed(read_tree("/dev/null"), FAIL_INVALID));
    CHECK(failed(read_tree("relative"), FAIL_INVALID));
    leave_directory();
}

static void a_reader_that_goes_away_leaves_nothing_open(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    struct mp_writer writer = session_request("tree.read", 1);

    mp_put_str(&writer, "path", "/usr");
    session_call(agent, 1, &writer, true);
    CHECK(session_next(agent)->type == WIRE_REPLY && session_next(agent)->type == WIRE_DATA);
    session_send(agent, WIRE_RESET, false, 1, "\x80", 1);
    CHECK(agent->mux.streams == 0);
    session_close(agent);
}

const struct test tree_tests[] = {
    {"a tree is written as it was", a_tree_is_written_as_it_was},
    {"a tree may come in single bytes", a_tree_may_come_in_single_bytes},
    {"what is read can be written", what_is_read_can_be_written},
    {"a tree merges into what is there", a_tree_merges_into_what_is_there},
    {"directories that are there stay as they are", directories_that_are_there_stay_as_they_are},
    {"a directory replaces nothing else", a_directory_replaces_nothing_else},
    {"a directory is replaced by nothing else", a_directory_is_replaced_by_nothing_else},
    {"a file is replaced at once or not at all", a_file_is_replaced_at_once_or_not_at_all},
    {"errors name the file", errors_name_the_file},
    {"errors show the end of a long path", errors_show_the_end_of_a_long_path},
    {"links replace what is there", links_replace_what_is_there},
    {"no symbolic link leads out of the tree", no_symbolic_link_leads_out_of_the_tree},
    {"directories keep their time in any order", directories_keep_their_time_in_any_order},
    {"malformed trees are refused", malformed_trees_are_refused},
    {"the top is where the path says", the_top_is_where_the_path_says},
    {"files belong to whom they shall", files_belong_to_whom_they_shall},
    {"trees that cannot be read are refused", trees_that_cannot_be_read_are_refused},
    {"a reader that goes away leaves nothing open", a_reader_that_goes_away_leaves_nothing_open},
    {NULL, NULL},
};
