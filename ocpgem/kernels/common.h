/* What silu.c and products.c share. */
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

#endif
