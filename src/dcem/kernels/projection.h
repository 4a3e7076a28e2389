/* The soft projections of one row, for one REAL: see kernels.c. */

/* exp by 2^m e^r with |r| <= ln 2 / 2 and the Taylor polynomial of e^r; a loop over it vectorises. */
INLINE REAL NAME(exp_)(REAL x) {
    x = x < EXP_LOW ? EXP_LOW : (x > EXP_HIGH ? EXP_HIGH : x);
    REAL shifted = x * (REAL)1.44269504088896340736 + ROUNDER;
    REAL m = shifted - ROUNDER;
    REAL r = (x - m * LN2_HIGH) - m * LN2_LOW;
    REAL p;
#ifdef DOUBLE
    p = 1.0 / 6227020800.0;
    p = p * r + 1.0 / 479001600.0;
    p = p * r + 1.0 / 39916800.0;
    p = p * r + 1.0 / 3628800.0;
    p = p * r + 1.0 / 362880.0;
    p = p * r + 1.0 / 40320.0;
    p = p * r + 1.0 / 5040.0;
#else
    p = 1.0f / 5040.0f;
#endif
    p = p * r + (REAL)(1.0 / 720.0);
    p = p * r + (REAL)(1.0 / 120.0);
    p = p * r + (REAL)(1.0 / 24.0);
    p = p * r + (REAL)(1.0 / 6.0);
    p = p * r + (REAL)0.5;
    p = p * r + (REAL)1.0;
    p = p * r + (REAL)1.0;
    UINT bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + EXPONENT_BIAS) << MANTISSA_BITS;
    REAL power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

INLINE REAL NAME(scaled)(REAL x, REAL center, REAL inverse) {
    REAL d = (x - center) * inverse;
    return d < -CLAMP ? -CLAMP : (d > CLAMP ? CLAMP : d);
}

INLINE REAL NAME(phi)(int64_t link, REAL z) {
    if (link == SIGMOID) return 1 / (1 + NAME(exp_)(-z));
    if (link == CAPPED_EXPONENTIAL) return z < 0 ? NAME(exp_)(z) : 1;
    return z < 0 ? 0 : (z < 1 ? z : 1);
}

INLINE REAL NAME(slope)(int64_t link, REAL z) {
    if (link == SIGMOID) {
        REAL e = NAME(exp_)(z < 0 ? z : -z), one = 1 + e;
        return z < CLAMP ? e / (one * one) : 0;
    }
    if (link == CAPPED_EXPONENTIAL) return z < 0 ? NAME(exp_)(z) : 0;
    return z > 0 && z < 1 ? 1 : 0;
}

/* sum w - k at nu, and where the link's step leads: Halley's, Newton's in exp(nu), Newton's */
INLINE void NAME(step)(int64_t link, const REAL *s, int64_t n, REAL nu, double k, double *f, double *next) {
    double f1 = 0, f2 = 0;
    *f = -k;
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t end = start + BLOCK < n ? start + BLOCK : n;
        REAL a = 0, b = 0, c = 0;
        if (link == SIGMOID) {
#pragma omp simd reduction(+ : a, b, c)
            for (int64_t i = start; i < end; i++) {
                REAL w = NAME(phi)(SIGMOID, s[i] + nu), q = w * (1 - w);
                a += w, b += q, c += q * (1 - 2 * w);
            }
        } else if (link == CAPPED_EXPONENTIAL) {
#pragma omp simd reduction(+ : a, b)
            for (int64_t i = start; i < end; i++) {
                REAL z = s[i] + nu, w = NAME(phi)(CAPPED_EXPONENTIAL, z);
                a += w, b += z < 0 ? w : 0;
            }
        } else {
#pragma omp simd reduction(+ : a, b)
            for (int64_t i = start; i < end; i++) {
                REAL z = s[i] + nu;
                a += NAME(phi)(CLIP, z), b += NAME(slope)(CLIP, z);
            }
        }
        *f += a, f1 += b, f2 += c;
    }
    if (link == SIGMOID) *next = nu - 2 * *f * f1 / (2 * f1 * f1 - *f * f2);
    else if (link == CAPPED_EXPONENTIAL) *next = nu + log1p(-*f / f1);
    else *next = nu - *f / f1;
}

