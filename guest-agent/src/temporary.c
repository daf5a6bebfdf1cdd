#include "temporary.h"

#include <stdint.h>
#include <stdio.h>
#include <sys/random.h>

/* Whoever may write there, too, cannot know the name before it is there. It must not wait for entropy. */
bool temporary_choose(char name[TEMPORARY_SIZE])
{
    uint64_t random;

    if (getrandom(&random, sizeof(random), GRND_INSECURE) != (ssize_t)sizeof(random))
        return false;
    snprintf(name, TEMPORARY_SIZE, ".atoll-%016llx", (unsigned long long)random);
    return true;
}
