#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "session.h"

/* Sends exec.start for a shell; further parameters are written by `more`. */
enum { FRAMES_IN_WINDOW = MUX_WINDOW / WIRE_PAYLOAD_MAX };

static void start_shell(struct agent *agent, uint32_t stream, const char *script, size_t count,
                        void (*more)(struct mp_writer *))
{
    struct mp_writer writer = session_request("exec.start", 2 + count);

    mp_put_str(&writer, "id", "x");
    mp_write_str(&writer, "argv");
    mp_write_array(&writer, 3);
    mp_write_str(&writer, "sh");
    mp_write_str(&writer, "-c");
    mp_write_str(&writer, script);
    if (more)
        more(&writer);
    session_call(agent, stream, &writer, true);
}

static struct mp_writer request(const char *method, size_t count)
{
    struct mp_writer writer = session_request(method, 1 + count);

    mp_put_str(&writer, "id", "x");
    return writer;
}

static void call(struct agent *agent, uint32_t stream, const char *method)
{
    struct mp_writer writer = request(method, 0);

    session_call(agent, stream, &writer, true);
}

static void open_output(struct agent *agent, uint32_t stream, int fd, int64_t offset)
{
    struct mp_writer writer = request("exec.output", 2);

    mp_put_int(&writer, "fd", fd);
    mp_put_int(&writer, "offset", offset);
    session_call(agent, stream, &writer, true);
}

static void credit(struct agent *agent, uint32_t stream, size_t size)
{
    uint8_t payload[4];

    wire_put_u32(payload, (uint32_t)size);
    session_send(agent, WIRE_CREDIT, false, stream, payload, sizeof(payload));
}

/* Reads DATA of the stream up to its end, giving credit; returns the number of bytes. */
static size_t read_to_end(struct agent *agent, uint32_t stream, char *out, size_t room)
{
    size_t total = 0;

    for (;;) {
        const struct reply *reply = session_next(agent);

        if (reply->stream != stream || reply->type != WIRE_DATA)
            continue;
        size_t kept = total < room ? room - total : 0;
        memcpy(out + (total < room ? total : 0), reply->payload, reply->size < kept ? reply->size : kept);
        total += reply->size;
        if (reply->end)
            return total;
        credit(agent, stream, reply->size);
    }
}

static void with_input(struct mp_writer *writer)
{
    mp_put_bool(writer, "stdin", true);
}

static void with_tty(struct mp_writer *writer)
{
    mp_put_bool(writer, "stdin", true);
    mp_write_str(writer, "tty");
    mp_write_map(writer, 2);
    mp_put_int(writer, "rows", 7);
    mp_put_int(writer, "cols", 9);
}

static void output_and_exit_code_arrive(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    char out[16];

    start_shell(agent, 1, "echo out; echo error >&2; exit 7", 0, NULL);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    open_output(agent, 3, 1, 0);
    CHECK(read_to_end(agent, 3, out, sizeof(out)) == 4 && memcmp(out, "out\n", 4) == 0);
    open_output(agent, 5, 2, 0);
    CHECK(read_to_end(agent, 5, out, sizeof(out)) == 6 && memcmp(out, "error\n", 6) == 0);
    call(agent, 7, "exec.wait");
    const struct reply *reply = session_next(agent);
    CHECK(reply_int(reply, "code") == 7 && reply_int(reply, "stdout") == 4);
    CHECK(reply_int(reply, "stderr") == 6 && reply_int(reply, "maxrss") > 0);
    CHECK(reply_int(reply, "ended") >= reply_int(reply, "started"));
    session_close(agent);
}

static void all_who_wait_are_told_of_a_signal(void)
{
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "exec sleep 100", 0, NULL);
    session_next(agent);
    call(agent, 3, "exec.wait");
    call(agent, 5, "exec.wait");
    struct mp_writer writer = request("exec.signal", 1);
    mp_put_int(&writer, "signal", SIGTERM);
    session_call(agent, 7, &writer, true);
    CHECK(session_next(agent)->stream == 7);
    for (uint32_t stream = 3; stream <= 5; stream += 2) {
        const struct reply *reply = session_next(agent);
        CHECK(reply->stream == stream && reply_int(reply, "signal") == SIGTERM);
    }
    session_call(agent, 9, &writer, true);
    CHECK(reply_int(session_next(agent), "errno") == ESRCH);
    session_close(agent);
}

