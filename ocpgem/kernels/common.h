/* What the other sources share. */
#ifndef OCPGEM_COMMON_H
#define OCPGEM_COMMON_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
/* The processor that runs this chooses among the three. */
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__)
#error "gcc 12 or later is needed: without a choice of instructions torch's operations are faster"
#else
#define FOR_EACH_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float Vector __attribute__((vector_size(32)));

enum { WIDTH = 8 };

INLINE Vector load(const float *from) {
    Vector found;
    memcpy(&found, from, sizeof found);
    return found;
}

INLINE void store(float *to, Vector x) { memcpy(to, &x, sizeof x); }

INLINE float sum_of(Vector x) { return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7])); }

#endif
