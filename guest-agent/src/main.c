/*
 * The guest agent: as process 1 of an initramfs, or hosted on an ordinary system. One thread, one event loop.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "clock.h"
#include "console.h"
#include "exec_methods.h"
#include "power.h"
#include "request.h"
#include "survey.h"

enum {
    BOOT_POLL_MS = 1,
    FLUSH_MS = 500,            /* how long a reply to system.poweroff may take to leave */
    LIFELINE_GRACE_MS = 10000, /* how long the host may take to open its end at first */
};

static const char usage_text[] =
    "Usage: atoll-agent --fd N | --listen N | --survey changed|all|read UPPER LOWER | --version | --help\n"
    "\n"
    "As process 1, boots a guest and serves its host. Otherwise:\n"
    "  --fd N     serve on this inherited socket until its other end is closed\n"
    "  --listen N serve one connection after another on this inherited listening socket, until\n"
    "             SIGTERM (exit status 0) or system.poweroff (0; 3 for a reboot)\n"
    "  --survey   in a guest, list what was written over its root, or its contents\n"
    "  --version  print the version\n"
    "  --help     print this text\n";

static void reap(struct agent *agent)
{
    struct rusage usage;
    int status;
    pid_t pid;

    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        exec_process_ended(agent, pid, status, &usage);
}

static void signal_event(struct source *source, uint32_t events)
{
    struct agent *agent = list_entry(source, struct agent, signals);
    struct signalfd_siginfo info;

    (void)events;
    while (read(source->fd, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo == SIGCHLD)
            reap(agent);
        else if (agent->mode == AGENT_HOSTED)
            agent->power.requested = true;
        else if (agent->mode == AGENT_HANDED_OVER && info.ssi_signo == SIGTERM && info.ssi_pid == 1)
            power_init_ends(agent);
    }
}

bool agent_watch_signals(struct agent *agent)
{
    sigset_t watched;

    sigemptyset(&watched);
    sigaddset(&watched, SIGCHLD);
    sigaddset(&watched, SIGTERM);
    sigaddset(&watched, SIGINT);
    loop_close(&agent->signals);
    agent->signals = (struct source){
        .fd = signalfd(-1, &watched, SFD_NONBLOCK | SFD_CLOEXEC),
        .handle = signal_event,
    };
    return agent->signals.fd >= 0 && loop_watch(&agent->loop, &agent->signals);
}

/* Commands get the defaults, so the agent itself must not inherit an ignored signal. */
static void reset_signals(void)
{
    sigset_t all;

    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    signal(SIGPIPE, SIG_IGN);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
}

/* Everything but the link. */
static bool agent_init(struct agent *agent, enum agent_mode mode)
{
    agent->mode = mode;
    agent->power.grace_ms = POWER_GRACE_MS;
    agent->signals.fd = -1;
    agent->listener.fd = -1;
    agent->freezer.root = agent->freezer.timer.fd = -1;
    link_init(&agent->link);
    list_init(&agent->parked);
    jobs_init(&agent->jobs);
    executions_init(&agent->executions, &agent->loop);
    connections_init(&agent->connections, &agent->loop);
    flows_init(&agent->flows, &agent->loop);
    return loop_init(&agent->loop) && mux_init(&agent->mux, request_open, agent) &&
           agent_watch_signals(agent);
}

/* Takes the next connection, unless one is served: others wait in the socket's queue. */
static void accept_connection(struct agent *agent)
{
    while (agent->link.source.fd < 0) {
        int fd = accept4(agent->listener.fd, NULL, NULL, SOCK_CLOEXEC);

        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED))
            continue;
        if (fd < 0)
            return;
        if (!link_open(&agent->link, &agent->loop, fd, false))
            link_close(&agent->link);
    }
}

static void listener_event(struct source *source, uint32_t events)
{
    (void)events;
    accept_connection(list_entry(source, struct agent, listener));
}

static bool listen_on(struct agent *agent, int fd)
{
    agent->listener = (struct source){fd, listener_event};
    return fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) == 0 && fcntl(fd, F_SETFD, FD_CLOEXEC) == 0 &&
           loop_watch(&agent->loop, &agent->listener);
}

/*
 * A session ends when its host closes the port, and at that moment only: the kernel passes on what the next host
 * sends before it notes that this one has opened the port, so that its HELLO may be read while none seems there.
 */
static void end_session(struct agent *agent)
{
    if (agent->link.lost && agent->link.serial && agent->mux.in_session)
        mux_drop(&agent->mux);
    agent->link.lost = false;
}

