/*
 * Files with several names, by device and inode: the first name of each that was met.
 */
#ifndef ATOLL_TREE_LINKS_H
#define ATOLL_TREE_LINKS_H

#include <stddef.h>
#include <sys/types.h>

enum { TREE_LINKS_MAX = 1 << 18 }; /* beyond, a further name becomes a file of its own */

struct tree_link {
    dev_t device;
    ino_t inode;
    char *path; /* NULL in an empty slot */
};

struct tree_links {
    struct tree_link *slots;
    size_t capacity; /* 0, or a power of two */
    size_t count;
};

/* The path under which the file was noted; otherwise NULL, and it is noted under this one. */
const char *tree_links_note(struct tree_links *links, dev_t device, ino_t inode, const char *path);
void tree_links_free(struct tree_links *links);

#endif
