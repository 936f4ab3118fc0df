/* Sums over quadruplets weighted by real spherical harmonics on a CPU, float32, and both their derivatives; called from
 * native_quadruplets.py, whose tables these are; what they mean stands in models/gemnet/spherical_angles.py.
 *
 * Of one edge c -> a of one atom a after the other: its weights of all rows d of a middle edge b -> a,
 *   W[j][d] = (sum over k of readers[j][k] turns[m(j)][k][d]) times a mask, for 2 n - 1 azimuths j,
 * what they give together, A[b][j] = sum over d of W[j][d] x[d], and with the polar factor and the basis of both angles
 *   out = sum over s of spherical[s] (sum over b of polar[s][b] A[b][j(s)]).
 * The sum is linear in each table, and its gradient in each table and in the incoming gradient. So the gradient of the
 * gradient is what the same statements give for numbers with a tangent, the second parts of `Both`.
 *
 * An atom is computed by one thread, and rows of zeros, which pad the tables, change no digit of the others.
 */
#include <math.h>

#include "product.h"

enum { ONE = 2 }; /* the number in each row of of_inner and of_outer that is 0 only of rows that pad the table */

/* Numbers and, where they are asked for, what changes with them; NULL where not. */
typedef struct {
    float *value, *tangent;
} Both;

/* What is summed. The tables are contiguous:
 *   x [atoms][middle][inner][channels], of_inner [atoms][middle][inner][4 n + 1],
 *   of_outer [atoms][middle][degree][8 n + 1], polar [atoms][degree][n * n][middle], by azimuths,
 *   spherical [atoms][degree][rows][n * n], grad and out [atoms][degree][rows][channels].
 * Fields are those of _Sum in native_quadruplets.py. */
typedef struct {
    int64_t atoms, middle, degree, inner, channels, rows, n;
    const int64_t *excluded; /* [atoms][middle][degree], a row d, or `inner` */
    const int64_t *members;  /* [n * n], column of spherical of each row of polar */
    float smallest, noise;   /* see `evaluate` */
    Both x, of_inner, of_outer, polar, spherical, grad;
    Both out, by_x, by_inner, by_outer, by_polar, by_spherical; /* results; zeros before */
} Sum;

/* What a thread needs of one atom and one edge c -> a. Rows of `padded` numbers have zeros behind their last. */
typedef struct {
    int64_t padded, azimuths;
    Both turns, inverse; /* [middle][n][4][padded] and [middle][padded], of_inner in columns */
    Both x_columns;      /* [middle][channels][padded] */
    Both weights;        /* [middle][azimuths][padded], W */
    Both sums;           /* [middle][azimuths][channels], A */
    Both polar_sums;     /* [n * n][channels], sums over b of polar A, by rows of polar */
    Both harmonics;      /* the same by columns of spherical */
    Both columns;        /* [channels][n * n, padded], `harmonics` in columns */
    /* Gradients: of spherical, [rows][n * n, padded]; of `harmonics`, `polar_sums`, `sums`; of the weights of one
     * middle edge; of a row of of_outer; of `turns` and `inverse`. */
    Both by_spherical, by_harmonics, by_polar_sums, by_sums, by_weights, by_row, by_turns, by_inverse;
    float *masks; /* [middle][3][padded]: 1 unless d is c; the sign of the angle; where it has none, its cosine's */
    int64_t *count;     /* [middle], rows d */
    int64_t *is_read;   /* [middle], whether c has a row there */
    int64_t *is_planar; /* [middle], whether a row d lies in one plane with it */
} Scratch;

INLINE int64_t up(int64_t n) { return (n + WIDTH - 1) / WIDTH * WIDTH; }

/* Whether gradients of angles are asked for, that is of of_inner, of_outer and polar, all or none. */
INLINE int with_angles(const Sum *of) { return of->by_polar.value || of->by_polar.tangent; }

INLINE Both from(Both x, int64_t place) {
    Both found = {x.value ? x.value + place : NULL, x.tangent ? x.tangent + place : NULL};
    return found;
}

