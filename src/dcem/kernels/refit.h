/* The refit of a diagonal Gaussian to LML-weighted samples, for one REAL: see kernels.c. */

/* What the backward pass of the refit needs of a row: n scores, d distances from the first sample to the mean, and
 * nu, c, and the derivative of the scores by the values, 0 where a row is not valid. */
#define KEPT(n, d) ((n) + (d) + 3)

typedef struct {
    const REAL *v, *X; /* (rows, n); (rows, n, d) */
    int64_t n, d, standardize;
    double k, tau;
    REAL low, high;
    REAL *w, *mu, *sigma, *kept; /* (rows, n); (rows, d) twice; (rows, KEPT(n, d)) */
    uint8_t *valid;
    const REAL *g_w, *g_mu, *g_sigma; /* each may be NULL */
    REAL *g_v, *g_X;
} NAME(refit_task);

/* Scores of the values of one row, -inf for what is not finite, and all 0 where the row is not valid: with fewer finite
 * values than k, or with values that differ by no more than their rounding (see solvers/scores.py). */
INLINE uint8_t NAME(scores_row)(const REAL *v, int64_t n, double k, int64_t standardize, REAL *x, REAL *unit) {
    int64_t m = 0;
    REAL bottom = INFINITY, top = -INFINITY;
    for (int64_t i = 0; i < n; i++)
        if (v[i] - v[i] == 0) m++, bottom = v[i] < bottom ? v[i] : bottom, top = v[i] > top ? v[i] : top;
    REAL half = (REAL)0.5 * top - (REAL)0.5 * bottom; /* of the spread, which might overflow */
    REAL rounding = 16 * EPSILON * (top > -bottom ? top : -bottom);
    uint8_t valid = m >= k && half > (rounding > SMALLEST ? rounding : SMALLEST);
    double sum = 0, squares = 0, factor = 1;
    *unit = valid;
    if (standardize && valid) { /* in units of half the spread, so that nothing overflows */
        double scale = 1.0 / half;
        for (int64_t i = 0; i < n; i++)
            if (v[i] - v[i] == 0) sum += ((double)v[i] - bottom) * scale;
        sum /= m;
        for (int64_t i = 0; i < n; i++)
            if (v[i] - v[i] == 0) {
                double u = ((double)v[i] - bottom) * scale - sum;
                squares += u * u;
            }
        factor = squares > 0 ? 1 / sqrt(squares / m) : 0;
        for (int64_t i = 0; i < n; i++)
            x[i] = v[i] - v[i] == 0 ? (REAL)(-factor * (((double)v[i] - bottom) * scale - sum)) : -INFINITY;
        *unit = factor * scale < LARGEST ? (REAL)(factor * scale) : LARGEST;
    } else {
        for (int64_t i = 0; i < n; i++) x[i] = !valid ? 0 : (v[i] - v[i] == 0 ? -v[i] : -INFINITY);
    }
    return valid;
}

FAST int NAME(refit_rows)(const void *task, int64_t first, int64_t end) {
    const NAME(refit_task) *t = task;
    int64_t n = t->n, d = t->d;
    double *sums = malloc(2 * d * sizeof(double) + 2 * n * sizeof(REAL)), *variance = sums + d;
    REAL *work = (REAL *)(variance + d);
    if (!sums) return 1;
    for (int64_t row = first; row < end; row++) {
        const REAL *X = t->X + row * n * d;
        REAL *w = t->w + row * n, *mu = t->mu + row * d, *sigma = t->sigma + row * d;
        REAL *x = t->kept + row * KEPT(n, d), *shift = x + n, *rest = shift + d;
        t->valid[row] = NAME(scores_row)(t->v + row * n, n, t->k, t->standardize, x, rest + 2);
        NAME(project_row)(x, n, t->k, t->tau, SIGMOID, w, rest, rest + 1, work);
        double total = 0;
        for (int64_t i = 0; i < n; i++) total += w[i];
        REAL share = (REAL)(1 / total);
        for (int64_t c = 0; c < d; c++) sums[c] = variance[c] = 0;
        for (int64_t i = 0; i < n; i++) /* about the first sample: in X - mu the rounding of mu would not cancel */
            for (int64_t c = 0; c < d; c++) sums[c] += w[i] * share * (X[i * d + c] - X[c]);
        for (int64_t c = 0; c < d; c++) shift[c] = (REAL)sums[c];
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < d; c++) {
                REAL r = (X[i * d + c] - X[c]) - shift[c];
                variance[c] += (double)(w[i] * share * r) * r; /* of a square, single precision has half the range */
            }
        for (int64_t c = 0; c < d; c++) {
            REAL std = (REAL)sqrt(variance[c]);
            sigma[c] = std < t->low ? t->low : (std > t->high ? t->high : std);
            mu[c] = X[c] + shift[c];
        }
    }
    free(sums);
    return 0;
}