static void output_that_is_not_credited_can_be_read_again(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    const struct reply *reply;

    start_shell(agent, 1, "printf 0123456789", 0, NULL);
    session_next(agent);
    open_output(agent, 3, 1, 0);
    do
        reply = session_next(agent);
    while (!(reply->stream == 3 && reply->end));

    open_output(agent, 5, 1, 4); /* has acknowledged 4 */
    CHECK(reply_int(session_next(agent), "offset") == 4);
    reply = session_next(agent);
    CHECK(reply->size == 6 && reply->end && memcmp(reply->payload, "456789", 6) == 0);
    open_output(agent, 7, 1, 3);
    CHECK(reply_has(session_next(agent), "code", FAIL_GONE));
    open_output(agent, 9, 1, 11);
    CHECK(reply_has(session_next(agent), "code", FAIL_INVALID));
    struct mp_writer writer = request("exec.output", 1);
    mp_put_int(&writer, "fd", 1);
    session_call(agent, 11, &writer, true);
    CHECK(reply_int(session_next(agent), "offset") == 4);
    session_close(agent);
}

static void a_new_reader_takes_over(void)
{
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "sleep 100", 0, NULL);
    session_next(agent);
    open_output(agent, 3, 1, 0);
    session_next(agent);
    open_output(agent, 5, 1, 0);
    CHECK(session_next(agent)->stream == 5);
    const struct reply *reply = session_next(agent);
    CHECK(reply->stream == 3 && reply_has(reply, "code", FAIL_CANCELLED));
    session_close(agent);
}

static void an_unread_command_stops_and_loses_nothing(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    char out[1];

    start_shell(agent, 1, "head -c 3000000 /dev/zero", 0, NULL);
    session_next(agent);
    for (int i = 0; i < 20; i++) {
        usleep(1000);
        CHECK(session_silent(agent));
    }
    struct execution *execution = execution_find(&agent->executions, "x");
    CHECK(execution->running && execution->outputs[0].held.used == OUTPUT_MAX);
    open_output(agent, 3, 1, 0);
    CHECK(read_to_end(agent, 3, out, sizeof(out)) == 3000000);
    session_close(agent);
}

static void an_end_does_not_wait_for_what_was_left_behind(void)
{
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "printf abc; sleep 100 & exit 0", 0, NULL);
    session_next(agent);
    call(agent, 3, "exec.wait");
    const struct reply *reply = session_next(agent);
    CHECK(reply_int(reply, "code") == 0 && reply_int(reply, "stdout") == 3);
    CHECK(agent->executions.count == 1);
    kill(-execution_find(&agent->executions, "x")->pid, SIGKILL);
    session_close(agent);
}

static void input_arrives_and_ends(void)
{
    static uint8_t data[WIRE_PAYLOAD_MAX];
    struct agent *agent = session_open(BOOT_DONE);
    char out[16] = "";

    start_shell(agent, 1, "wc -c", 1, with_input);
    session_next(agent);
    struct mp_writer writer = request("exec.stdin", 0);
    session_call(agent, 3, &writer, false);
    CHECK(reply_int(session_next(agent), "offset") == 0);
    for (int i = 0; i < FRAMES_IN_WINDOW; i++)
        session_send(agent, WIRE_DATA, i == FRAMES_IN_WINDOW - 1, 3, data, sizeof(data));
    open_output(agent, 5, 1, 0);
    read_to_end(agent, 5, out, sizeof(out) - 1);
    CHECK(atol(out) == MUX_WINDOW);
    CHECK(!mux_find(&agent->mux, 3)); /* the guest ended its side, too */
    session_close(agent);
}

static void repeated_input_is_dropped(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    char out[16] = "";

    start_shell(agent, 1, "cat", 1, with_input);
    session_next(agent);
    struct mp_writer writer = request("exec.stdin", 0);
    session_call(agent, 3, &writer, false);
    session_next(agent);
    session_send(agent, WIRE_DATA, false, 3, "abc", 3);
    session_call(agent, 5, &writer, false);
    CHECK(reply_has(session_next(agent), "code", FAIL_CANCELLED));
    CHECK(reply_int(session_next(agent), "offset") == 3);
    session_send(agent, WIRE_DATA, false, 5, "ab", 2);
    session_send(agent, WIRE_DATA, true, 5, "cde", 3);
    open_output(agent, 7, 1, 0);
    CHECK(read_to_end(agent, 7, out, sizeof(out)) == 5 && memcmp(out, "abcde", 5) == 0);
    session_close(agent);
}