/* Reacts to the host's end having gone. */
static void check_link(struct agent *agent)
{
    const struct link *link = &agent->link;

    if (link->closed && agent->listener.fd >= 0) {
        link_close(&agent->link);
        mux_drop(&agent->mux);
        accept_connection(agent);
        return;
    }
    if (link->closed) {
        agent->power.requested = true;
        return;
    }
    if (!link->serial || link->connected)
        return;
    bool overdue = boot_ns() > agent->boot.timeline[BOOT_CHANNEL] + (int64_t)LIFELINE_GRACE_MS * NS_PER_MS;
    if (agent->boot.options.lifeline && (link->seen || overdue))
        power_cut();
}

/* The reply to the request that asked for it leaves first. */
static void check_power(struct agent *agent)
{
    static int64_t deadline;

    power_ask_again(agent);
    if (!agent->power.requested)
        return;
    if (deadline == 0)
        deadline = boot_ns() + (int64_t)FLUSH_MS * NS_PER_MS;
    if (agent->link.closed || link_flushed(&agent->link, &agent->mux) || boot_ns() > deadline) {
        deadline = 0;
        power_carry_out(agent);
    }
}

/* How long to wait for events, in ms, when nothing is left to do. */
static int idle_timeout(const struct agent *agent)
{
    if (agent->power.requested || agent->power.ask_again)
        return FLUSH_MS;
    if (agent->boot.options.lifeline && !agent->link.seen)
        return LIFELINE_GRACE_MS;
    return -1;
}

/* The host first, so that it is answered also between the steps of the boot. */
__attribute__((noreturn)) static void serve(struct agent *agent)
{
    int timeout = 0;

    for (;;) {
        loop_turn(&agent->loop, timeout);
        end_session(agent);
        jobs_turn(&agent->jobs);
        bool waiting = requests_resume(agent);
        waiting = link_receive(&agent->link, &agent->mux) || waiting;
        bool more = link_send(&agent->link, &agent->mux);
        more = more || (waiting && mux_accepts(&agent->mux));
        check_link(agent);
        check_power(agent);
        timeout = idle_timeout(agent);
        if (agent->boot.phase == BOOT_RUNNING)
            timeout = boot_step(agent) == BOOT_WAIT ? BOOT_POLL_MS : 0;
        if (more || jobs_pending(&agent->jobs))
            timeout = 0;
    }
}

static struct agent the_agent; /* large, and zero until touched */

__attribute__((noreturn)) static void run_init(char **argv)
{
    struct agent *agent = &the_agent;
    struct failure failed;

    agent->argv = argv;
    int port = boot_begin(&agent->boot, &failed);
    if (port < 0) {
        console_say("failed: initramfs: %s", failed.message);
        power_cut();
    }
    launch_init(true);
    if (!agent_init(agent, AGENT_MINIMAL) || !link_open(&agent->link, &agent->loop, port, true)) {
        console_say("failed: initramfs: event loop: %s", strerror(errno));
        power_cut();
    }
    serve(agent);
}

static int run_hosted(const char *number, bool listen)
{
    struct agent *agent = &the_agent;
    char *end;
    long fd = strtol(number, &end, 10);

    if (*end != '\0' || end == number || fd < 0 || fd > INT_MAX) {
        fputs(usage_text, stderr);
        return 2;
    }
    boot_skip(&agent->boot);
    launch_init(false);
    if (!agent_init(agent, AGENT_HOSTED) ||
        !(listen ? listen_on(agent, (int)fd) : link_open(&agent->link, &agent->loop, (int)fd, false))) {
        console_say("descriptor %ld: %s", fd, strerror(errno));
        return 1;
    }
    console_say("channel");
    serve(agent);
}

int main(int argc, char **argv)
{
    reset_signals();
    if (argc == 3 && strcmp(argv[1], "--fd") == 0)
        return run_hosted(argv[2], false);
    if (argc == 3 && strcmp(argv[1], "--listen") == 0)
        return run_hosted(argv[2], true);
    if (argc == 5 && strcmp(argv[1], "--survey") == 0)
        return survey_main(argv + 2);
    if (argc == 2 && strcmp(argv[1], "--version") == 0) {
        puts("atoll-agent " ATOLL_VERSION);
        return 0;
    }
    if (getpid() == 1)
        run_init(argv); /* whatever arguments the kernel passes on to the root's init */
    bool help = argc == 2 && strcmp(argv[1], "--help") == 0;
    fputs(usage_text, help ? stdout : stderr);
    return help ? 0 : 2;
}
