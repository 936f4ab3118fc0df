/* SiLU and its derivatives on a CPU, float32, several of them in one pass; called from native.py.
 *
 * With s = sigmoid(x), c = 1 - s and w = s c:
 *   SiLU = x s, SiLU' = s + x w, SiLU'' = w (2 + x (c - s)), SiLU''' = w (3 (c - s) + x ((c - s)^2 - 2 w)).
 * Every element is computed alike wherever it stands, so results do not depend on how rows are grouped.
 */
#include <math.h>

#include "common.h"

enum { LEAST_PER_THREAD = 16384 };

/* exp(x) for x <= 0, 0 below -87.7: 2^n, with 0 for 2^-127, times a polynomial of x - n log 2, |x - n log 2| < 0.35. Its
 * terms are added up in pairs: in one chain, each would wait for the one before. */
INLINE float exp_of_negative(float x) {
    const float to_integer = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
    float clipped = -88.0f > x ? -88.0f : x;
    float shifted = clipped * 1.44269504f + to_integer;
    float n = shifted - to_integer;
    float r = clipped - n * 0.693359375f + n * 2.12194440e-4f, square = r * r;
    float high = (1.0f / 24 + r * (1.0f / 120)) + square * (1.0f / 720 + r * (1.0f / 5040));
    float found = 1.0f + (r + square * ((0.5f + r * (1.0f / 6)) + square * high));
    uint32_t bits; /* of `shifted`, whose last ones are n, then of 2^n */
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4B400000u + 127u) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return found * power;
}

/* s = own * inverse and c = other * inverse, both to the last digits, and w = e * inverse^2, with e = exp(-|x|): what
 * does not need the quotient does not wait for it. */
typedef struct {
    float e, own, other, inverse;
} Sigmoid;

INLINE Sigmoid sigmoid(float x) {
    float e = exp_of_negative(-fabsf(x));
    Sigmoid found = {e, x < 0.0f ? e : 1.0f, x < 0.0f ? 1.0f : e, 1.0f / (1.0f + e)};
    return found;
}

INLINE float value(float x, Sigmoid at) { return x * at.own * at.inverse; }

INLINE float slope(float x, Sigmoid at) { return (at.own + x * at.e * at.inverse) * at.inverse; }

INLINE float product_of_both(Sigmoid at) { return at.e * at.inverse * at.inverse; }

INLINE float bend(float x, Sigmoid at) {
    return product_of_both(at) * (2.0f + x * ((at.other - at.own) * at.inverse));
}

INLINE float derivative(float x, int order) {
    Sigmoid at = sigmoid(x);
    float w = product_of_both(at), q = (at.other - at.own) * at.inverse;
    switch (order) {
    case 0:
        return value(x, at);
    case 1:
        return slope(x, at);
    case 2:
        return bend(x, at);
    default:
        return w * (3.0f * q + x * (q * q - 2.0f * w));
    }
}

#define LOOP(BODY) \
    _Pragma("omp simd") for (int64_t i = lo; i < hi; i++) { BODY; }

/* What a part reads and writes; which of them, the functions at the end say. */
typedef struct {
    const float *x, *factor, *other, *base;
    float *out, *second, *third;
    float alpha, scale;
} Arguments;

typedef void Part(const Arguments *of, int64_t lo, int64_t hi);

INLINE void sum_of_order(const Arguments *of, int64_t lo, int64_t hi, int order) {
    const float *x = of->x, *factor = of->factor, *other = of->other, *base = of->base;
    const float alpha = of->alpha, scale = of->scale;
    float *out = of->out;
    if (factor && other)
        LOOP(out[i] = alpha * factor[i] * other[i] * derivative(x[i], order))
    else if (factor && base)
        LOOP(out[i] = alpha * factor[i] * derivative(x[i], order) + scale * base[i])
    else if (factor)
        LOOP(out[i] = alpha * factor[i] * derivative(x[i], order))
    else if (base)
        LOOP(out[i] = alpha * derivative(x[i], order) + scale * base[i])
    else
        LOOP(out[i] = alpha * derivative(x[i], order))
}

