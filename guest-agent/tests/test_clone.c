/*
 * clone.begin, as a hosted agent answers it: it decodes all and touches nothing of its system.
 */
#include <string.h>

#include "check.h"
#include "identity.h"
#include "session.h"

#define MACHINE_ID "0123456789abcdef0123456789abcdef"
#define LONGEST_HOSTNAME "h23456789-h23456789-h23456789-h23456789-h23456789-h23456789-h234"

static const uint8_t bytes[IDENTITY_SEED_MAX + 1];

struct wish {
    size_t seed_size;
    int64_t realtime;
    const char *name;
    const char *text;
    int64_t growth;
};

static const struct wish plain = {.seed_size = IDENTITY_SEED_MIN};

/* What the agent answers. */
static const struct reply *begin(struct agent *agent, const struct wish *wish)
{
    struct mp_writer writer = session_request("clone.begin", 3 + (wish->name != NULL));

    mp_put_int(&writer, "realtime", wish->realtime);
    mp_put_int(&writer, "growth", wish->growth);
    mp_write_str(&writer, "seed");
    mp_write_bin(&writer, bytes, wish->seed_size);
    if (wish->name)
        mp_put_str(&writer, wish->name, wish->text);
    session_call(agent, 3, &writer, true);
    return session_next(agent);
}

static bool accepts(const struct wish *wish)
{
    struct agent *agent = session_open(BOOT_DONE);
    const struct reply *reply = begin(agent, wish);
    bool accepted = reply->type == WIRE_REPLY && reply->end;

    CHECK(accepted || (reply->type == WIRE_RESET && reply_has(reply, "code", FAIL_INVALID)));
    session_close(agent);
    return accepted;
}

static bool accepts_text(const char *name, const char *text)
{
    struct wish wish = plain;

    wish.name = name;
    wish.text = text;
    return accepts(&wish);
}

static void a_seed_has_32_to_512_bytes(void)
{
    CHECK(!accepts(&(struct wish){.seed_size = 0}));
    CHECK(!accepts(&(struct wish){.seed_size = IDENTITY_SEED_MIN - 1}));
    CHECK(accepts(&(struct wish){.seed_size = IDENTITY_SEED_MIN}));
    CHECK(accepts(&(struct wish){.seed_size = IDENTITY_SEED_MAX}));
    CHECK(!accepts(&(struct wish){.seed_size = IDENTITY_SEED_MAX + 1}));
}

static void numbers_have_bounds(void)
{
    struct wish wish = plain;

    wish.realtime = -1;
    CHECK(!accepts(&wish));
    wish.realtime = INT64_MAX;
    CHECK(accepts(&wish));
    wish.growth = -1;
    CHECK(!accepts(&wish));
    wish.growth = (int64_t)1 << 48;
    CHECK(accepts(&wish));
    wish.growth++;
    CHECK(!accepts(&wish));
}

static void seed_and_time_are_needed(void)
{
    static const char *const needed[] = {"seed", "realtime"};

    for (size_t i = 0; i < sizeof(needed) / sizeof(*needed); i++) {
        struct agent *agent = session_open(BOOT_HELD);
        struct mp_writer writer = session_request("clone.begin", 1);

        if (i == 0) {
            mp_put_int(&writer, "realtime", 1);
        } else {
            mp_write_str(&writer, "seed");
            mp_write_bin(&writer, bytes, IDENTITY_SEED_MIN);
        }
        session_call(agent, 1, &writer, true);
        CHECK(reply_has(session_next(agent), "code", FAIL_INVALID));
        CHECK(agent->boot.phase == BOOT_HELD);
        session_close(agent);
    }
}

static void an_address_has_six_bytes_in_hexadecimal(void)
{
    static const char *const wrong[] = {
        "02:00:00:00:00",      "02:00:00:00:00:00:00", "2:0:0:0:0:0",       "02-00-00-00-00-00",
        "02:00:00:00:00:0g",   " 2: 0: 0: 0: 0: 0",    "+2:+0:+0:+0:+0:+0", "02:00:00:00:00:0",
        "02:00:00:00:00:00 ",  "02:00:00:00:00::0",    "0x:0x:0x:0x:0x:0x", ":::::::::::::::::",
        "-2:-0:-0:-0:-0:-0\n",
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(*wrong); i++)
        CHECK(!accepts_text("mac", wrong[i]));
    CHECK(accepts_text("mac", "02:00:5e:10:fe:01"));
    CHECK(accepts_text("mac", "02:00:5E:10:FE:01"));
    CHECK(accepts_text("mac", "")); /* it is left */
}