static void append_input(struct agent *agent, uint32_t stream)
{
    struct mp_writer writer = request("exec.stdin", 1);

    mp_put_bool(&writer, "append", true);
    session_call(agent, stream, &writer, false);
}

static void a_new_writer_may_go_on_behind_what_was_not_read_yet(void)
{
    static uint8_t data[WIRE_PAYLOAD_MAX];
    struct agent *agent = session_open(BOOT_DONE);
    char out[16] = "";

    start_shell(agent, 1, "kill -STOP $$; wc -c", 1, with_input);
    pid_t pid = (pid_t)reply_int(session_next(agent), "pid");
    struct input *input = &execution_find(&agent->executions, "x")->input;
    struct mp_writer writer = request("exec.stdin", 0);
    session_call(agent, 3, &writer, false);
    session_next(agent);
    while (input->waiting.used == 0)
        session_send(agent, WIRE_DATA, false, 3, data, sizeof(data));
    uint64_t before = input_received(input);
    session_send(agent, WIRE_RESET, false, 3, "\x80", 1);
    while (!session_silent(agent)) /* credit */
        continue;

    append_input(agent, 5);
    CHECK((uint64_t)reply_int(session_next(agent), "offset") == before);
    for (int i = 0; i < FRAMES_IN_WINDOW; i++)
        session_send(agent, WIRE_DATA, false, 5, data, sizeof(data));
    append_input(agent, 7);
    CHECK(reply_has(session_next(agent), "code", FAIL_RESOURCE));
    session_send(agent, WIRE_DATA, true, 5, "", 0);
    append_input(agent, 9);
    CHECK(reply_has(session_next(agent), "code", FAIL_INVALID));
    CHECK(waitpid(pid, NULL, WUNTRACED) == pid && kill(-pid, SIGCONT) == 0);
    open_output(agent, 11, 1, 0);
    read_to_end(agent, 11, out, sizeof(out) - 1);
    CHECK((uint64_t)atol(out) == before + MUX_WINDOW);
    session_close(agent);
}

static void what_is_sent_again_replaces_what_was_not_read_yet(void)
{
    static uint8_t data[WIRE_PAYLOAD_MAX];
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "sleep 100", 1, with_input);
    session_next(agent);
    struct input *input = &execution_find(&agent->executions, "x")->input;
    struct mp_writer writer = request("exec.stdin", 0);
    session_call(agent, 3, &writer, false);
    while (input->waiting.used < 2 * sizeof(data))
        session_send(agent, WIRE_DATA, false, 3, data, sizeof(data));
    while (!session_silent(agent))
        continue;

    writer = request("exec.stdin", 1);
    mp_put_int(&writer, "offset", (int64_t)input->accepted + 10);
    session_call(agent, 5, &writer, false);
    CHECK(session_next(agent)->stream == 3);
    CHECK((uint64_t)reply_int(session_next(agent), "offset") == input->accepted + 10);
    CHECK(input->waiting.used == 10);
    writer = request("exec.stdin", 1);
    mp_put_int(&writer, "offset", (int64_t)input->accepted + 11);
    session_call(agent, 7, &writer, false);
    CHECK(reply_has(session_next(agent), "code", FAIL_INVALID));
    session_close(agent);
}

static void input_that_nobody_reads_is_discarded(void)
{
    static uint8_t data[WIRE_PAYLOAD_MAX];
    struct agent *agent = session_open(BOOT_DONE);
    size_t credited = 0;

    start_shell(agent, 1, "exit 0", 1, with_input);
    session_next(agent);
    call(agent, 3, "exec.wait");
    session_next(agent);
    struct mp_writer writer = request("exec.stdin", 0);
    session_call(agent, 5, &writer, false);
    session_next(agent);
    for (int i = 0; i < FRAMES_IN_WINDOW; i++)
        session_send(agent, WIRE_DATA, false, 5, data, sizeof(data));
    while (credited < MUX_WINDOW) {
        const struct reply *reply = session_next(agent);
        CHECK(reply->type == WIRE_CREDIT && reply->stream == 5);
        credited += wire_get_u32(reply->payload);
    }
    session_send(agent, WIRE_DATA, true, 5, "", 0);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_DATA && reply->end);
    session_close(agent);
}

