/*
 * dial.h without a network: the number of the port says what the server does.
 */
#ifndef ATOLL_FAKE_DIAL_H
#define ATOLL_FAKE_DIAL_H

/* Closes what servers have open. */
void fake_dial_reset(void);

#endif
