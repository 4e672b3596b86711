// What the mock upstream and the load generator must agree on: the clock, and the sum over what is sent.
#ifndef BENCH_MEASURE_H
#define BENCH_MEASURE_H
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#define NS_PER_S 1000000000ull
#define NS_PER_US 1000ull

static inline uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

// FNV-1a, 64 bits: order matters, any split into pieces gives the same sum.
// http://www.isthe.com/chongo/tech/comp/fnv/
#define SUM_START 0xcbf29ce484222325ull

static inline uint64_t sum_byte(uint64_t sum, unsigned char byte) { return (sum ^ byte) * 0x100000001b3ull; }

static inline uint64_t sum_bytes(uint64_t sum, const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) sum = sum_byte(sum, (unsigned char)bytes[i]);
    return sum;
}
#endif
