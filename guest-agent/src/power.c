#include "power.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "console.h"
#include "file.h"
#include "init.h"
#include "mounts.h"

enum {
    POLL_MS = 5,
    KILL_WAIT_MS = 1000,
    ASK_AGAIN_MS = 500, /* the kernel drops signals to an init that is not yet ready for them */
    EXIT_REBOOT = 3, /* of a hosted agent that plays a machine */
};

void power_cut(void)
{
    reboot(RB_POWER_OFF);
    for (;;)
        pause(); /* unless it is process 1 of a container: exiting would be a kernel panic elsewhere */
}

/* Kernel threads and zombies have no command line. */
static bool has_command_line(long pid)
{
    char path[64];
    char line[2] = "";

    snprintf(path, sizeof(path), "/proc/%ld/cmdline", pid);
    return file_read_line(path, line, sizeof(line)) && *line;
}

/* Whether a process is left besides the first one and the agent. Reaps on the way. */
static bool others_run(void)
{
    pid_t reaped;

    while ((reaped = waitpid(-1, NULL, WNOHANG)) > 0)
        continue;
    if (getpid() == 1)
        return reaped == 0;

    DIR *entries = opendir("/proc");
    const struct dirent *entry;
    bool found = false;

    while (entries && !found && (entry = readdir(entries))) {
        long pid = strtol(entry->d_name, NULL, 10);

        found = pid > 1 && pid != getpid() && has_command_line(pid);
    }
    if (entries)
        closedir(entries);
    return found;
}

static void await_others(int64_t limit_ms)
{
    int64_t until = boot_ns() + limit_ms * NS_PER_MS;

    while (others_run() && boot_ns() < until)
        usleep(POLL_MS * 1000);
}

static void hang_up_terminals(const struct executions *executions)
{
    list_each(item, after, &executions->all) {
        const struct execution *execution = list_entry(item, struct execution, link);

        if (execution->running && execution->tty)
            launch_signal(execution->pid, SIGHUP); /* interactive shells ignore SIGTERM */
    }
}

/* All that is left has been sent SIGTERM. */
__attribute__((noreturn)) static void end_machine(const struct agent *agent, bool reboots)
{
    console_say(reboots ? "reboot" : "power off");
    hang_up_terminals(&agent->executions);
    await_others(agent->power.grace_ms);
    kill(-1, SIGKILL);
    await_others(KILL_WAIT_MS);
    mount_quiesce(agent->boot.data_mount);
    reboot(reboots ? RB_AUTOBOOT : RB_POWER_OFF);
    power_cut();
}

__attribute__((noreturn)) static void stop_machine(const struct agent *agent)
{
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    end_machine(agent, agent->power.reboot);
}

/*
 * systemd-shutdown sends SIGTERM to all that is left, waits for it, the agent included, and then unmounts what it
 * sees. It does not see the file system under the root's overlay, which would stay with a journal to be replayed. So
 * the agent does the rest while systemd waits. If the agent came to grief, systemd would kill it and go on.
 */
void power_init_ends(struct agent *agent)
{
    enum init_end end = init_end();

    if (end == INIT_RUNS)
        return;
    if (end == INIT_ENDS) {
        mount_quiesce(agent->boot.data_mount);
        _exit(0);
    }
    end_machine(agent, end == INIT_REBOOTS);
}

/* Under an init of the root. To stop its units one after the other takes systemd seconds of an emulated processor:
 * that it does only when asked for. */
static void stop_root(struct agent *agent)
{
    if (!agent->power.orderly && init_freeze())
        stop_machine(agent);
    init_ask(agent->power.reboot);
    agent->power.ask_again = boot_ns() + (int64_t)ASK_AGAIN_MS * NS_PER_MS;
}

void power_ask_again(struct agent *agent)
{
    struct power *power = &agent->power;

    if (power->ask_again == 0 || boot_ns() < power->ask_again)
        return;
    init_ask(power->reboot);
    power->ask_again = boot_ns() + (int64_t)ASK_AGAIN_MS * NS_PER_MS;
}

/* True once no process that an execution started is left. */
static bool executions_ended(const struct executions *executions)
{
    while (waitpid(-1, NULL, WNOHANG) > 0)
        continue;
    list_each(item, after, &executions->all) {
        const struct execution *execution = list_entry(item, struct execution, link);

        if (execution->running && kill(execution->pid, 0) == 0)
            return false;
    }
    return true;
}

/* A hosted agent that plays a machine ends its commands as a machine does: asked first. */
static void end_executions(const struct agent *agent)
{
    int64_t until = boot_ns() + agent->power.grace_ms * NS_PER_MS;

    list_each(item, after, &agent->executions.all) {
        const struct execution *execution = list_entry(item, struct execution, link);

        if (execution->running)
            launch_signal(execution->pid, SIGTERM);
    }
    while (!executions_ended(&agent->executions) && boot_ns() < until)
        usleep(POLL_MS * 1000);
}

__attribute__((noreturn)) static void leave_host(struct agent *agent)
{
    if (agent->listener.fd >= 0)
        end_executions(agent);
    list_each(item, after, &agent->executions.all)
        execution_release(&agent->executions, list_entry(item, struct execution, link));
    exit(agent->listener.fd >= 0 && agent->power.reboot ? EXIT_REBOOT : 0);
}

void power_carry_out(struct agent *agent)
{
    agent->power.requested = false;
    switch (agent->mode) {
    case AGENT_HOSTED:
        leave_host(agent);
    case AGENT_MINIMAL:
        stop_machine(agent);
    case AGENT_HANDED_OVER:
        stop_root(agent);
        break;
    }
}
