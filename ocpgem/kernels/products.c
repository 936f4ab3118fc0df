/* Products A B^T of many small matrices on a CPU, float32; called from native.py.
 *
 * Libraries spend more time on a few columns than their arithmetic takes. Every element is the sum of eight partial sums
 * and of what is left over, in an order that depends on the number of its terms alone.
 */
#include "common.h"

enum { LEAST_PER_THREAD = 200000 };

/* out[i][r][c] = sum over k of A[i][r][k] B[i][c][k] for i < n, where A[i][r] and B[i][c] are the rows of `terms` elements
 * at a + i * a_step + r * a_row and b + i * b_step + c * b_row, and `out` is contiguous. */
typedef struct {
    float *out;
    const float *a, *b;
    int64_t n, rows, terms, columns, a_step, a_row, b_step, b_row;
} Products;

/* `rows` times `columns` elements, from a row of A and one of B on. */
INLINE void tile(const Products *of, float *out, const float *a, const float *b, int rows, int columns) {
    Vector sums[2][4] = {{{0}}};
    float rest[2][4] = {{0}};
    int64_t k = 0;
    for (; k + WIDTH <= of->terms; k += WIDTH) {
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) sums[r][c] += load(a + r * of->a_row + k) * load(b + c * of->b_row + k);
    }
    for (; k < of->terms; k++) {
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) rest[r][c] += a[r * of->a_row + k] * b[c * of->b_row + k];
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) out[r * of->columns + c] = sum_of(sums[r][c]) + rest[r][c];
}

/* Products lo to hi. */
FOR_EACH_CPU static void matrices(const Products *of, int64_t lo, int64_t hi) {
    for (int64_t i = lo; i < hi; i++) {
        for (int64_t c = 0; c < of->columns;) {
            int four = c + 4 <= of->columns;
            const float *b = of->b + i * of->b_step + c * of->b_row;
            for (int64_t r = 0; r < of->rows;) {
                int two = r + 2 <= of->rows;
                float *out = of->out + (i * of->rows + r) * of->columns + c;
                const float *a = of->a + i * of->a_step + r * of->a_row;
                if (two && four)
                    tile(of, out, a, b, 2, 4);
                else if (four)
                    tile(of, out, a, b, 1, 4);
                else if (two)
                    tile(of, out, a, b, 2, 1);
                else
                    tile(of, out, a, b, 1, 1);
                r += two ? 2 : 1;
            }
            c += four ? 4 : 1;
        }
    }
}

void ocpgem_times_transposed(float *out, const float *a, const float *b, int64_t n, int64_t rows, int64_t terms,
                             int64_t columns, int64_t a_step, int64_t a_row, int64_t b_step, int64_t b_row,
                             int threads) {
    Products of = {out, a, b, n, rows, terms, columns, a_step, a_row, b_step, b_row};
    int64_t most = n * rows * terms * columns / LEAST_PER_THREAD;
    if (threads > most) threads = (int)most;
    if (threads > n) threads = (int)n;
    if (threads <= 1) {
        matrices(&of, 0, n);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int number = 0; number < threads; number++) matrices(&of, n * number / threads, n * (number + 1) / threads);
}
