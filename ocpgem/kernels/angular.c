/* The three products of angular.py on a CPU, float32; called from native.py.
 *
 * weights Y [n][edges][functions], density D [n][functions][channels], values G [n][edges][degrees][channels]; function
 * k has the degree floor(sqrt(k)), or 0 if there is only one. channels is a multiple of WIDTH. Every element is a sum in
 * the order of its terms, so rows of zeros, which pad the tables, change no digit of the others.
 */
#include "product.h"

enum { LEAST_PER_THREAD = 200000 };

typedef struct {
    float *out;
    const float *weights, *density, *values;
    int64_t n, edges, functions, degrees, channels;
} Angular;

typedef void Part(const Angular *of, int64_t i);

INLINE int64_t first_of(const Angular *of, int64_t degree) { return of->degrees == 1 ? 0 : degree * degree; }

INLINE int64_t behind(const Angular *of, int64_t degree) {
    int64_t end = (degree + 1) * (degree + 1);
    return of->degrees == 1 || end > of->functions ? of->functions : end;
}

/* The edges up to the last one that has a weight other than 0. */
INLINE int64_t edges_of(const Angular *of, int64_t i) {
    int64_t last = (i + 1) * of->edges * of->functions, first = i * of->edges * of->functions;
    while (last > first && of->weights[last - 1] == 0) last--;
    return (last - first + of->functions - 1) / of->functions;
}

static void read_one(const Angular *of, int64_t i) {
    int64_t channels = of->channels, row = of->degrees * channels, edges = edges_of(of, i);
    const float *weights = of->weights + i * of->edges * of->functions;
    const float *density = of->density + i * of->functions * channels;
    float *out = of->out + i * of->edges * row;
    for (int64_t degree = 0; degree < of->degrees; degree++) {
        int64_t k = first_of(of, degree);
        Product product = {.out = out + degree * channels, .a = weights + k, .b = density + k * channels,
                           .out_row = row, .a_row = of->functions, .a_term = 1, .b_row = channels, .rows = edges,
                           .terms = behind(of, degree) - k, .columns = channels};
        times(&product);
    }
    memset(out + edges * row, 0, (of->edges - edges) * row * sizeof(float));
}

static void accumulate_one(const Angular *of, int64_t i) {
    int64_t channels = of->channels, row = of->degrees * channels, edges = edges_of(of, i);
    const float *weights = of->weights + i * of->edges * of->functions, *values = of->values + i * of->edges * row;
    for (int64_t degree = 0; degree < of->degrees; degree++) {
        int64_t k = first_of(of, degree);
        Product product = {.out = of->out + (i * of->functions + k) * channels, .a = weights + k,
                           .b = values + degree * channels, .out_row = channels, .a_row = 1, .a_term = of->functions,
                           .b_row = row, .rows = behind(of, degree) - k, .terms = edges, .columns = channels};
        times(&product);
    }
}

FOR_EACH_CPU static void weigh_one(const Angular *of, int64_t i) {
    int64_t channels = of->channels;
    const float *density = of->density + i * of->functions * channels;
    for (int64_t e = 0; e < of->edges; e++) {
        float *out = of->out + (i * of->edges + e) * of->functions;
        for (int64_t degree = 0; degree < of->degrees; degree++) {
            const float *values = of->values + ((i * of->edges + e) * of->degrees + degree) * channels;
            for (int64_t k = first_of(of, degree); k < behind(of, degree); k++) {
                Vector total = {0};
                for (int64_t c = 0; c < channels; c += WIDTH)
                    total += load(density + k * channels + c) * load(values + c);
                out[k] = sum_of(total);
            }
        }
    }
}

static void for_all(Part *part, const Angular *of, int threads) {
    int64_t most = of->n * of->edges * of->functions * of->channels / LEAST_PER_THREAD;
    if (threads > most) threads = (int)most;
    if (threads > of->n) threads = (int)of->n;
    if (threads < 1) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < of->n; i++) part(of, i);
}

/* out [n][edges][degrees][channels] = sum over the functions k of each degree of Y D */
void ocpgem_read(float *out, const float *weights, const float *density, int64_t n, int64_t edges, int64_t functions,
                 int64_t degrees, int64_t channels, int threads) {
    Angular of = {out, weights, density, 0, n, edges, functions, degrees, channels};
    for_all(read_one, &of, threads);
}

/* out [n][functions][channels] = sum over the edges of Y G */
void ocpgem_accumulate(float *out, const float *weights, const float *values, int64_t n, int64_t edges,
                       int64_t functions, int64_t degrees, int64_t channels, int threads) {
    Angular of = {out, weights, 0, values, n, edges, functions, degrees, channels};
    for_all(accumulate_one, &of, threads);
}

/* out [n][edges][functions] = sum over the channels of D G */
void ocpgem_weigh(float *out, const float *density, const float *values, int64_t n, int64_t edges, int64_t functions,
                  int64_t degrees, int64_t channels, int threads) {
    Angular of = {out, 0, density, values, n, edges, functions, degrees, channels};
    for_all(weigh_one, &of, threads);
}
