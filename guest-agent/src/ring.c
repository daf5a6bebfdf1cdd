#include "ring.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void ring_init(struct ring *ring, size_t capacity)
{
    *ring = (struct ring){.capacity = capacity};
}

void ring_free(struct ring *ring)
{
    free(ring->base);
    ring_init(ring, ring->capacity);
}

bool ring_reserve(struct ring *ring)
{
    if (!ring->base)
        ring->base = malloc(ring->capacity);
    return ring->base != NULL;
}

static size_t position(const struct ring *ring, size_t offset)
{
    size_t at = ring->start + offset;

    return at < ring->capacity ? at : at - ring->capacity;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

uint8_t *ring_space(struct ring *ring, size_t *room)
{
    size_t at = position(ring, ring->used);

    *room = smaller(ring_room(ring), ring->capacity - at);
    return ring->base + at;
}

void ring_filled(struct ring *ring, size_t size)
{
    assert(size <= ring_room(ring));
    ring->used += size;
}

const uint8_t *ring_peek(const struct ring *ring, size_t *size)
{
    *size = smaller(ring->used, ring->capacity - ring->start);
    return ring->base + ring->start;
}

void ring_put(struct ring *ring, const uint8_t *bytes, size_t size)
{
    assert(size <= ring_room(ring));
    while (size > 0) {
        size_t part;
        uint8_t *space = ring_space(ring, &part);

        part = smaller(part, size);
        memcpy(space, bytes, part);
        ring_filled(ring, part);
        bytes += part;
        size -= part;
    }
}

void ring_copy(const struct ring *ring, size_t offset, uint8_t *out, size_t size)
{
    assert(offset <= ring->used && size <= ring->used - offset);
    if (size == 0)
        return;

    size_t at = position(ring, offset);
    size_t first = smaller(size, ring->capacity - at);

    memcpy(out, ring->base + at, first);
    memcpy(out + first, ring->base, size - first);
}

void ring_shorten(struct ring *ring, size_t size)
{
    assert(size <= ring->used);
    ring->used = size;
}

void ring_drop(struct ring *ring, size_t size)
{
    assert(size <= ring->used);
    ring->used -= size;
    ring->start = ring->used == 0 ? 0 : position(ring, size);
}