/* The j-th largest of n numbers (j from 1), eight bits at a time: linear, whatever their order. */
static REAL NAME(select)(const REAL *x, int64_t n, int64_t j, REAL *buffer) {
    for (int shift = BITS - 8; shift >= 0 && n > 1; shift -= 8) {
        int64_t count[256] = {0}, kept = 0;
        int digit = 255;
#define DIGIT(i) ((int)((bits ^ (bits >> (BITS - 1) ? ~(UINT)0 : (UINT)1 << (BITS - 1))) >> shift & 255))
        UINT bits; /* whose order, negative numbers flipped, is that of the numbers */
        for (int64_t i = 0; i < n; i++) memcpy(&bits, x + i, sizeof bits), count[DIGIT(i)]++;
        while (j > count[digit]) j -= count[digit--];
        for (int64_t i = 0; i < n; i++) {
            memcpy(&bits, x + i, sizeof bits);
            if (DIGIT(i) == digit) buffer[kept++] = x[i];
        }
#undef DIGIT
        x = buffer, n = kept;
    }
    return x[0];
}

/* Weights, nu and c of one row, NaN where it has no answer; entries of -inf weigh nothing. work: 2n numbers. */
INLINE void NAME(project_row)(
    const REAL *x, int64_t n, double k, double tau, int64_t link, REAL *w, REAL *nu_out, REAL *c_out, REAL *work) {
    int64_t m = 0, wrong = !(tau > 0);
    REAL low = INFINITY, high = -INFINITY, sum = 0;
#pragma omp simd reduction(+ : sum, m) reduction(| : wrong) reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n; i++) {
        int finite = x[i] > -INFINITY;
        wrong |= !(x[i] < INFINITY), m += finite, sum += finite ? x[i] : 0;
        low = finite && x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    }
    if (wrong || m < k) {
        for (int64_t i = 0; i < n; i++) w[i] = (REAL)NAN;
        *nu_out = *c_out = (REAL)NAN;
        return;
    }
    REAL inverse = 1 / tau < LARGEST ? (REAL)(1 / tau) : LARGEST, c, *s = work + n;
    double nu, left, right;
    if (m < n) { /* the finite ones, side by side */
        int64_t at = 0;
        for (int64_t i = 0; i < n; i++)
            if (x[i] > -INFINITY) work[at++] = x[i];
    }
    const REAL *y = m < n ? work : x;
    if (m <= k) { /* all there are */
        c = low, nu = left = right = CLAMP;
    } else if ((high - low) * inverse <= (link == CLIP ? fmin(30, 4 * k) : 30)) {
        /* ordinary: the mean as the centre, and the guess of links.py; a few small clipped weights need a closer one */
        double p = k / m, odds = log(k / (m - k)), base = link == SIGMOID ? odds : (link == CLIP ? p : log(p));
        REAL squares = 0;
        c = sum / m, c = c > low ? (c < high ? c : high) : low; /* its rounding may lie outside */
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < m; i++) s[i] = (y[i] - c) * inverse, squares += s[i] * s[i];
        left = base - (high - c) * inverse, right = base - (low - c) * inverse;
        if (link == SIGMOID) nu = base * sqrt(1 + 0.39269908169872414 * squares / m);
        else if (link == CAPPED_EXPONENTIAL) nu = base - 0.5 * squares / m;
        else nu = 0.5 + odds / 1.7 * sqrt(1.0 / 12 + squares / m);
        nu = nu < left ? left : (nu > right ? right : nu);
    } else { /* any other: the order statistics at k give the centre and a tight bracket, see projections/dual.py */
        int64_t j = (int64_t)ceil(k), next = (int64_t)floor(k) + 1, above = 0;
        REAL below = -INFINITY;
        c = NAME(select)(y, m, j, w);
#pragma omp simd reduction(+ : above) reduction(max : below)
        for (int64_t i = 0; i < m; i++) {
            s[i] = NAME(scaled)(y[i], c, inverse), above += y[i] >= c;
            below = y[i] < c && y[i] > below ? y[i] : below;
        }
        double gap = above >= next ? 0 : -NAME(scaled)(below, c, inverse);
        double p = (k - (j - 1)) / (m - (j - 1)), q = k / next;
        if (link == SIGMOID) left = log(p) - log1p(-p), right = log(k / (next - k)) + gap;
        else if (link == CAPPED_EXPONENTIAL) left = log(p), right = fmin(log(q) + gap, 0);
        else left = p, right = fmin(q + gap, 1);
        nu = 0.5 * (left + right);
    }
    double tolerance = TOLERANCE * (k < m - k ? k : m - k), size = INFINITY, f, next;
    nu = (REAL)nu;
    for (int pass = 0; pass < 128 && m > k; pass++) {
        NAME(step)(link, s, m, (REAL)nu, k, &f, &next);
        if (fabs(f) <= tolerance) break;
        if (f < 0) left = nu; else right = nu;
        double trial = next < left ? left : (next > right ? right : (REAL)next);
        if (link == SIGMOID && fabs(trial - nu) <= NEAR && trial == (REAL)next) { /* what is left is its cube */
            nu = trial;
            break;
        }
        if (trial != nu && trial == trial && fabs(f) < 0.5 * size) {
            size = fabs(f);
        } else { /* after a bisection, a step is worth a try */
            trial = (REAL)(0.5 * (left + right)), size = INFINITY;
            if (!(trial > left && trial < right)) break;
        }
        nu = trial;
    }
    if (link == CLIP && m > k && m * (1 + fabs(nu)) > ROUNDED * k) { /* see Clip.moves in projections/links.py */
        REAL threshold = (REAL)(c - nu / inverse);
        nu = (REAL)(nu - ((double)c - threshold) * inverse), c = threshold, size = INFINITY;
#pragma omp simd
        for (int64_t i = 0; i < m; i++) s[i] = NAME(scaled)(y[i], c, inverse);
        for (double last = nu;; last = nu, nu = (REAL)next) {
            NAME(step)(link, s, m, (REAL)nu, k, &f, &next);
            if (fabs(f) >= size) nu = last;
            if (fabs(f) >= size || fabs(f) <= tolerance || !(next - next == 0)) break;
            size = fabs(f);
        }
    }
    *nu_out = (REAL)nu, *c_out = c;
    REAL shift = (REAL)nu;
