/* The sum of the Internet checksum (RFC 1071), for the host's end of the network path: without a C library, so
 * that any interpreter can load it.
 */

#include <stddef.h>
#include <stdint.h>

uint32_t atoll_ones_sum(const unsigned char *base, size_t start, size_t size);

/* The 16-bit words of size bytes at base + start, in this host's byte order, as ones' complement adds them up: 0
 * to 65534. An odd last byte is followed by a zero. Words of 32 bits are added, which is the same modulo 65535; a
 * sum of 64 bits has room for the carries of 16 GiB.
 */
uint32_t atoll_ones_sum(const unsigned char *base, size_t start, size_t size)
{
    const unsigned char *at = base + start;
    uint64_t sum = 0;
    uint32_t word;
    for (; size >= sizeof(word); size -= sizeof(word), at += sizeof(word)) {
        __builtin_memcpy(&word, at, sizeof(word));
        sum += word;
    }
    for (unsigned shift = 0; size > 0; size--, shift += 8)
        sum += (uint64_t)*at++ << shift;
    return (uint32_t)(sum % 65535);
}