/* The sum of the products of n numbers, a multiple of WIDTH. */
INLINE float dot(const float *a, const float *b, int64_t n) {
    Vector total = {0};
    for (int64_t i = 0; i < n; i += WIDTH) total += load(a + i) * load(b + i);
    return sum_of(total);
}

static void times_if(Product of, float *out, const float *a, const float *b) {
    if (!out || !a || !b) return;
    of.out = out, of.a = a, of.b = b;
    times(&of);
}

/* The product of matrices with tangents, whose tangent is the sum of two products; of: all but the matrices. */
static void product(Both out, Both a, Both b, Product of) {
    times_if(of, out.value, a.value, b.value);
    times_if(of, out.tangent, a.tangent, b.value);
    of.add |= a.tangent != NULL;
    times_if(of, out.tangent, a.value, b.tangent);
}

/* to[c][r] = at[r][c] */
static void turn(Both to, int64_t to_row, Both at, int64_t at_row, int64_t rows, int64_t columns) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < columns; c++) {
            if (to.value) to.value[c * to_row + r] = at.value[r * at_row + c];
            if (to.tangent) to.tangent[c * to_row + r] = at.tangent[r * at_row + c];
        }
    }
}

static void clear(Both x, int64_t n) {
    if (x.value) memset(x.value, 0, n * sizeof(float));
    if (x.tangent) memset(x.tangent, 0, n * sizeof(float));
}

/* The memory of one thread, at `base` or, to learn the size, nowhere; returns how many bytes it takes. */
static int64_t lay_out(const Sum *of, uintptr_t base, Scratch *own) {
    int64_t middle = of->middle, channels = of->channels, n = of->n, taken = 0;
    int64_t padded = own->padded = up(of->inner), azimuths = own->azimuths = 2 * n - 1, columns = up(n * n);
    int64_t gradient = of->grad.value ? 1 : 0, angles = with_angles(of), tangents = of->x.tangent ? 1 : 0;
    struct {
        Both *of;
        int64_t n;
    } parts[] = {
        {&own->turns, middle * n * 4 * padded},
        {&own->inverse, middle * padded},
        {&own->weights, middle * azimuths * padded},
        {&own->sums, middle * azimuths * channels},
        {&own->polar_sums, n * n * channels},
        {&own->harmonics, n * n * channels},
        {&own->x_columns, angles * middle * channels * padded},
        {&own->columns, gradient * channels * columns},
        {&own->by_spherical, gradient * of->rows * columns},
        {&own->by_harmonics, gradient * n * n * channels},
        {&own->by_polar_sums, gradient * n * n * channels},
        {&own->by_sums, gradient * middle * azimuths * channels},
        {&own->by_weights, angles * azimuths * padded},
        {&own->by_row, angles * up(8 * n + 1)},
        {&own->by_turns, angles * middle * n * 4 * padded},
        {&own->by_inverse, angles * middle * padded},
    };
    int64_t **counts[] = {&own->count, &own->is_read, &own->is_planar};
    for (size_t part = 0; part < sizeof counts / sizeof *counts; part++, taken += middle * sizeof(int64_t))
        *counts[part] = (int64_t *)(base + taken);
    own->masks = (float *)(base + taken);
    taken += middle * 3 * padded * sizeof(float);
    for (size_t part = 0; part < sizeof parts / sizeof *parts; part++) {
        int64_t size = parts[part].n * sizeof(float);
        parts[part].of->value = (float *)(base + taken);
        parts[part].of->tangent = tangents ? (float *)(base + taken + size) : NULL;
        taken += size * (1 + tangents);
    }
    return (taken + 63) / 64 * 64;
}

