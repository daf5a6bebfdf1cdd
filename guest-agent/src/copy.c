/*
 * memcpy() for the emulated CPU. The C library's uses "rep movs", which TCG carries out element by element, at a
 * tenth of the speed of vector moves; on real hardware the two are alike.
 */
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__)

typedef uint64_t vector __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t word __attribute__((aligned(1), may_alias));

enum { BLOCK = 4 * sizeof(vector) };

/* The compiler would turn the loops into calls of memcpy(), that is, of itself. */
__attribute__((no_builtin)) void *memcpy(void *restrict to, const void *restrict from, size_t size)
{
    uint8_t *out = to;
    const uint8_t *in = from;

    for (; size >= BLOCK; size -= BLOCK, in += BLOCK, out += BLOCK) {
        const vector *source = (const vector *)in;
        vector *target = (vector *)out;
        vector a = source[0], b = source[1], c = source[2], d = source[3];

        target[0] = a;
        target[1] = b;
        target[2] = c;
        target[3] = d;
    }
    for (; size >= sizeof(word); size -= sizeof(word), in += sizeof(word), out += sizeof(word))
        *(word *)out = *(const word *)in;
    while (size-- > 0)
        *out++ = *in++;
    return to;
}

#else

typedef int nothing_to_do; /* a translation unit must declare something */

#endif
