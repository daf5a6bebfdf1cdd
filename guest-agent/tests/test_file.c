#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "file_record.h"
#include "session.h"

enum { MANY = 3000, NOBODY = 65534 };

static char directory[64]; /* of the test, and where its paths begin */
static struct agent *agent;
static uint32_t stream;

static void set_up(void)
{
    strcpy(directory, "/tmp/atoll-file-XXXXXX");
    CHECK(mkdtemp(directory) && chmod(directory, 0755) == 0 && chdir(directory) == 0);
    agent = session_open(BOOT_DONE);
    stream = 1;
}

static void tear_down(void)
{
    char command[128];

    CHECK(agent->mux.streams == 0);
    session_close(agent);
    CHECK(chdir("/") == 0);
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    CHECK(system(command) == 0);
}

static void make(const char *path, const char *text)
{
    FILE *file = fopen(path, "w");

    CHECK(file && fputs(text, file) >= 0 && fclose(file) == 0);
}

static bool holds(const char *path, const char *text)
{
    char found[256] = "";
    FILE *file = fopen(path, "r");
    size_t size = file ? fread(found, 1, sizeof(found) - 1, file) : 0;

    return file && fclose(file) == 0 && size == strlen(text) && memcmp(found, text, size) == 0;
}

static size_t entries_here(void)
{
    DIR *entries = opendir(".");
    size_t count = 0;

    CHECK(entries);
    while (readdir(entries))
        count++;
    closedir(entries);
    return count - 2;
}

/* A request with `count` parameters besides the path. */
static struct mp_writer begin(const char *method, const char *path, size_t count)
{
    struct mp_writer writer = session_request(method, 2 + count);

    mp_put_str(&writer, "cwd", directory);
    mp_put_str(&writer, strcmp(method, "file.move") == 0 ? "source" : "path", path);
    return writer;
}

static void send_request(const struct mp_writer *writer, bool end)
{
    stream += 2;
    session_call(agent, stream, writer, end);
}

static const struct reply *call(const struct mp_writer *writer)
{
    const struct reply *reply;

    send_request(writer, true);
    do { /* others may be on their way from a stream that was reset */
        reply = session_next(agent);
    } while (reply->stream != stream);
    return reply;
}

static const struct reply *plain(const char *method, const char *path)
{
    struct mp_writer writer = begin(method, path, 0);

    return call(&writer);
}

static const struct reply *with_flag(const char *method, const char *path, const char *flag, bool value)
{
    struct mp_writer writer = begin(method, path, 1);

    mp_put_bool(&writer, flag, value);
    return call(&writer);
}

static bool done(const struct reply *reply)
{
    return reply->type == WIRE_REPLY && reply->end;
}

static bool failed(const struct reply *reply, const char *code)
{
    return reply->type == WIRE_RESET && reply_has(reply, "code", code);
}

static bool failed_with(const struct reply *reply, int error)
{
    return failed(reply, FAIL_OS) && reply_int(reply, "errno") == error;
}

static void reset(void)
{
    session_send(agent, WIRE_RESET, false, stream, "\x80", 1);
}

/* Takes the DATA of a stream that has been replied to, to its end; the last frame. */
static const struct reply *take(uint8_t *out, size_t room, size_t *size)
{
    const struct reply *reply;
    uint8_t credit[4];

    *size = 0;
    do {
        reply = session_next(agent);
        if (reply->type != WIRE_DATA)
            break;
        CHECK(reply->size <= room - *size);
        memcpy(out + *size, reply->payload, reply->size);
        *size += reply->size;
        wire_put_u32(credit, (uint32_t)reply->size);
        if (!reply->end)
            session_send(agent, WIRE_CREDIT, false, stream, credit, sizeof(credit));
    } while (!reply->end);
    return reply;
}

/* Reading. */

static bool reads(const char *path, int64_t offset, int64_t length, const char *text)
{
    struct mp_writer writer = begin("file.read", path, 2);
    uint8_t content[256];
    size_t size;

    mp_put_int(&writer, "offset", offset);
    mp_put_int(&writer, "length", length);
    const struct reply *reply = call(&writer);
    CHECK(reply->type == WIRE_REPLY && reply_has(reply, "type", "file"));
    return take(content, sizeof(content), &size)->end && size == strlen(text) &&
           memcmp(content, text, size) == 0;
}

