#include "power.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clock.h"
#include "console.h"
#include "mounts.h"

enum {
    POLL_MS = 5,
    KILL_WAIT_MS = 1000,
    EXIT_REBOOT = 3, /* of a hosted agent that plays a machine */

    /* Numbers of glibc's SIGRTMIN+4 and +5, which systemd takes as poweroff and reboot; musl's SIGRTMIN is
     * another. */
    SYSTEMD_POWEROFF = 34 + 4,
    SYSTEMD_REBOOT = 34 + 5,
};

void power_cut(void)
{
    reboot(RB_POWER_OFF);
    for (;;)
        pause(); /* unless it is process 1 of a container: exiting would be a kernel panic elsewhere */
}

/* Reaps until no process is left, or the time is over. */
static void await_all(int64_t limit_ms)
{
    int64_t until = boot_ns() + limit_ms * NS_PER_MS;

    for (;;) {
        pid_t pid = waitpid(-1, NULL, WNOHANG);

        if (pid < 0 && errno == ECHILD)
            return;
        if (pid > 0)
            continue;
        if (boot_ns() >= until)
            return;
        usleep(POLL_MS * 1000);
    }
}

static void hang_up_terminals(const struct executions *executions)
{
    list_each(item, after, &executions->all) {
        const struct execution *execution = list_entry(item, struct execution, link);

        if (execution->running && execution->tty)
            launch_signal(execution->pid, SIGHUP); /* interactive shells ignore SIGTERM */
    }
}

__attribute__((noreturn)) static void stop_machine(const struct agent *agent)
{
    const struct power *power = &agent->power;

    console_say(power->reboot ? "reboot" : "power off");
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    hang_up_terminals(&agent->executions);
    await_all(power->grace_ms);
    kill(-1, SIGKILL);
    await_all(KILL_WAIT_MS);
    mount_quiesce(agent->boot.data_mount);
    reboot(power->reboot ? RB_AUTOBOOT : RB_POWER_OFF);
    power_cut();
}

__attribute__((noreturn)) static void leave_host(struct agent *agent)
{
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
        kill(1, agent->power.reboot ? SYSTEMD_REBOOT : SYSTEMD_POWEROFF);
        break;
    }
}
