/* Products of matrices that fit into a cache, for angular.c and quadruplets.c. Every element is a sum in the order of
 * its terms, wherever it stands. */
#ifndef OCPGEM_PRODUCT_H
#define OCPGEM_PRODUCT_H

#include "common.h"

/* out[r][c] = sum over k of a[r][k] b[k][c], to which what is there is added or not. Rows of `out` and b are
 * contiguous, a[r][k] is at a + r * a_row + k * a_term; columns: a multiple of WIDTH. */
typedef struct {
    float *out;
    const float *a, *b;
    int64_t out_row, a_row, a_term, b_row, rows, terms, columns;
    int add;
} Product;

INLINE void tile(const Product *of, int64_t r, int64_t c, int rows, int vectors) {
    Vector sums[4][2] = {{{0}}};
    const float *a = of->a + r * of->a_row, *b = of->b + c;
    for (int64_t k = 0; k < of->terms; k++)
        for (int i = 0; i < rows; i++)
            for (int v = 0; v < vectors; v++)
                sums[i][v] += a[i * of->a_row + k * of->a_term] * load(b + k * of->b_row + v * WIDTH);
    for (int i = 0; i < rows; i++) {
        for (int v = 0; v < vectors; v++) {
            float *to = of->out + (r + i) * of->out_row + c + v * WIDTH;
            store(to, of->add ? load(to) + sums[i][v] : sums[i][v]);
        }
    }
}

FOR_EACH_CPU static void times(const Product *of) {
    for (int64_t c = 0; c < of->columns;) {
        int two = c + 2 * WIDTH <= of->columns;
        for (int64_t r = 0; r < of->rows;) {
            int four = r + 4 <= of->rows;
            if (four && two)
                tile(of, r, c, 4, 2);
            else if (two)
                tile(of, r, c, 1, 2);
            else if (four)
                tile(of, r, c, 4, 1);
            else
                tile(of, r, c, 1, 1);
            r += four ? 4 : 1;
        }
        c += two ? 2 * WIDTH : WIDTH;
    }
}

#endif
