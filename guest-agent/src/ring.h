/*
 * Byte ring of fixed capacity. An empty ring starts again at its beginning, so only as much of its memory
 * is ever touched as was held at once.
 */
#ifndef ATOLL_RING_H
#define ATOLL_RING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ring {
    uint8_t *base;
    size_t capacity;
    size_t start;
    size_t used;
};

void ring_init(struct ring *ring, size_t capacity);
void ring_free(struct ring *ring);

/* Allocates the memory; until then the ring must not be filled. */
bool ring_reserve(struct ring *ring);

static inline size_t ring_room(const struct ring *ring)
{
    return ring->capacity - ring->used;
}

/* The next contiguous free bytes, at most ring_room(); ring_filled() takes them into use. */
uint8_t *ring_space(struct ring *ring, size_t *room);
void ring_filled(struct ring *ring, size_t size);

/* The oldest contiguous bytes. */
const uint8_t *ring_peek(const struct ring *ring, size_t *size);

/* Adds bytes for which there is room. */
void ring_put(struct ring *ring, const uint8_t *bytes, size_t size);

/* Copies `size` bytes that lie `offset` bytes behind the oldest. */
void ring_copy(const struct ring *ring, size_t offset, uint8_t *out, size_t size);

/* Forgets the newest bytes, but for `size`. */
void ring_shorten(struct ring *ring, size_t size);

/* Forgets the oldest `size` bytes. */
void ring_drop(struct ring *ring, size_t size);

#endif