int NAME(dcem_refit)(
    const REAL *v, const REAL *X, int64_t rows, int64_t n, int64_t d, double k, double tau, int64_t standardize, REAL low,
    REAL high, REAL *w, REAL *mu, REAL *sigma, uint8_t *valid, REAL *kept, int64_t threads) {
    NAME(refit_task) t = {v, X, n, d, standardize, k, tau, low, high, w, mu, sigma, kept, valid, NULL, NULL, NULL, NULL, NULL};
    return over_rows(NAME(refit_rows), &t, rows, threads);
}

FAST int NAME(refit_backward_rows)(const void *task, int64_t first, int64_t end) {
    const NAME(refit_task) *t = task;
    int64_t n = t->n, d = t->d;
    REAL *g = malloc((2 * n + 2 * d) * sizeof(REAL));
    if (!g) return 1;
    REAL *q = g + n, *g_std = q + n, *inverse = g_std + d;
    for (int64_t row = first; row < end; row++) {
        const REAL *X = t->X + row * n * d, *w = t->w + row * n, *sigma = t->sigma + row * d;
        const REAL *x = t->kept + row * KEPT(n, d), *shift = x + n, *rest = shift + d;
        const REAL *g_mu = t->g_mu ? t->g_mu + row * d : NULL;
        REAL *g_v = t->g_v + row * n, *g_X = t->g_X + row * n * d, unit = rest[2], ignored;
        for (int64_t c = 0; c < d; c++) { /* d sigma = d sigma^2 / 2 sigma, and nothing where sigma is clamped */
            int moves = t->g_sigma && sigma[c] > t->low && sigma[c] < t->high;
            g_std[c] = moves ? t->g_sigma[row * d + c] : 0;
            inverse[c] = moves ? 1 / sigma[c] : 0;
        }
        double total = 0;
        for (int64_t i = 0; i < n; i++) total += w[i];
        REAL share = (REAL)(1 / total);
        for (int64_t i = 0; i < n; i++) {
            REAL sum = 0;
            for (int64_t c = 0; c < d; c++) {
                REAL r = (X[i * d + c] - X[c]) - shift[c], g_m = g_mu ? g_mu[c] : 0;
                REAL slope = g_std[c] * (r * inverse[c]); /* in this order, since squares may overflow */
                sum += (g_m + slope / 2) * r;
                g_X[i * d + c] = w[i] * share * (g_m + slope);
            }
            g[i] = sum * share + (t->g_w ? t->g_w[row * n + i] : 0);
        }
        NAME(pull_back_row)(x, n, t->tau, SIGMOID, rest[0], rest[1], g, 0, g, &ignored, q);
        double sum = 0, dot = 0, squares = 0, m = 0; /* scores are -u; d u = (d v - <d v> - u <u d v>) unit */
        for (int64_t i = 0; i < n; i++)
            if (x[i] > -INFINITY) m++, sum += g[i], dot += (double)g[i] * x[i], squares += (double)x[i] * x[i];
        sum /= m, dot = squares > 0 ? dot / squares : 0;
        for (int64_t i = 0; i < n; i++) {
            double change = t->standardize ? g[i] - sum - x[i] * dot : g[i];
            g_v[i] = x[i] > -INFINITY && unit > 0 ? (REAL)(-change * unit) : 0;
        }
    }
    free(g);
    return 0;
}

int NAME(dcem_refit_backward)(
    const REAL *X, int64_t rows, int64_t n, int64_t d, double tau, int64_t standardize, REAL low, REAL high, REAL *w,
    REAL *sigma, REAL *kept, const REAL *g_w, const REAL *g_mu, const REAL *g_sigma, REAL *g_v, REAL *g_X,
    int64_t threads) {
    NAME(refit_task) t = {
        NULL, X, n, d, standardize, 0, tau, low, high, w, NULL, sigma, kept, NULL, g_w, g_mu, g_sigma, g_v, g_X};
    return over_rows(NAME(refit_backward_rows), &t, rows, threads);
}