#define WEIGHTS(link) \
    for (int64_t i = 0; i < n; i++) w[i] = x[i] > -INFINITY ? NAME(phi)(link, NAME(scaled)(x[i], c, inverse) + shift) : 0
    if (link == SIGMOID) WEIGHTS(SIGMOID);
    else if (link == CAPPED_EXPONENTIAL) WEIGHTS(CAPPED_EXPONENTIAL);
    else WEIGHTS(CLIP);
#undef WEIGHTS
}

/* Gradients of one row's scores (which may be those of its weights) and temperature; g_w or g_nu may be missing. */
INLINE void NAME(pull_back_row)(
    const REAL *x, int64_t n, double tau, int64_t link, REAL nu, REAL c, const REAL *g_w, REAL g_nu, REAL *g_x,
    REAL *g_tau, REAL *q) {
    REAL inverse = 1 / tau < LARGEST ? (REAL)(1 / tau) : LARGEST;
    double total = 0, dot = g_nu, pull = 0;
    if (!(nu == nu)) { /* a row without an answer has no gradient */
        for (int64_t i = 0; i < n; i++) g_x[i] = 0;
        *g_tau = 0;
        return;
    }
#define SLOPES(link) \
    for (int64_t i = start; i < end; i++) { \
        q[i] = x[i] > -INFINITY ? NAME(slope)(link, NAME(scaled)(x[i], c, inverse) + nu) : 0; \
        a += q[i], b += g_w ? q[i] * g_w[i] : 0; \
    }
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t end = start + BLOCK < n ? start + BLOCK : n;
        REAL a = 0, b = 0;
        if (link == SIGMOID) {
#pragma omp simd reduction(+ : a, b)
            SLOPES(SIGMOID)
        } else if (link == CAPPED_EXPONENTIAL) {
#pragma omp simd reduction(+ : a, b)
            SLOPES(CAPPED_EXPONENTIAL)
        } else {
#pragma omp simd reduction(+ : a, b)
            SLOPES(CLIP)
        }
        total += a, dot += b;
    }