static void a_file_or_a_part_of_it_is_read(void)
{
    set_up();
    make("f", "0123456789");
    CHECK(symlink("f", "link") == 0);
    CHECK(reads("f", 0, 100, "0123456789") && reads("link", 3, 4, "3456"));
    CHECK(reads("f", 3, 0, "") && reads("f", 100, 5, ""));
    const struct reply *reply = plain("file.read", "f");
    CHECK(reply->type == WIRE_REPLY && reply_int(reply, "size") == 10);
    CHECK(session_next(agent)->size == 10);
    tear_down();
}

static void a_large_file_comes_as_the_host_takes_it(void)
{
    static uint8_t content[3 << 20];
    size_t size;

    set_up();
    int fd = open("f", O_WRONLY | O_CREAT, 0644);
    memset(content, 'x', sizeof(content));
    CHECK(write(fd, content, sizeof(content)) == sizeof(content) && close(fd) == 0);
    CHECK(plain("file.read", "f")->type == WIRE_REPLY);
    CHECK(take(content, sizeof(content), &size)->end && size == sizeof(content));
    tear_down();
}

static void what_is_no_file_is_not_read(void)
{
    set_up();
    CHECK(mkfifo("fifo", 0600) == 0);
    CHECK(failed(plain("file.read", "fifo"), FAIL_INVALID));
    CHECK(failed(plain("file.read", "/dev/zero"), FAIL_INVALID));
    CHECK(failed_with(plain("file.read", "."), EISDIR));
    CHECK(failed_with(plain("file.read", "missing"), ENOENT));
    CHECK(failed(plain("file.read", ""), FAIL_INVALID));
    tear_down();
}

static void a_reader_that_goes_away_leaves_nothing(void)
{
    set_up();
    make("f", "");
    CHECK(truncate("f", 1 << 30) == 0);
    CHECK(plain("file.read", "f")->type == WIRE_REPLY && session_next(agent)->type == WIRE_DATA);
    reset();
    CHECK(plain("file.list", "/usr")->type == WIRE_REPLY);
    reset();
    CHECK(plain("file.watch", ".")->type == WIRE_REPLY);
    reset();
    tear_down();
}

/* Writing. */

static void begin_writing(const char *path, const char *how, int mode)
{
    struct mp_writer writer = begin("file.write", path, mode < 0 ? 2 : 3);

    mp_put_str(&writer, "how", how);
    mp_put_bool(&writer, "parents", strstr(path, "deep") != NULL);
    if (mode >= 0)
        mp_put_int(&writer, "mode", mode);
    send_request(&writer, false);
}

static void send_text(const char *text, bool end)
{
    session_send(agent, WIRE_DATA, end, stream, text, strlen(text));
}

static bool writes(const char *path, const char *how, int mode, const char *text)
{
    begin_writing(path, how, mode);
    send_text(text, true);
    const struct reply *reply = session_next(agent);
    return done(reply) && reply_int(reply, "bytes") == (int64_t)strlen(text);
}

static mode_t mode_of(const char *path)
{
    struct stat status;

    CHECK(stat(path, &status) == 0);
    return status.st_mode & 07777;
}

static void a_file_is_replaced_when_it_is_complete(void)
{
    set_up();
    make("f", "old");
    CHECK(link("f", "other") == 0 && symlink("f", "link") == 0 && chmod("f", 04751) == 0);
    begin_writing("link", "replace", -1);
    send_text("new ", false);
    CHECK(session_silent(agent) && holds("f", "old") && entries_here() == 4);
    send_text("content", true);
    CHECK(done(session_next(agent)) && holds("f", "new content") && holds("other", "old"));
    CHECK(entries_here() == 3 && readlink("link", (char[8]){0}, 8) == 1 && mode_of("f") == 0751);
    CHECK(writes("f", "replace", 04640, "") && holds("f", "") && mode_of("f") == 04640);
    CHECK(writes("new", "replace", -1, "x") && mode_of("new") == 0644);
    CHECK(writes("deep/er/f", "replace", 0600, "x") && mode_of("deep/er/f") == 0600 && mode_of("deep") == 0755);
    tear_down();
}