/* Puts the rows of a new atom in columns. */
static void begin(const Sum *of, Scratch *own, int64_t atom) {
    int64_t padded = own->padded, channels = of->channels, turns = 4 * of->n, width = turns + 1;
    clear(own->turns, of->middle * turns * padded);
    clear(own->inverse, of->middle * padded);
    if (with_angles(of)) {
        clear(own->x_columns, of->middle * channels * padded);
        clear(own->by_turns, of->middle * turns * padded);
        clear(own->by_inverse, of->middle * padded);
    }
    for (int64_t b = 0; b < of->middle; b++) {
        int64_t first = (atom * of->middle + b) * of->inner, count = 0;
        Both rows = from(of->of_inner, first * width);
        for (int64_t d = 0; d < of->inner; d++)
            if (rows.value[d * width + ONE] != 0) count = d + 1;
        own->count[b] = count;
        turn(from(own->turns, b * turns * padded), padded, rows, width, count, turns);
        turn(from(own->inverse, b * padded), padded, from(rows, turns), width, count, 1);
        if (with_angles(of))
            turn(from(own->x_columns, b * channels * padded), padded, from(of->x, first * channels), channels, count,
                 channels);
    }
}

/* w[j][d] = sum over k of readers[j][k] turns[m(j)][k][d], added to what is there or not. */
INLINE void read_turns(float *w, const float *readers, const float *turns, int64_t n, int64_t padded, int add) {
    for (int64_t j = 0; j < 2 * n - 1; j++) {
        int64_t m = j < n ? j : j - n + 1;
        const float *reader = readers + 4 * (j < n ? m : n + m), *row = turns + 4 * m * padded;
        for (int64_t d = 0; d < padded; d += WIDTH) {
            float *to = w + j * padded + d;
            Vector low = reader[0] * load(row + d) + reader[1] * load(row + padded + d);
            Vector high = reader[2] * load(row + 2 * padded + d) + reader[3] * load(row + 3 * padded + d);
            store(to, add ? load(to) + (low + high) : low + high);
        }
    }
}

/* What the sine of the angle of c and d is at the least, and how it changes with both heights' inverses. */
INLINE float sine_at_least(const Sum *of, float outer, float inner, float *slope) {
    float bound = outer * inner * of->smallest;
    *slope = bound < 0.5f ? of->smallest : 0.0f;
    return bound < 0.5f ? bound : 0.5f;
}

/* The weights of the rows d of middle edge b, for the edge c -> a whose row of the table is `outer`.
 *
 * Sines of multiples of the angle are those of its size: they take its sign. Where c and d are one atom, there is no
 * quadruplet; where all four atoms lie in a plane, the sine is a small constant, as `_of_size` has it. */
FOR_EACH_CPU static void evaluate(const Sum *of, Scratch *own, int64_t b, Both outer, int64_t excluded) {
    int64_t n = of->n, padded = own->padded;
    Both w = from(own->weights, b * own->azimuths * padded), turns = from(own->turns, b * 4 * n * padded);
    Both inverse = from(own->inverse, b * padded);
    float *differs = own->masks + b * 3 * padded, *sign = differs + padded, *planar = sign + padded;
    read_turns(w.value, outer.value, turns.value, n, padded, 0);
    if (w.tangent) {
        read_turns(w.tangent, outer.tangent, turns.value, n, padded, 0);
        read_turns(w.tangent, outer.value, turns.tangent, n, padded, 1);
    }
    int64_t found = 0;
    for (int64_t d = 0; d < padded; d++) {
        float slope, is_other = d < own->count[b] && d != excluded ? 1.0f : 0.0f;
        differs[d] = is_other;
        if (n == 1) continue;
        float sine = w.value[n * padded + d], cosine = w.value[padded + d];
        float bound = sine_at_least(of, outer.value[8 * n], inverse.value[d], &slope);
        int flat = fabsf(sine) <= (bound > of->noise ? bound : of->noise);
        sign[d] = flat ? 0.0f : copysignf(is_other, sine);
        planar[d] = flat ? copysignf(is_other, cosine) : 0.0f;
        found |= flat && is_other != 0.0f;
    }
    own->is_planar[b] = found;
    for (int64_t j = 0; j < 2 * n - 1; j++) {
        const float *mask = j < n ? differs : sign;
        for (int64_t d = j * padded; d < (j + 1) * padded; d++) w.value[d] *= mask[d - j * padded];
        if (w.tangent)
            for (int64_t d = j * padded; d < (j + 1) * padded; d++) w.tangent[d] *= mask[d - j * padded];
    }
    for (int64_t d = 0; found && d < own->count[b]; d++) {
        float slope, bound = sine_at_least(of, outer.value[8 * n], inverse.value[d], &slope);
        for (int64_t m = 1; planar[d] != 0.0f && m < n; m++) {
            float multiple = m % 2 ? (float)m : m * planar[d];
            int64_t at = (n + m - 1) * padded + d;
            w.value[at] = bound * multiple;
            if (w.tangent)
                w.tangent[at] = slope * multiple *
                                (outer.tangent[8 * n] * inverse.value[d] + outer.value[8 * n] * inverse.tangent[d]);
        }
    }
}