#undef SLOPES
    REAL mean = (REAL)(dot / (total > EPSILON * EPSILON ? total : EPSILON * EPSILON));
    for (int64_t start = 0; start < n; start += BLOCK) {
        int64_t end = start + BLOCK < n ? start + BLOCK : n;
        REAL a = 0;
#pragma omp simd reduction(+ : a)
        for (int64_t i = start; i < end; i++) {
            g_x[i] = q[i] * ((g_w ? g_w[i] : 0) - mean) * inverse;
            a += g_x[i] * NAME(scaled)(x[i], c, inverse);
        }
        pull += a;
    }
    *g_tau = (REAL)-pull;
}

#define TAU(t, row) ((t)->temperatures ? (double)(t)->temperatures[row] : (t)->temperature)

typedef struct {
    const REAL *x, *temperatures; /* (rows, n); (rows), or NULL for the one temperature */
    int64_t n, link;
    double k, temperature;
    REAL *w, *nu, *c;
    const REAL *g_w, *g_nu; /* either may be NULL */
    REAL *g_x, *g_tau;
} NAME(project_task);

FAST int NAME(project_rows)(const void *task, int64_t first, int64_t end) {
    const NAME(project_task) *t = task;
    REAL *work = malloc(2 * t->n * sizeof(REAL));
    if (!work) return 1;
    for (int64_t row = first; row < end; row++)
        NAME(project_row)(t->x + row * t->n, t->n, t->k, TAU(t, row), t->link, t->w + row * t->n, t->nu + row,
                          t->c + row, work);
    free(work);
    return 0;
}

int NAME(dcem_project)(
    const REAL *x, const REAL *temperatures, double temperature, int64_t rows, int64_t n, double k, int64_t link, REAL *w,
    REAL *nu, REAL *c, int64_t threads) {
    NAME(project_task) t = {x, temperatures, n, link, k, temperature, w, nu, c, NULL, NULL, NULL, NULL};
    return over_rows(NAME(project_rows), &t, rows, threads);
}

FAST int NAME(project_backward_rows)(const void *task, int64_t first, int64_t end) {
    const NAME(project_task) *t = task;
    REAL *q = malloc(t->n * sizeof(REAL));
    if (!q) return 1;
    for (int64_t row = first; row < end; row++)
        NAME(pull_back_row)(t->x + row * t->n, t->n, TAU(t, row), t->link, t->nu[row], t->c[row],
                            t->g_w ? t->g_w + row * t->n : NULL, t->g_nu ? t->g_nu[row] : 0, t->g_x + row * t->n,
                            t->g_tau + row, q);
    free(q);
    return 0;
}

int NAME(dcem_project_backward)(
    const REAL *x, const REAL *temperatures, double temperature, int64_t rows, int64_t n, int64_t link, REAL *nu, REAL *c,
    const REAL *g_w, const REAL *g_nu, REAL *g_x, REAL *g_tau, int64_t threads) {
    NAME(project_task) t = {x, temperatures, n, link, 0, temperature, NULL, nu, c, g_w, g_nu, g_x, g_tau};
    return over_rows(NAME(project_backward_rows), &t, rows, threads);
}