static void a_machine_id_has_32_digits_in_hexadecimal(void)
{
    CHECK(accepts_text("machine_id", MACHINE_ID));
    CHECK(!accepts_text("machine_id", MACHINE_ID "0"));
    CHECK(!accepts_text("machine_id", "0123456789abcdef0123456789abcde"));
    CHECK(!accepts_text("machine_id", "0123456789ABCDEF0123456789ABCDEF"));
    CHECK(!accepts_text("machine_id", "0123456789abcdef0123456789abcdeg"));
    CHECK(accepts_text("machine_id", ""));
}

static void names_fit_their_places(void)
{
    CHECK(accepts_text("hostname", LONGEST_HOSTNAME));
    CHECK(!accepts_text("hostname", LONGEST_HOSTNAME "x"));
    CHECK(accepts_text("root", "12345678901234567890"));
    CHECK(!accepts_text("root", "123456789012345678901"));
    CHECK(accepts_text("unheard-of", "ignored"));
}

static void a_held_boot_goes_on_with_what_it_is_told(void)
{
    struct agent *agent = session_open(BOOT_HELD);
    struct wish wish = plain;

    strcpy(agent->boot.options.hostname, "template");
    strcpy(agent->boot.options.root, "placeholder");
    agent->boot.options.lifeline = true;
    wish.name = "root";
    wish.text = "disk";
    CHECK(begin(agent, &wish)->type == WIRE_REPLY);
    CHECK(agent->boot.phase == BOOT_RUNNING);
    CHECK(strcmp(agent->boot.options.root, "disk") == 0);
    CHECK(strcmp(agent->boot.options.hostname, "template") == 0 && agent->boot.options.lifeline);
    session_close(agent);
}

static void what_is_refused_changes_nothing(void)
{
    struct agent *agent = session_open(BOOT_HELD);
    struct wish wish = plain;

    strcpy(agent->boot.options.machine_id, MACHINE_ID);
    wish.name = "machine_id";
    wish.text = "short";
    CHECK(begin(agent, &wish)->type == WIRE_RESET);
    CHECK(agent->boot.phase == BOOT_HELD && strcmp(agent->boot.options.machine_id, MACHINE_ID) == 0);
    session_close(agent);
}

static void requests_wait_while_a_boot_is_held(void)
{
    struct agent *agent = session_open(BOOT_HELD);
    struct mp_writer writer = session_request("boot.wait", 0);

    session_call(agent, 1, &writer, true);
    CHECK(!requests_resume(agent) && session_silent(agent));
    CHECK(begin(agent, &plain)->type == WIRE_REPLY);
    CHECK(!requests_resume(agent) && session_silent(agent));
    agent->boot.phase = BOOT_DONE;
    CHECK(!requests_resume(agent));
    const struct reply *reply = session_next(agent);
    CHECK(reply->type == WIRE_REPLY && reply->stream == 1);
    session_close(agent);
}

static void a_boot_that_is_over_stays_so(void)
{
    static const enum boot_phase phases[] = {BOOT_RUNNING, BOOT_DONE, BOOT_FAILED};

    for (size_t i = 0; i < sizeof(phases) / sizeof(*phases); i++) {
        struct agent *agent = session_open(phases[i]);

        CHECK(begin(agent, &plain)->type == WIRE_REPLY);
        CHECK(agent->boot.phase == phases[i]);
        session_close(agent);
    }
}

const struct test clone_tests[] = {
    {"a seed has 32 to 512 bytes", a_seed_has_32_to_512_bytes},
    {"numbers have bounds", numbers_have_bounds},
    {"seed and time are needed", seed_and_time_are_needed},
    {"an address has six bytes in hexadecimal", an_address_has_six_bytes_in_hexadecimal},
    {"a machine id has 32 digits in hexadecimal", a_machine_id_has_32_digits_in_hexadecimal},
    {"names fit their places", names_fit_their_places},
    {"a held boot goes on with what it is told", a_held_boot_goes_on_with_what_it_is_told},
    {"what is refused changes nothing", what_is_refused_changes_nothing},
    {"requests wait while a boot is held", requests_wait_while_a_boot_is_held},
    {"a boot that is over stays so", a_boot_that_is_over_stays_so},
    {NULL, NULL},
};