/* From the gradient of the weights of a middle edge to those of `outer` and of the turns; the former is overwritten. */
FOR_EACH_CPU static void angle_gradient(const Sum *of, Scratch *own, int64_t b, Both outer, Both by_outer) {
    int64_t n = of->n, padded = own->padded, last = 8 * n;
    Both grad = own->by_weights, turns = from(own->turns, b * 4 * n * padded), inverse = from(own->inverse, b * padded);
    Both by_turns = from(own->by_turns, b * 4 * n * padded), by_inverse = from(own->by_inverse, b * padded);
    const float *differs = own->masks + b * 3 * padded, *sign = differs + padded, *planar = sign + padded;
    for (int64_t d = 0; own->is_planar[b] && d < own->count[b]; d++) {
        if (planar[d] == 0.0f) continue;
        float slope, value = 0.0f, tangent = 0.0f;
        sine_at_least(of, outer.value[last], inverse.value[d], &slope);
        for (int64_t m = 1; m < n; m++) {
            float multiple = slope * (m % 2 ? (float)m : m * planar[d]);
            value += multiple * grad.value[(n + m - 1) * padded + d];
            if (grad.tangent) tangent += multiple * grad.tangent[(n + m - 1) * padded + d];
        }
        by_outer.value[last] += value * inverse.value[d];
        by_inverse.value[d] += value * outer.value[last];
        if (grad.tangent) {
            by_outer.tangent[last] += tangent * inverse.value[d] + value * inverse.tangent[d];
            by_inverse.tangent[d] += tangent * outer.value[last] + value * outer.tangent[last];
        }
    }
    for (int64_t j = 0; j < 2 * n - 1; j++) {
        int64_t m = j < n ? j : j - n + 1, reader = 4 * (j < n ? m : n + m);
        const float *mask = j < n ? differs : sign;
        float *value = grad.value + j * padded, *tangent = grad.tangent ? grad.tangent + j * padded : NULL;
        for (int64_t d = 0; d < padded; d++) value[d] *= mask[d];
        for (int64_t d = 0; tangent && d < padded; d++) tangent[d] *= mask[d];
        for (int64_t k = 0; k < 4; k++) {
            Both row = from(turns, (4 * m + k) * padded), by_row = from(by_turns, (4 * m + k) * padded);
            float factor = outer.value[reader + k];
            by_outer.value[reader + k] = dot(value, row.value, padded);
            for (int64_t d = 0; d < padded; d++) by_row.value[d] += factor * value[d];
            if (!tangent) continue;
            float change = outer.tangent[reader + k];
            by_outer.tangent[reader + k] = dot(tangent, row.value, padded) + dot(value, row.tangent, padded);
            for (int64_t d = 0; d < padded; d++) by_row.tangent[d] += factor * tangent[d] + change * value[d];
        }
    }
}