static void a_file_that_is_given_up_leaves_the_old_one(void)
{
    set_up();
    make("f", "old");
    begin_writing("f", "replace", -1);
    send_text("new", false);
    reset();
    CHECK(holds("f", "old") && entries_here() == 1);
    tear_down();
}

static void a_file_is_created_only_where_nothing_is(void)
{
    set_up();
    make("f", "old");
    CHECK(symlink("nowhere", "link") == 0);
    begin_writing("f", "create", -1);
    CHECK(failed_with(session_next(agent), EEXIST));
    begin_writing("link", "create", -1);
    CHECK(failed_with(session_next(agent), EEXIST));
    begin_writing("g", "create", -1);
    make("g", "faster");
    send_text("slower", true);
    CHECK(failed_with(session_next(agent), EEXIST) && holds("g", "faster") && entries_here() == 3);
    CHECK(writes("h", "create", 0604, "new") && holds("h", "new") && mode_of("h") == 0604);
    tear_down();
}

static void a_file_is_written_where_it_is(void)
{
    set_up();
    make("f", "0123456789");
    CHECK(link("f", "other") == 0 && chmod("f", 0640) == 0);
    CHECK(writes("f", "append", -1, "ab") && holds("other", "0123456789ab"));
    CHECK(writes("f", "truncate", -1, "new") && holds("other", "new") && mode_of("f") == 0640);
    CHECK(writes("f", "append", 0600, "er") && holds("other", "newer") && mode_of("f") == 0600);
    CHECK(writes("a", "append", -1, "x") && holds("a", "x") && mode_of("a") == 0644);
    tear_down();
}

static void what_is_no_file_is_not_written(void)
{
    set_up();
    CHECK(mkdir("d", 0755) == 0);
    begin_writing("d", "replace", -1);
    CHECK(failed_with(session_next(agent), EISDIR));
    begin_writing("new/", "replace", -1);
    CHECK(failed_with(session_next(agent), EISDIR));
    begin_writing("/dev/null", "replace", -1);
    CHECK(failed(session_next(agent), FAIL_INVALID));
    begin_writing("missing/f", "replace", -1);
    CHECK(failed_with(session_next(agent), ENOENT));
    begin_writing("f", "backwards", -1);
    CHECK(failed(session_next(agent), FAIL_INVALID) && entries_here() == 1);
    tear_down();
}

static void an_empty_file_needs_no_data(void)
{
    struct mp_writer writer;

    set_up();
    writer = begin("file.write", "f", 1);
    mp_put_bool(&writer, "sync", true);
    CHECK(done(call(&writer)) && holds("f", ""));
    tear_down();
}

/* Directories. */

static void a_large_directory_is_listed_whole(void)
{
    static uint8_t listed[MANY * 512];
    struct mp_reader entry;
    struct mp_bytes name;
    char path[300];
    size_t count = 0;
    size_t size;

    set_up();
    for (int i = 0; i < MANY; i++) {
        snprintf(path, sizeof(path), "%0200d", i);
        CHECK(i % 2 ? symlink("target", path) == 0 : mkdir(path, 0700) == 0);
    }
    CHECK(plain("file.list", ".")->type == WIRE_REPLY && take(listed, sizeof(listed), &size)->end);
    for (size_t at = 0; at < size; count++) {
        uint32_t length = wire_get_u32(listed + at);
        struct mp_reader map = {listed + at + FILE_LENGTH_SIZE, listed + at + FILE_LENGTH_SIZE + length};

        CHECK(length <= FILE_RECORD_MAX && mp_valid_map(map.at, length));
        CHECK(mp_find(map, "name", &entry) && mp_read_bytes(&entry, &name) && name.size == 200);
        CHECK(mp_find(map, "target", &entry) == (name.data[199] % 2 == 1));
        at += FILE_LENGTH_SIZE + length;
    }
    CHECK(count == MANY);
    CHECK(failed_with(plain("file.list", "missing"), ENOENT));
    tear_down();
}