static void a_terminal_has_a_size_and_an_end_of_file(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    char out[64] = "";

    start_shell(agent, 1, "stty -echo; stty size; cat; stty size", 2, with_tty);
    session_next(agent);
    open_output(agent, 3, 1, 0);
    const struct reply *reply;
    do
        reply = session_next(agent);
    while (reply->type != WIRE_DATA);
    CHECK(memcmp(reply->payload, "7 9\r\n", 5) == 0);
    struct mp_writer writer = request("exec.resize", 2);
    mp_put_int(&writer, "rows", 11);
    mp_put_int(&writer, "cols", 12);
    session_call(agent, 5, &writer, true);
    writer = request("exec.stdin", 0);
    session_call(agent, 7, &writer, false);
    session_send(agent, WIRE_DATA, true, 7, "typed", 5);
    size_t size = read_to_end(agent, 3, out, sizeof(out));
    CHECK(size == 12 && memcmp(out, "typed11 12\r\n", size) == 0);
    open_output(agent, 9, 2, 0);
    CHECK(read_to_end(agent, 9, out, sizeof(out)) == 0);
    session_close(agent);
}

static void terminal_output_is_counted_at_the_end_though_unread(void)
{
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "head -c 265000 /dev/zero | tr '\\0' x", 2, with_tty);
    session_next(agent);
    call(agent, 3, "exec.wait");
    const struct reply *reply = session_next(agent);
    CHECK(reply_int(reply, "stdout") == 265000);
    session_close(agent);
}

static void refuse_start(size_t count, void (*more)(struct mp_writer *), int error, const char *stage)
{
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "true", count, more);
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_RESET && reply_has(reply, "code", FAIL_OS));
    CHECK(reply_has(reply, "stage", stage) && reply_int(reply, "errno") == error);
    CHECK(agent->executions.count == 0);
    session_close(agent);
}

static void in_no_directory(struct mp_writer *writer)
{
    mp_put_str(writer, "cwd", "/no/such");
}

static void as_nobody_known(struct mp_writer *writer)
{
    mp_put_str(writer, "user", "no-such-user");
}

static void with_empty_path(struct mp_writer *writer)
{
    mp_write_str(writer, "env");
    mp_write_map(writer, 1);
    mp_put_str(writer, "PATH", "/no:/such");
}

static char made[] = "/tmp/atoll-test-XXXXXX/deep/er";

static void as_in_a_container(struct mp_writer *writer)
{
    mp_put_bool(writer, "container", true);
    mp_put_str(writer, "cwd", made);
}

static void a_container_s_command_has_its_directory_made_and_no_more_than_its_variables(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    char out[256] = "";

    *strstr(made, "/deep") = '\0';
    CHECK(mkdtemp(made));
    made[strlen(made)] = '/';
    start_shell(agent, 1, "pwd; echo ${HOME:+home}${USER-none}${LOGNAME-none}", 2, as_in_a_container);
    CHECK(session_next(agent)->type == WIRE_REPLY);
    open_output(agent, 3, 1, 0);
    CHECK(read_to_end(agent, 3, out, sizeof(out) - 1) == strlen(made) + sizeof("\nhomenonenone"));
    CHECK(strncmp(out, made, strlen(made)) == 0);
    CHECK(strcmp(out + strlen(made), "\nhomenonenone\n") == 0);
    for (char *slash; strcmp(made, "/tmp") != 0; *slash = '\0') {
        CHECK(rmdir(made) == 0);
        slash = strrchr(made, '/');
    }
    session_close(agent);
}

static void with_what_runs_it_missing(struct mp_writer *writer)
{
    mp_write_str(writer, "env");
    mp_write_map(writer, 1);
    mp_put_str(writer, "PATH", made);
}

static void a_script_without_its_interpreter_is_told_from_none(void)
{
    char place[] = "/tmp/atoll-test-XXXXXX";
    char script[sizeof(place) + 3];

    CHECK(mkdtemp(place));
    strcpy(made, place);
    snprintf(script, sizeof(script), "%s/sh", place);
    FILE *file = fopen(script, "we");
    CHECK(file && fputs("#!/no/such\n", file) >= 0 && fchmod(fileno(file), 0755) == 0 && fclose(file) == 0);
    refuse_start(1, with_what_runs_it_missing, ENOENT, "interpreter");
    CHECK(unlink(script) == 0 && rmdir(place) == 0);
}

static void a_command_that_cannot_start_leaves_no_execution(void)
{
    refuse_start(1, in_no_directory, ENOENT, "cwd");
    refuse_start(1, as_nobody_known, ESRCH, "user");
    refuse_start(1, with_empty_path, ENOENT, "exec"); /* argv[0] is looked up in the command's PATH */
}