/* The gradient of the polar factors of one azimuth: of `rows` rows of polar, of all middle edges. */
FOR_EACH_CPU static void polar_gradient(const Sum *of, const Scratch *own, Both by_polar, int64_t first, int64_t rows,
                                        int64_t azimuth) {
    for (int64_t row = 0; row < rows; row++) {
        Both grad = from(own->by_polar_sums, (first + row) * of->channels);
        for (int64_t b = 0; b < of->middle; b++) {
            Both sums = from(own->sums, (b * own->azimuths + azimuth) * of->channels);
            Both to = from(by_polar, (first + row) * of->middle + b);
            if (!own->is_read[b]) continue;
            if (to.value) *to.value = dot(grad.value, sums.value, of->channels);
            if (to.tangent)
                *to.tangent = dot(grad.tangent, sums.value, of->channels) + dot(grad.value, sums.tangent, of->channels);
        }
    }
}

static void copy(Both to, Both at, int64_t n) {
    if (to.value) memcpy(to.value, at.value, n * sizeof(float));
    if (to.tangent) memcpy(to.tangent, at.tangent, n * sizeof(float));
}

/* How many rows of polar belong to an azimuth: the degrees that have it. */
INLINE int64_t rows_of(const Sum *of, int64_t azimuth) {
    return azimuth < of->n ? of->n - azimuth : 2 * of->n - 1 - azimuth;
}

/* The sum of one edge c -> a, an edge of the atom that `own` was begun with. */
static int sum_of_edge(const Sum *of, Scratch *own, int64_t atom, int64_t c) {
    int64_t edge = atom * of->degree + c, azimuths = own->azimuths, channels = of->channels, n2 = of->n * of->n;
    int64_t of_sums = azimuths * channels, found = 0;
    for (int64_t b = 0; b < of->middle; b++) {
        int64_t middle = atom * of->middle + b, row = middle * of->degree + c;
        Both outer = from(of->of_outer, row * (8 * of->n + 1)), sums = from(own->sums, b * of_sums);
        own->is_read[b] = own->count[b] > 0 && outer.value[ONE] != 0;
        if (!own->is_read[b]) {
            clear(sums, of_sums);
            continue;
        }
        found = 1;
        evaluate(of, own, b, outer, of->excluded[row]);
        product(sums, from(own->weights, b * azimuths * own->padded), from(of->x, middle * of->inner * channels),
                (Product){.out_row = channels, .a_row = own->padded, .a_term = 1, .b_row = channels, .rows = azimuths,
                          .terms = own->count[b], .columns = channels});
    }
    if (!found) return 0;
    Both polar = from(of->polar, edge * n2 * of->middle), spherical = from(of->spherical, edge * of->rows * n2);
    for (int64_t j = 0, first = 0; j < azimuths; first += rows_of(of, j++))
        product(from(own->polar_sums, first * channels), from(polar, first * of->middle), from(own->sums, j * channels),
                (Product){.out_row = channels, .a_row = of->middle, .a_term = 1, .b_row = of_sums,
                          .rows = rows_of(of, j), .terms = of->middle, .columns = channels});
    for (int64_t row = 0; row < n2; row++)
        copy(from(own->harmonics, of->members[row] * channels), from(own->polar_sums, row * channels), channels);
    product(from(of->out, edge * of->rows * channels), spherical, own->harmonics,
            (Product){.out_row = channels, .a_row = n2, .a_term = 1, .b_row = channels, .rows = of->rows, .terms = n2,
                      .columns = channels});
    return 1;
}