static void a_link_is_told_of_as_asked_for(void)
{
    set_up();
    make("f", "12345");
    CHECK(symlink("f", "link") == 0);
    const struct reply *reply = plain("file.stat", "link");
    CHECK(done(reply) && reply_has(reply, "type", "file") && reply_int(reply, "size") == 5);
    reply = with_flag("file.stat", "link", "follow", false);
    CHECK(done(reply) && reply_has(reply, "type", "symlink") && reply_has(reply, "target", "f"));
    CHECK(failed_with(plain("file.stat", "f/x"), ENOTDIR));
    tear_down();
}

static void directories_are_made(void)
{
    struct mp_writer writer;

    set_up();
    make("f", "");
    CHECK(done(plain("file.make_directory", "d")) && mode_of("d") == 0755);
    CHECK(failed_with(plain("file.make_directory", "d"), EEXIST));
    CHECK(done(with_flag("file.make_directory", "d", "exist_ok", true)));
    CHECK(failed_with(with_flag("file.make_directory", "f", "exist_ok", true), EEXIST));
    CHECK(failed_with(plain("file.make_directory", "a/b"), ENOENT));
    writer = begin("file.make_directory", "a/b//c/", 2);
    mp_put_bool(&writer, "parents", true);
    mp_put_int(&writer, "mode", 01770);
    CHECK(done(call(&writer)) && mode_of("a/b/c") == 01770 && mode_of("a/b") == 0755);
    tear_down();
}

static const struct reply *move(const char *source, const char *target, bool replace)
{
    struct mp_writer writer = begin("file.move", source, 2);

    mp_put_str(&writer, "target", target);
    mp_put_bool(&writer, "replace", replace);
    return call(&writer);
}

static void a_file_is_moved_at_once(void)
{
    set_up();
    make("f", "f");
    make("g", "g");
    CHECK(failed_with(move("f", "g", false), EEXIST) && holds("g", "g"));
    CHECK(done(move("f", "g", true)) && holds("g", "f") && entries_here() == 1);
    CHECK(done(move("g", "h", false)) && holds("h", "f"));
    CHECK(failed_with(move("missing", "h", true), ENOENT));
    CHECK(failed_with(move("h", "/dev/shm/atoll-test-moved", true), EXDEV) && holds("h", "f"));
    tear_down();
}

static void what_is_removed_is_what_was_named(void)
{
    set_up();
    make("kept", "kept");
    CHECK(mkdir("d", 0755) == 0 && mkdir("d/sub", 0755) == 0 && mkdir("empty", 0755) == 0);
    make("d/sub/f", "");
    CHECK(symlink("../../kept", "d/sub/file") == 0 && symlink("..", "d/up") == 0 && symlink("d", "link") == 0);
    CHECK(failed_with(plain("file.remove", "d"), ENOTEMPTY) && failed_with(plain("file.remove", "x"), ENOENT));
    CHECK(done(plain("file.remove", "empty")));
    CHECK(done(with_flag("file.remove", "link/", "recursive", true)) && holds("d/sub/f", ""));
    CHECK(done(with_flag("file.remove", "d/", "recursive", true)));
    CHECK(holds("kept", "kept") && entries_here() == 1);
    CHECK(failed_with(with_flag("file.remove", "/", "recursive", true), EINVAL));
    CHECK(failed_with(with_flag("file.remove", ".", "recursive", true), EINVAL));
    tear_down();
}

static void a_large_directory_is_removed_whole(void)
{
    char path[32];

    set_up();
    CHECK(mkdir("d", 0755) == 0);
    for (int i = 0; i < MANY; i++) {
        snprintf(path, sizeof(path), "d/%d", i);
        CHECK(i % 3 ? symlink("x", path) == 0 : mkdir(path, 0700) == 0);
    }
    CHECK(done(with_flag("file.remove", "d", "recursive", true)) && entries_here() == 0);
    tear_down();
}

/* Users. */

