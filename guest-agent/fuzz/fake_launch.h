/*
 * launch.h without processes: a command writes some bytes, the more the longer its first argument is, and ends
 * when the fuzzer says so.
 */
#ifndef ATOLL_FAKE_LAUNCH_H
#define ATOLL_FAKE_LAUNCH_H

enum { FAKE_FIRST_PID = 1000000 };

/* Closes what the commands have open. */
void fake_launch_reset(void);

#endif