/* The gradients of the above. */
static void gradient_of_edge(const Sum *of, Scratch *own, int64_t atom, int64_t c) {
    int64_t edge = atom * of->degree + c, azimuths = own->azimuths, channels = of->channels, n2 = of->n * of->n;
    int64_t of_sums = azimuths * channels, columns = up(n2), padded = own->padded;
    Both grad = from(of->grad, edge * of->rows * channels), polar = from(of->polar, edge * n2 * of->middle);
    Both by_polar = from(of->by_polar, edge * n2 * of->middle);

    clear(own->columns, channels * columns);
    turn(own->columns, columns, own->harmonics, channels, n2, channels);
    product(own->by_spherical, grad, own->columns,
            (Product){.out_row = columns, .a_row = channels, .a_term = 1, .b_row = columns, .rows = of->rows,
                      .terms = channels, .columns = columns});
    for (int64_t row = 0; row < of->rows; row++)
        copy(from(of->by_spherical, (edge * of->rows + row) * n2), from(own->by_spherical, row * columns), n2);

    product(own->by_harmonics, from(of->spherical, edge * of->rows * n2), grad,
            (Product){.out_row = channels, .a_row = 1, .a_term = n2, .b_row = channels, .rows = n2, .terms = of->rows,
                      .columns = channels});
    for (int64_t row = 0; row < n2; row++)
        copy(from(own->by_polar_sums, row * channels), from(own->by_harmonics, of->members[row] * channels), channels);
    for (int64_t j = 0, first = 0; j < azimuths; first += rows_of(of, j++)) {
        product(from(own->by_sums, j * channels), from(polar, first * of->middle),
                from(own->by_polar_sums, first * channels),
                (Product){.out_row = of_sums, .a_row = 1, .a_term = of->middle, .b_row = channels, .rows = of->middle,
                          .terms = rows_of(of, j), .columns = channels});
        if (with_angles(of)) polar_gradient(of, own, by_polar, first, rows_of(of, j), j);
    }
    for (int64_t b = 0; b < of->middle; b++) {
        if (!own->is_read[b]) continue;
        int64_t middle = atom * of->middle + b, row = (middle * of->degree + c) * (8 * of->n + 1);
        Both by_sums = from(own->by_sums, b * of_sums), weights = from(own->weights, b * azimuths * padded);
        product(from(of->by_x, middle * of->inner * channels), weights, by_sums,
                (Product){.out_row = channels, .a_row = 1, .a_term = padded, .b_row = channels, .rows = own->count[b],
                          .terms = azimuths, .columns = channels, .add = 1});
        if (!with_angles(of)) continue;
        product(own->by_weights, by_sums, from(own->x_columns, b * channels * padded),
                (Product){.out_row = padded, .a_row = channels, .a_term = 1, .b_row = padded, .rows = azimuths,
                          .terms = channels, .columns = padded});
        clear(own->by_row, 8 * of->n + 1);
        angle_gradient(of, own, b, from(of->of_outer, row), own->by_row);
        copy(from(of->by_outer, row), own->by_row, 8 * of->n + 1);
    }
}

/* Hands out the gradients of the rows d of all middle edges of an atom. */
static void finish(const Sum *of, const Scratch *own, int64_t atom) {
    int64_t turns = 4 * of->n, padded = own->padded;
    for (int64_t b = 0; b < of->middle; b++) {
        Both to = from(of->by_inner, (atom * of->middle + b) * of->inner * (turns + 1));
        turn(to, turns + 1, from(own->by_turns, b * turns * padded), padded, turns, own->count[b]);
        turn(from(to, turns), turns + 1, from(own->by_inverse, b * padded), padded, 1, own->count[b]);
    }
}

/* By which native_quadruplets.py knows that its _Sum has the same fields. */
int64_t ocpgem_quadruplet_arguments(void) { return sizeof(Sum); }

/* How many bytes a thread needs. */
int64_t ocpgem_quadruplet_memory(const Sum *of) {
    Scratch own;
    return lay_out(of, 0, &own);
}

/* memory: what each of `threads` threads needs, aligned to 64 bytes. Tables have tangents all or none. */
void ocpgem_quadruplet_sum(const Sum *of, void *memory, int threads) {
    if (threads > of->atoms) threads = (int)of->atoms;
    if (threads < 1) return;
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int number = 0; number < threads; number++) {
        Scratch own;
        lay_out(of, (uintptr_t)memory + number * lay_out(of, 0, &own), &own);
        for (int64_t atom = number; atom < of->atoms; atom += threads) {
            begin(of, &own, atom);
            for (int64_t c = 0; c < of->degree; c++)
                if (sum_of_edge(of, &own, atom, c) && of->grad.value) gradient_of_edge(of, &own, atom, c);
            if (with_angles(of)) finish(of, &own, atom);
        }
    }
}