static const struct reply *as_nobody(const char *method, const char *path)
{
    struct mp_writer writer = begin(method, path, 1);

    mp_put_str(&writer, "user", "65534:65534");
    return call(&writer);
}

static void files_are_used_as_the_user_may(void)
{
    struct stat status;

    if (geteuid() != 0)
        return;
    set_up();
    make("secret", "x");
    CHECK(chmod("secret", 0600) == 0 && mkdir("theirs", 0755) == 0 && chown("theirs", NOBODY, NOBODY) == 0);
    CHECK(failed_with(as_nobody("file.read", "secret"), EACCES));
    CHECK(failed_with(as_nobody("file.remove", "secret"), EACCES));
    CHECK(failed_with(as_nobody("file.watch", "secret"), EACCES));
    CHECK(failed_with(as_nobody("file.write", "f"), EACCES));
    CHECK(done(as_nobody("file.make_directory", "theirs/d")));
    CHECK(stat("theirs/d", &status) == 0 && status.st_uid == NOBODY && status.st_gid == NOBODY);
    CHECK(done(as_nobody("file.write", "theirs/f")));
    CHECK(stat("theirs/f", &status) == 0 && status.st_uid == NOBODY && mode_of("theirs/f") == 0644);
    CHECK(chmod("theirs", 0700) == 0 && done(plain("file.write", "theirs/f")));
    CHECK(stat("theirs/f", &status) == 0 && status.st_uid == NOBODY); /* root keeps the owner */
    CHECK(reads("secret", 0, 9, "x"));                                 /* the agent itself is who it was */
    struct mp_writer writer = begin("file.stat", "f", 1);
    mp_put_str(&writer, "user", "no-such-user");
    CHECK(failed_with(call(&writer), ESRCH));
    tear_down();
}

static void relative_paths_begin_somewhere(void)
{
    set_up();
    struct mp_writer writer = session_request("file.stat", 2);
    mp_put_str(&writer, "cwd", "tmp");
    mp_put_str(&writer, "path", "x");
    CHECK(failed(call(&writer), FAIL_INVALID));
    writer = session_request("file.stat", 1);
    mp_put_str(&writer, "path", "."); /* the user's home */
    const struct reply *reply = call(&writer);
    CHECK(done(reply) && reply_has(reply, "type", "directory"));
    tear_down();
}

/* Watching. */

/* Takes the next DATA and checks the changes in it: "KIND PATH" each, in this order. */
static void expect_changes(const char *const *changes)
{
    static uint8_t told[1 << 16];
    static size_t at;
    static size_t size;
    struct mp_reader value;
    struct mp_bytes kind;
    struct mp_bytes path;
    char line[300];

    for (; *changes; changes++) {
        if (at == size) {
            const struct reply *reply = session_next(agent);

            CHECK(reply->type == WIRE_DATA && reply->size > 0);
            memcpy(told, reply->payload, reply->size);
            at = 0;
            size = reply->size;
        }
        struct mp_reader map = {told + at + FILE_LENGTH_SIZE,
                                told + at + FILE_LENGTH_SIZE + wire_get_u32(told + at)};
        CHECK(mp_find(map, "kind", &value) && mp_read_bytes(&value, &kind));
        CHECK(mp_find(map, "path", &value) && mp_read_bytes(&value, &path));
        snprintf(line, sizeof(line), "%.*s %.*s", (int)kind.size, (const char *)kind.data, (int)path.size,
                 (const char *)path.data);
        if (strcmp(line, *changes) != 0)
            fprintf(stderr, "%s, not %s\n", line, *changes);
        CHECK(strcmp(line, *changes) == 0);
        at = (size_t)(map.end - told);
    }
    CHECK(at == size);
}

#define EXPECT(...) expect_changes((const char *const[]){__VA_ARGS__, NULL})

static void changes_are_told_in_order(void)
{
    set_up();
    CHECK(mkdir("sub", 0755) == 0);
    CHECK(plain("file.watch", ".")->type == WIRE_REPLY);
    make("f", "x");
    CHECK(rename("f", "g") == 0 && chmod("g", 0600) == 0 && unlink("g") == 0);
    make("sub/unseen", "");
    EXPECT("created f", "modified f", "moved_from f", "moved_to g", "modified g", "removed g");
    CHECK(session_silent(agent));
    reset();
    tear_down();
}

