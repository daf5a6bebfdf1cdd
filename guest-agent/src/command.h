/*
 * The parameters of exec.start made into what launch() takes. Agent protocol, section 6.
 */
#ifndef ATOLL_COMMAND_H
#define ATOLL_COMMAND_H

#include "launch.h"
#include "request.h"

struct command {
    struct launch launch;
    struct user user;
    char cwd[PATH_MAX];
    bool as_container; /* with the environment and the directory that engines of containers give */

    /* Of all strings: their pointers, and their bytes. */
    char **pointers;
    char *text;
    size_t text_used;
    size_t text_size;
};

/* Fails the request itself when it returns false. Otherwise command_free() is due. */
bool command_decode(struct request *request, struct command *command);
void command_free(struct command *command);

#endif