FOR_EACH_CPU static void sum_0(const Arguments *of, int64_t lo, int64_t hi) { sum_of_order(of, lo, hi, 0); }
FOR_EACH_CPU static void sum_1(const Arguments *of, int64_t lo, int64_t hi) { sum_of_order(of, lo, hi, 1); }
FOR_EACH_CPU static void sum_2(const Arguments *of, int64_t lo, int64_t hi) { sum_of_order(of, lo, hi, 2); }
FOR_EACH_CPU static void sum_3(const Arguments *of, int64_t lo, int64_t hi) { sum_of_order(of, lo, hi, 3); }

FOR_EACH_CPU static void value_and_gradient(const Arguments *of, int64_t lo, int64_t hi) {
    const float *x = of->x, *grad = of->factor, *base = of->base;
    float *of_value = of->out, *of_x = of->second;
    if (base)
        LOOP(Sigmoid at = sigmoid(x[i]); of_value[i] = value(x[i], at); of_x[i] = grad[i] * slope(x[i], at) + base[i])
    else
        LOOP(Sigmoid at = sigmoid(x[i]); of_value[i] = value(x[i], at); of_x[i] = grad[i] * slope(x[i], at))
}

FOR_EACH_CPU static void tangents(const Arguments *of, int64_t lo, int64_t hi) {
    const float *x = of->x, *tangent = of->factor, *grad = of->other;
    float *behind = of->out, *bent = of->second, *of_x = of->third;
    LOOP(Sigmoid at = sigmoid(x[i]); float first = slope(x[i], at); float t = tangent[i]; float g = grad[i];
         behind[i] = t * first; bent[i] = t * g * bend(x[i], at); of_x[i] = g * first)
}

/* Call `part` for elements 0 to n, shared out among threads. */
static void in_parts(Part *part, const Arguments *of, int64_t n, int threads) {
    int64_t most = n / LEAST_PER_THREAD;
    if (threads > most) threads = (int)most;
    if (threads <= 1) {
        part(of, 0, n);
        return;
    }
    int64_t size = (n / threads + 64) / 64 * 64;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int number = 0; number < threads; number++) {
        int64_t lo = number * size, hi = lo + size;
        part(of, lo < n ? lo : n, hi < n ? hi : n);
    }
}

/* Of which sources this library was made. */
const char *ocpgem_sources(void) { return OCPGEM_SOURCES; }

/* out = alpha factor other (the derivative of SiLU of an order from 0 to 3)(x) + scale base; factor, other, base may be
 * NULL, other and base not both be given; out may be any of the others. */
void ocpgem_silu(float *out, const float *x, const float *factor, const float *other, const float *base, int64_t n,
                 int order, float alpha, float scale, int threads) {
    Part *parts[] = {sum_0, sum_1, sum_2, sum_3};
    Arguments of = {.x = x, .factor = factor, .other = other, .base = base, .out = out, .alpha = alpha, .scale = scale};
    in_parts(parts[order], &of, n, threads);
}

/* value = SiLU(x), of_x = grad SiLU'(x) + base; base may be NULL, of_x be grad. */
void ocpgem_silu_and_gradient(float *value, float *of_x, const float *x, const float *grad, const float *base,
                              int64_t n, int threads) {
    Arguments of = {.x = x, .factor = grad, .base = base, .out = value, .second = of_x};
    in_parts(value_and_gradient, &of, n, threads);
}

/* behind = tangent SiLU'(x), bent = tangent grad SiLU''(x), of_x = grad SiLU'(x); bent may be tangent. */
void ocpgem_silu_tangents(float *behind, float *bent, float *of_x, const float *x, const float *tangent,
                          const float *grad, int64_t n, int threads) {
    Arguments of = {.x = x, .factor = tangent, .other = grad, .out = behind, .second = bent, .third = of_x};
    in_parts(tangents, &of, n, threads);
}