static void new_directories_are_watched_too(void)
{
    set_up();
    CHECK(mkdir("sub", 0755) == 0 && mkdir("sub/deep", 0755) == 0);
    CHECK(with_flag("file.watch", ".", "recursive", true)->type == WIRE_REPLY);
    CHECK(mkdir("sub/deep/f", 0700) == 0);
    EXPECT("created sub/deep/f");
    CHECK(mkdir("new", 0755) == 0 && mkdir("new/er", 0755) == 0);
    make("new/er/early", "");
    EXPECT("created new", "created new/er", "created new/er/early");
    make("new/er/late", "");
    CHECK(unlink("new/er/early") == 0);
    EXPECT("created new/er/late", "removed new/er/early");
    CHECK(rename("new", "sub/moved") == 0);
    EXPECT("moved_from new", "moved_to sub/moved", "created sub/moved/er", "created sub/moved/er/late");
    CHECK(unlink("sub/moved/er/late") == 0);
    EXPECT("removed sub/moved/er/late");
    reset();
    tear_down();
}

static void what_is_moved_away_is_not_told_of(void)
{
    set_up();
    CHECK(mkdir("seen", 0755) == 0 && mkdir("seen/d", 0755) == 0 && mkdir("seen/d/e", 0755) == 0);
    CHECK(with_flag("file.watch", "seen", "recursive", true)->type == WIRE_REPLY);
    CHECK(rename("seen/d", "unseen") == 0);
    EXPECT("moved_from d");
    make("unseen/f", "");
    make("unseen/e/f", "");
    make("seen/f", "");
    EXPECT("created f");
    reset();
    tear_down();
}

static void a_watch_ends_with_what_is_watched(void)
{
    set_up();
    CHECK(mkdir("d", 0755) == 0 && with_flag("file.watch", "d", "recursive", true)->type == WIRE_REPLY);
    CHECK(rmdir("d") == 0);
    EXPECT("removed ");
    CHECK(agent->mux.streams == 0);
    make("f", "");
    CHECK(plain("file.watch", "f")->type == WIRE_REPLY);
    make("f", "x");
    EXPECT("modified ");
    reset();
    CHECK(failed_with(plain("file.watch", "missing"), ENOENT));
    tear_down();
}

const struct test file_tests[] = {
    {"a file or a part of it is read", a_file_or_a_part_of_it_is_read},
    {"a large file comes as the host takes it", a_large_file_comes_as_the_host_takes_it},
    {"what is no file is not read", what_is_no_file_is_not_read},
    {"a reader that goes away leaves nothing", a_reader_that_goes_away_leaves_nothing},
    {"a file is replaced when it is complete", a_file_is_replaced_when_it_is_complete},
    {"a file that is given up leaves the old one", a_file_that_is_given_up_leaves_the_old_one},
    {"a file is created only where nothing is", a_file_is_created_only_where_nothing_is},
    {"a file is written where it is", a_file_is_written_where_it_is},
    {"what is no file is not written", what_is_no_file_is_not_written},
    {"an empty file needs no data", an_empty_file_needs_no_data},
    {"a large directory is listed whole", a_large_directory_is_listed_whole},
    {"a link is told of as asked for", a_link_is_told_of_as_asked_for},
    {"directories are made", directories_are_made},
    {"a file is moved at once", a_file_is_moved_at_once},
    {"what is removed is what was named", what_is_removed_is_what_was_named},
    {"a large directory is removed whole", a_large_directory_is_removed_whole},
    {"files are used as the user may", files_are_used_as_the_user_may},
    {"relative paths begin somewhere", relative_paths_begin_somewhere},
    {"changes are told in order", changes_are_told_in_order},
    {"new directories are watched, too", new_directories_are_watched_too},
    {"what is moved away is not told of", what_is_moved_away_is_not_told_of},
    {"a watch ends with what is watched", a_watch_ends_with_what_is_watched},
    {NULL, NULL},
};