static void a_released_execution_is_killed_and_gone(void)
{
    struct agent *agent = session_open(BOOT_DONE);
    int status;

    start_shell(agent, 1, "sleep 100", 0, NULL);
    pid_t pid = (pid_t)reply_int(session_next(agent), "pid");
    call(agent, 3, "exec.wait");
    call(agent, 5, "exec.release");
    const struct reply *reply = session_next(agent);
    CHECK(reply->stream == 3 && reply_has(reply, "code", FAIL_CANCELLED));
    CHECK(session_next(agent)->stream == 5);
    CHECK(waitpid(pid, &status, 0) == pid && WTERMSIG(status) == SIGKILL);
    call(agent, 7, "exec.wait");
    CHECK(reply_has(session_next(agent), "code", FAIL_NOT_FOUND));
    session_close(agent);
}

static bool lists(const struct reply *reply, const char *text)
{
    for (size_t at = 0; at + strlen(text) <= reply->size; at++) {
        if (memcmp(reply->payload + at, text, strlen(text)) == 0)
            return true;
    }
    return false;
}

static void a_list_tells_what_runs(void)
{
    static char script[3 * EXEC_COMMAND_MAX];
    struct agent *agent = session_open(BOOT_DONE);

    memset(script, '#', sizeof(script) - 1);
    memcpy(script, "exit 0 ", 7);
    start_shell(agent, 1, script, 1, with_input);
    session_next(agent);
    struct mp_writer writer = session_request("exec.list", 0);
    session_call(agent, 3, &writer, true);
    const struct reply *reply = session_next(agent);
    while (reply->type != WIRE_REPLY)
        reply = session_next(agent);
    CHECK(reply->stream == 3 && lists(reply, "exit 0 ###"));
    CHECK(lists(reply, "stdin\xc3") && lists(reply, "tty\xc2"));
    CHECK(reply->size > EXEC_COMMAND_MAX && reply->size < EXEC_COMMAND_MAX + 128);
    session_close(agent);
}

static void a_detached_execution_stays_as_it_is(void)
{
    struct agent *agent = session_open(BOOT_DONE);

    call(agent, 1, "exec.detach");
    CHECK(reply_has(session_next(agent), "code", FAIL_NOT_FOUND));
    start_shell(agent, 3, "sleep 100", 0, NULL);
    session_next(agent);
    call(agent, 5, "exec.detach");
    CHECK(session_next(agent)->type == WIRE_REPLY);
    CHECK(execution_find(&agent->executions, "x")->running);
    session_close(agent);
}

static void an_id_is_used_once(void)
{
    struct agent *agent = session_open(BOOT_DONE);

    start_shell(agent, 1, "true", 0, NULL);
    session_next(agent);
    start_shell(agent, 3, "true", 0, NULL);
    CHECK(reply_has(session_next(agent), "code", FAIL_EXISTS));
    session_close(agent);
}

const struct test exec_tests[] = {
    {"output and exit code arrive", output_and_exit_code_arrive},
    {"all who wait are told of a signal", all_who_wait_are_told_of_a_signal},
    {"output that is not credited can be read again", output_that_is_not_credited_can_be_read_again},
    {"a new reader takes over", a_new_reader_takes_over},
    {"an unread command stops and loses nothing", an_unread_command_stops_and_loses_nothing},
    {"an end does not wait for what was left behind", an_end_does_not_wait_for_what_was_left_behind},
    {"input arrives and ends", input_arrives_and_ends},
    {"repeated input is dropped", repeated_input_is_dropped},
    {"a new writer may go on behind what was not read yet",
     a_new_writer_may_go_on_behind_what_was_not_read_yet},
    {"what is sent again replaces what was not read yet", what_is_sent_again_replaces_what_was_not_read_yet},
    {"input that nobody reads is discarded", input_that_nobody_reads_is_discarded},
    {"a terminal has a size and an end of file", a_terminal_has_a_size_and_an_end_of_file},
    {"terminal output is counted at the end though unread",
     terminal_output_is_counted_at_the_end_though_unread},
    {"a container's command has its directory made and no more than its variables",
     a_container_s_command_has_its_directory_made_and_no_more_than_its_variables},
    {"a script without its interpreter is told from none", a_script_without_its_interpreter_is_told_from_none},
    {"a command that cannot start leaves no execution", a_command_that_cannot_start_leaves_no_execution},
    {"a released execution is killed and gone", a_released_execution_is_killed_and_gone},
    {"a list tells what runs", a_list_tells_what_runs},
    {"a detached execution stays as it is", a_detached_execution_stays_as_it_is},
    {"an id is used once", an_id_is_used_once},
    {0},
};
