/* Products of many small matrices on a CPU, float32; called from native.py.
 *
 * Libraries spend more time on such matrices than their arithmetic takes. Every element is a sum in an order of its own
 * that depends on the sizes of its matrix alone, so results do not depend on the number of matrices or threads.
 */
#include "common.h"

typedef float Vector __attribute__((vector_size(32)));

enum { WIDTH = 8, ROWS = 4, ROWS_AT_ONCE = 64, LEAST_PER_THREAD = 200000 };

/* out[i] = A[i] B[i] for i < n, where A[i][r][k] is a[i * a_step + r * a_row + k * a_term], B[i][k][c] is
 * b[i * b_step + k * b_row + c * b_column], and `out` is contiguous. */
typedef struct {
    float *out;
    const float *a, *b;
    int64_t n, rows, terms, columns, a_step, a_row, a_term, b_step, b_row, b_column;
    int is_across; /* whether B has contiguous rows, of 8 elements or more; else A has, and B contiguous columns */
} Products;

INLINE Vector load(const float *from) {
    Vector found;
    memcpy(&found, from, sizeof found);
    return found;
}

INLINE float sum_of(Vector x) {
    return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

/* `rows` times 8 * `vectors` elements; B has contiguous rows. */
INLINE void across(const Products *of, float *out, const float *a, const float *b, int rows, int vectors) {
    Vector sums[ROWS][2] = {{{0}}};
    for (int64_t k = 0; k < of->terms; k++) {
        for (int r = 0; r < rows; r++) {
            float weight = a[r * of->a_row + k * of->a_term];
            for (int v = 0; v < vectors; v++) sums[r][v] += weight * load(b + k * of->b_row + v * WIDTH);
        }
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v < vectors; v++) memcpy(out + r * of->columns + v * WIDTH, &sums[r][v], sizeof(Vector));
    }
}

/* `rows` times `columns` elements; A has contiguous rows and B contiguous columns. */
INLINE void along(const Products *of, float *out, const float *a, const float *b, int rows, int columns) {
    Vector sums[2][4] = {{{0}}};
    float rest[2][4] = {{0}};
    int64_t k = 0;
    for (; k + WIDTH <= of->terms; k += WIDTH) {
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) sums[r][c] += load(a + r * of->a_row + k) * load(b + c * of->b_column + k);
    }
    for (; k < of->terms; k++) {
        for (int r = 0; r < rows; r++)
            for (int c = 0; c < columns; c++) rest[r][c] += a[r * of->a_row + k] * b[c * of->b_column + k];
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) out[r * of->columns + c] = sum_of(sums[r][c]) + rest[r][c];
}

/* The rows from `first` to `end` of product i. */
INLINE void rows_across(const Products *of, int64_t i, int64_t first, int64_t end) {
    for (int64_t column = 0; column < of->columns;) {
        int two = column + 2 * WIDTH <= of->columns;
        /* Of the last columns some are computed twice. */
        int64_t c = two || column + WIDTH <= of->columns ? column : of->columns - WIDTH;
        const float *b = of->b + i * of->b_step + c;
        for (int64_t r = first; r < end;) {
            int four = r + ROWS <= end;
            float *out = of->out + (i * of->rows + r) * of->columns + c;
            const float *a = of->a + i * of->a_step + r * of->a_row;
            if (four && two)
                across(of, out, a, b, ROWS, 2);
            else if (four)
                across(of, out, a, b, ROWS, 1);
            else if (two)
                across(of, out, a, b, 1, 2);
            else
                across(of, out, a, b, 1, 1);
            r += four ? ROWS : 1;
        }
        column = c + (two ? 2 : 1) * WIDTH;
    }
}

INLINE void rows_along(const Products *of, int64_t i, int64_t first, int64_t end) {
    for (int64_t c = 0; c < of->columns;) {
        int four = c + 4 <= of->columns;
        const float *b = of->b + i * of->b_step + c * of->b_column;
        for (int64_t r = first; r < end;) {
            int two = r + 2 <= end;
            float *out = of->out + (i * of->rows + r) * of->columns + c;
            const float *a = of->a + i * of->a_step + r * of->a_row;
            if (two && four)
                along(of, out, a, b, 2, 4);
            else if (four)
                along(of, out, a, b, 1, 4);
            else if (two)
                along(of, out, a, b, 2, 1);
            else
                along(of, out, a, b, 1, 1);
            r += two ? 2 : 1;
        }
        c += four ? 4 : 1;
    }
}

/* Groups of rows from lo to hi, counted through all matrices. */
FOR_EACH_CPU static void groups(const Products *of, int64_t lo, int64_t hi) {
    int64_t per_matrix = (of->rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
    for (int64_t group = lo; group < hi; group++) {
        int64_t i = group / per_matrix, first = group % per_matrix * ROWS_AT_ONCE, end = first + ROWS_AT_ONCE;
        if (end > of->rows) end = of->rows;
        if (of->is_across)
            rows_across(of, i, first, end);
        else
            rows_along(of, i, first, end);
    }
}

/* See Products. */
void ocpgem_products(float *out, const float *a, const float *b, int64_t n, int64_t rows, int64_t terms,
                     int64_t columns, int64_t a_step, int64_t a_row, int64_t a_term, int64_t b_step, int64_t b_row,
                     int64_t b_column, int is_across, int threads) {
    Products of = {out, a, b, n, rows, terms, columns, a_step, a_row, a_term, b_step, b_row, b_column,
                   is_across};
    int64_t all = n * ((rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE);
    int64_t most = n * rows * terms * columns / LEAST_PER_THREAD;
    if (threads > most) threads = (int)most;
    if (threads > all) threads = (int)all;
    if (threads <= 1) {
        groups(&of, 0, all);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int number = 0; number < threads; number++) groups(&of, all * number / threads, all * (number + 1) / threads);
}
