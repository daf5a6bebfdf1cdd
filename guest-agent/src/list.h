/*
 * Intrusive doubly linked list. An item that is in no list points to itself, so list_remove() may be
 * called whether or not the item is in a list.
 */
#ifndef ATOLL_LIST_H
#define ATOLL_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
    struct list *prev;
    struct list *next;
};

/* The structure of which `item` is the member `member`. */
#define list_entry(item, type, member) ((type *)(void *)((char *)(item) - offsetof(type, member)))

/* Visits each item; the current one may be removed or freed on the way. */
#define list_each(item, after, head)                                                               \
    for (struct list *item = (head)->next, *after = item->next; item != (head);                    \
         item = after, after = item->next)

static inline void list_init(struct list *list)
{
    list->prev = list;
    list->next = list;
}

static inline bool list_empty(const struct list *list)
{
    return list->next == list;
}

static inline void list_append(struct list *head, struct list *item)
{
    item->prev = head->prev;
    item->next = head;
    head->prev->next = item;
    head->prev = item;
}

static inline void list_remove(struct list *item)
{
    item->prev->next = item->next;
    item->next->prev = item->prev;
    list_init(item);
}

#endif
