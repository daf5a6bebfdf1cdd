#include "tree_links.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { FIRST_CAPACITY = 64 };

/* Where the file is, or an empty slot for it. */
static struct tree_link *find(const struct tree_links *links, dev_t device, ino_t inode)
{
    uint64_t hash = ((uint64_t)inode ^ (uint64_t)device << 40) * UINT64_C(0x9e3779b97f4a7c15);
    size_t at = (size_t)(hash >> 32);

    for (;; at++) {
        struct tree_link *slot = &links->slots[at & (links->capacity - 1)];

        if (!slot->path || (slot->device == device && slot->inode == inode))
            return slot;
    }
}

static void grow(struct tree_links *links)
{
    size_t capacity = links->capacity ? 2 * links->capacity : FIRST_CAPACITY;
    struct tree_links grown = {calloc(capacity, sizeof(*grown.slots)), capacity, links->count};

    if (!grown.slots)
        return;
    for (size_t i = 0; i < links->capacity; i++) {
        const struct tree_link *slot = &links->slots[i];

        if (slot->path)
            *find(&grown, slot->device, slot->inode) = *slot;
    }
    free(links->slots);
    *links = grown;
}

const char *tree_links_note(struct tree_links *links, dev_t device, ino_t inode, const char *path)
{
    if (2 * links->count >= links->capacity && links->count < TREE_LINKS_MAX)
        grow(links);
    if (links->capacity == 0)
        return NULL;
    struct tree_link *slot = find(links, device, inode);
    if (slot->path)
        return slot->path;
    if (2 * links->count >= links->capacity)
        return NULL;
    slot->path = strdup(path);
    if (slot->path) {
        slot->device = device;
        slot->inode = inode;
        links->count++;
    }
    return NULL;
}

void tree_links_free(struct tree_links *links)
{
    for (size_t i = 0; i < links->capacity; i++)
        free(links->slots[i].path);
    free(links->slots);
}
