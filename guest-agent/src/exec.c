#include "exec.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clock.h"

void executions_init(struct executions *executions, const struct loop *loop)
{
    *executions = (struct executions){.loop = loop};
    list_init(&executions->all);
}

struct execution *execution_find(const struct executions *executions, const char *id)
{
    list_each(item, after, &executions->all) {
        struct execution *execution = list_entry(item, struct execution, link);

        if (strcmp(execution->id, id) == 0)
            return execution;
    }
    return NULL;
}

static void execution_free(struct execution *execution)
{
    list_each(item, after, &execution->waiters)
        mux_cancel(list_entry(item, struct stream, link), "the execution was released");
    output_free(&execution->outputs[0]);
    output_free(&execution->outputs[1]);
    input_free(&execution->input);
    free(execution->command);
    free(execution);
}

static bool remember_command(struct execution *execution, char *const *argv)
{
    execution->command = malloc(EXEC_COMMAND_MAX);
    for (; execution->command && *argv && execution->command_size < EXEC_COMMAND_MAX; argv++) {
        size_t room = EXEC_COMMAND_MAX - execution->command_size;
        int size = snprintf(execution->command + execution->command_size, room, "%s", *argv);

        execution->command_size += (size_t)size < room ? (size_t)size + 1 : room;
    }
    return execution->command;
}

static struct execution *execution_new(const char *id, const struct launch *start)
{
    struct execution *execution = calloc(1, sizeof(*execution));

    if (!execution)
        return NULL;
    strcpy(execution->id, id);
    execution->tty = start->tty;
    execution->has_input = start->input;
    list_init(&execution->link);
    list_init(&execution->waiters);
    bool whole = remember_command(execution, start->argv);
    whole = output_init(&execution->outputs[0], start->tty) && whole;
    whole = output_init(&execution->outputs[1], false) && whole;
    whole = input_init(&execution->input, start->input, start->tty) && whole;
    if (whole)
        return execution;
    execution_free(execution);
    return NULL;
}

static bool watch(const struct executions *executions, struct execution *execution,
                  const struct launched *launched)
{
    struct source *sources[] = {
        &execution->input.source,
        &execution->outputs[0].source,
        &execution->outputs[1].source,
    };
    bool watched = true;

    input_opened(&execution->input, launched->input);
    sources[1]->fd = launched->output;
    sources[2]->fd = launched->error;
    for (size_t i = 0; i < 3; i++)
        watched = (sources[i]->fd < 0 || loop_watch(executions->loop, sources[i])) && watched;
    return watched;
}

struct execution *execution_start(struct executions *executions, const char *id,
                                  const struct launch *start, struct failure *failed)
{
    struct launched launched;
    struct execution *execution =
        executions->count < EXEC_MAX ? execution_new(id, start) : NULL;

    if (!execution) {
        *failed = failure(FAIL_RESOURCE, "too many executions");
        return NULL;
    }
    execution->started = boot_ns();
    if (!launch(start, &launched, failed)) {
        execution_free(execution);
        return NULL;
    }
    execution->pid = launched.pid;
    execution->running = true;
    list_append(&executions->all, &execution->link);
    executions->count++;
    if (!watch(executions, execution, &launched)) {
        *failed = failure_os(errno, "exec", "epoll");
        execution_release(executions, execution);
        return NULL;
    }
    input_flush(&execution->input);
    return execution;
}

void execution_release(struct executions *executions, struct execution *execution)
{
    if (execution->running)
        launch_signal(execution->pid, SIGKILL);
    list_remove(&execution->link);
    executions->count--;
    execution_free(execution);
}

struct execution *execution_ended(const struct executions *executions, pid_t pid, int status,
                                  const struct rusage *usage)
{
    list_each(item, after, &executions->all) {
        struct execution *execution = list_entry(item, struct execution, link);

        if (execution->pid != pid || !execution->running)
            continue;
        execution->running = false;
        execution->ended = boot_ns();
        execution->status = status;
        execution->usage = *usage;
        execution->outputs[0].kept = false;
        for (size_t i = 0; i < 2; i++)
            execution->written[i] = output_written(&execution->outputs[i]);
        return execution;
    }
    return NULL;
}
