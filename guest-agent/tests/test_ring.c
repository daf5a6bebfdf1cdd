#include "ring.h"

#include <string.h>

#include "check.h"

enum { CAPACITY = 37 };

/* Against a model that is too simple to be wrong: bytes number n have the value n. */
static void bytes_come_out_as_they_went_in(void)
{
    struct ring ring;
    uint8_t bytes[CAPACITY];
    uint8_t written = 0;
    uint8_t read = 0;

    ring_init(&ring, CAPACITY);
    CHECK(ring_reserve(&ring));
    srand(1);
    for (int round = 0; round < 10000; round++) {
        size_t size = (size_t)rand() % (ring_room(&ring) + 1);
        for (size_t i = 0; i < size; i++)
            bytes[i] = written++;
        ring_put(&ring, bytes, size);

        size_t offset = (size_t)rand() % (ring.used + 1);
        size = (size_t)rand() % (ring.used - offset + 1);
        ring_copy(&ring, offset, bytes, size);
        for (size_t i = 0; i < size; i++)
            CHECK(bytes[i] == (uint8_t)(read + offset + i));

        size_t peeked;
        const uint8_t *oldest = ring_peek(&ring, &peeked);
        CHECK(peeked > 0 || ring.used == 0);
        CHECK(peeked == 0 || *oldest == read);

        size = (size_t)rand() % (ring.used + 1);
        ring_drop(&ring, size);
        read = (uint8_t)(read + size);
    }
    ring_free(&ring);
}

static void an_empty_ring_starts_at_its_beginning(void)
{
    struct ring ring;
    size_t room;

    ring_init(&ring, CAPACITY);
    CHECK(ring_reserve(&ring));
    ring_put(&ring, (const uint8_t *)"abc", 3);
    ring_drop(&ring, 3);
    CHECK(ring_space(&ring, &room) == ring.base && room == CAPACITY);
    ring_free(&ring);
}

static void space_is_contiguous_and_never_beyond_the_room(void)
{
    struct ring ring;
    uint8_t bytes[CAPACITY] = {0};
    size_t room;

    ring_init(&ring, CAPACITY);
    CHECK(ring_reserve(&ring));
    ring_put(&ring, bytes, 30);
    ring_drop(&ring, 20);
    CHECK(ring_space(&ring, &room) == ring.base + 30 && room == CAPACITY - 30);
    ring_filled(&ring, room);
    CHECK(ring_space(&ring, &room) == ring.base && room == 20);
    ring_filled(&ring, room);
    ring_space(&ring, &room);
    CHECK(room == 0);
    ring_free(&ring);
}

const struct test ring_tests[] = {
    {"bytes come out as they went in", bytes_come_out_as_they_went_in},
    {"an empty ring starts at its beginning", an_empty_ring_starts_at_its_beginning},
    {"space is contiguous and never beyond the room", space_is_contiguous_and_never_beyond_the_room},
    {0},
};
