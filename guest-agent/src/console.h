/*
 * One line for whoever watches the console: boot stages and what failed.
 */
#ifndef ATOLL_CONSOLE_H
#define ATOLL_CONSOLE_H

/* Makes descriptors 0 to 2 the console, or /dev/null where there is none; lines then go to the kernel log. */
void console_open(void);

/* From now on lines go to /dev/hvc1, too, as soon as it is there. */
void console_use_log_port(void);

/* Writes "atoll: " and the text. Before console_open(), to standard error. */
__attribute__((format(printf, 1, 2))) void console_say(const char *format, ...);

#endif
