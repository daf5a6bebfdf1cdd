/*
 * Why a request, or the boot, failed: the payload of RESET. Agent protocol, sections 2 and 5.
 */
#ifndef ATOLL_FAILURE_H
#define ATOLL_FAILURE_H

enum { FAILURE_MESSAGE_MAX = 256 };

/* RESET codes. */
#define FAIL_PROTOCOL "protocol"
#define FAIL_UNKNOWN_METHOD "unknown_method"
#define FAIL_INVALID "invalid"
#define FAIL_NOT_FOUND "not_found"
#define FAIL_EXISTS "exists"
#define FAIL_RESOURCE "resource"
#define FAIL_GONE "gone"
#define FAIL_OS "os"
#define FAIL_BOOT "boot"
#define FAIL_CANCELLED "cancelled"

struct failure {
    const char *code;
    const char *stage; /* NULL if it does not matter */
    int error;         /* errno, or 0 */
    char message[FAILURE_MESSAGE_MAX]; /* UTF-8, whatever was put into it */
};

__attribute__((format(printf, 2, 3))) struct failure failure(const char *code, const char *format, ...);

/* A failed system call: the message is followed by the text of `error`. */
__attribute__((format(printf, 3, 4))) struct failure failure_os(int error, const char *stage,
                                                               const char *format, ...);

#endif
