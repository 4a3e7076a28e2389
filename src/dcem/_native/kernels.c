/* One row at a time: LML, and the refit of a diagonal Gaussian to LML-weighted samples, forward and backward.
 *
 * The mathematics is that of dcem.projections and dcem.solvers, which remain the reference; here a whole row stays in
 * cache and costs one call. This file includes itself once for float and once for double.
 *
 *   LML          w = sigma(z),  z = s + nu,  sum w = k
 *   backward     g_s = q (g_w - <q, g_w> / sum q),  q = sigma(z) sigma(-z)
 *   refit        s = -(v - mean v) / (std v * tau),  mu = sum w X / sum w,  sigma^2 = sum w (X - mu)^2 / sum w
 */
#ifndef REAL

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#define CONCAT_(a, b) a##b
#define CONCAT(a, b) CONCAT_(a, b)
#define NAME(f) CONCAT(f, SUFFIX)

#define REAL float
#define INT int32_t
#define SUFFIX _f32
#define EXP_LOW -87.0f
#define EXP_HIGH 88.0f
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define TOLERANCE 5e-7
#define CLAMP 200.0f /* beyond it every weight is 0 or 1 to the last digit, and nu still has digits */
#define SPREAD 30
#define SMALLEST 1.2e-38
#define EPSILON FLT_EPSILON
#include "kernels.c"

#undef REAL
#undef INT
#undef SUFFIX
#undef EXP_LOW
#undef EXP_HIGH
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUNDER
#undef LN2_HIGH
#undef LN2_LOW
#undef TOLERANCE
#undef CLAMP
#undef SPREAD
#undef SMALLEST
#undef EPSILON
#define REAL double
#define INT int64_t
#define SUFFIX _f64
#define EXP_LOW -708.0
#define EXP_HIGH 709.0
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52 */
#define LN2_HIGH 0.693145751953125
#define LN2_LOW 1.42860682030941723212e-6
#define TOLERANCE 1e-14
#define CLAMP 1500.0
#define SPREAD 30
#define SMALLEST 2.3e-308
#define EPSILON DBL_EPSILON
#define DOUBLE
#include "kernels.c"

#else /* ---------------------------------------------------------------------------------- for one REAL */

/* exp by 2^m e^r with |r| <= ln 2 / 2 and the Taylor polynomial of e^r; a loop over it vectorises. */
static inline __attribute__((always_inline)) REAL NAME(exp_)(REAL x) {
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
    INT bits = ((INT)m + EXPONENT_BIAS) << MANTISSA_BITS;
    REAL power;
    memcpy(&power, &bits, sizeof power);
    return p * power;
}

/* sum w - k, sum w(1-w), sum w(1-w)(1-2w) at nu */
static inline __attribute__((always_inline)) void NAME(residual)(
    const REAL *s, int64_t n, REAL nu, double k, double *f, double *f1, double *f2) {
    *f = -k, *f1 = 0, *f2 = 0;
    for (int64_t start = 0; start < n; start += 4096) { /* blocks, so that long sums keep their digits */
        int64_t end = start + 4096 < n ? start + 4096 : n;
        REAL a = 0, b = 0, c = 0;
#pragma omp simd reduction(+ : a, b, c)
        for (int64_t i = start; i < end; i++) {
            REAL w = 1 / (1 + NAME(exp_)(-(s[i] + nu))), q = w * (1 - w);
            a += w, b += q, c += q * (1 - 2 * w);
        }
        *f += a, *f1 += b, *f2 += c;
    }
}

/* the j-th largest of s (j from 1), which is reordered */
static REAL NAME(select)(REAL *s, int64_t n, int64_t j) {
    int64_t low = 0, high = n - 1, target = j - 1;
    while (low < high) {
        REAL pivot = s[low + (high - low) / 2];
        int64_t a = low, b = high;
        while (a <= b) {
            while (s[a] > pivot) a++;
            while (s[b] < pivot) b--;
            if (a <= b) {
                REAL t = s[a];
                s[a++] = s[b], s[b--] = t;
            }
        }
        if (target <= b) high = b;
        else if (target >= a) low = a;
        else break;
    }
    return s[target];
}

/* Fill s_i = (x_i - c) / tau and find nu with sum sigma(s + nu) = k, 0 < k < n, by Halley's method inside a bracket.
 * Needs finite x; work holds n numbers. */
static inline __attribute__((always_inline)) void NAME(solve)(
    const REAL *x, int64_t n, double k, double tau, REAL *s, REAL *work, REAL *center, REAL *nu_out) {
    REAL sum = 0, low = x[0], high = x[0], inverse = (REAL)(1 / tau);
#pragma omp simd reduction(+ : sum) reduction(min : low) reduction(max : high)
    for (int64_t i = 0; i < n; i++) {
        sum += x[i];
        low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
    }
    double nu, left, right;
    if ((high - low) * inverse <= SPREAD) { /* scores of ordinary size: the mean as centre, a guess by their variance */
        REAL c = sum / n, squares = 0, logit = (REAL)log(k / (n - k));
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < n; i++) {
            s[i] = (x[i] - c) * inverse;
            squares += s[i] * s[i];
        }
        *center = c;
        left = logit - (high - c) * inverse, right = logit - (low - c) * inverse;
        nu = logit * sqrt(1 + 0.39269908169872414 * squares / n);
    } else { /* any other: the order statistics at k give the centre and a tight bracket */
        int64_t j = (int64_t)ceil(k), next = (int64_t)floor(k) + 1;
        memcpy(work, x, n * sizeof(REAL));
        REAL c = NAME(select)(work, n, j);
        REAL gap = next == j ? 0 : (c - NAME(select)(work, n, next)) * inverse;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            REAL d = (x[i] - c) * inverse;
            s[i] = d < -CLAMP ? -CLAMP : (d > CLAMP ? CLAMP : d);
        }
        *center = c;
        left = log((k - (j - 1)) / (n - k)), right = log(k / (next - k)) + (gap < CLAMP ? gap : CLAMP);
        nu = 0.5 * (left + right);
    }
    double tolerance = TOLERANCE * (k < n - k ? k : n - k);
    for (int pass = 0; pass < 60; pass++) {
        double f, f1, f2;
        NAME(residual)(s, n, (REAL)nu, k, &f, &f1, &f2);
        if (fabs(f) <= tolerance || (REAL)left == (REAL)right) break;
        if (f < 0) left = nu; else right = nu;
        double next = nu - 2 * f * f1 / (2 * f1 * f1 - f * f2);
        next = next > left && next < right ? next : 0.5 * (left + right);
        if ((REAL)next == (REAL)nu) break;
        nu = next;
    }
    *nu_out = (REAL)nu;
}

/* w (and, in place of it, q = w (1 - w)) of one row */
static inline __attribute__((always_inline)) void NAME(weights)(const REAL *s, int64_t n, REAL nu, REAL *w) {
#pragma omp simd
    for (int64_t i = 0; i < n; i++) w[i] = 1 / (1 + NAME(exp_)(-(s[i] + nu)));
}

/* g_s = q (g_w - <q, g_w> / sum q) for one row, with q = sigma(z) sigma(-z); g_s may be g_w */
static inline __attribute__((always_inline)) void NAME(pull_back)(
    const REAL *s, int64_t n, REAL nu, const REAL *g_w, REAL *q, REAL *g_s) {
    REAL total = 0, dot = 0;
#pragma omp simd reduction(+ : total, dot)
    for (int64_t i = 0; i < n; i++) {
        REAL z = s[i] + nu, e = NAME(exp_)(z < 0 ? z : -z), one = 1 + e;
        q[i] = s[i] > -CLAMP && s[i] < CLAMP ? e / (one * one) : 0;
        total += q[i], dot += q[i] * g_w[i];
    }
    REAL mean = total > 0 ? dot / total : 0;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) g_s[i] = q[i] * (g_w[i] - mean);
}

/* Rows with a number that is not finite are left to the reference, marked by nu = NaN; returns how many there are. */
FAST int64_t NAME(dcem_lml_forward)(
    const REAL *x, int64_t rows, int64_t n, double k, double tau, REAL *w, REAL *nu, REAL *center, REAL *scratch) {
    int64_t left_alone = 0;
    for (int64_t row = 0; row < rows; row++, x += n, w += n) {
        int finite = 1;
#pragma omp simd reduction(& : finite)
        for (int64_t i = 0; i < n; i++) finite &= x[i] - x[i] == 0;
        if (!finite) {
            nu[row] = center[row] = (REAL)NAN, left_alone++;
            continue;
        }
        NAME(solve)(x, n, k, tau, scratch, scratch + n, center + row, nu + row);
        NAME(weights)(scratch, n, nu[row], w);
    }
    return left_alone;
}

FAST void NAME(dcem_lml_backward)(
    const REAL *x, int64_t rows, int64_t n, double tau, const REAL *nu, const REAL *center, const REAL *g_w, REAL *g_x,
    REAL *scratch) {
    REAL inverse = (REAL)(1 / tau);
    for (int64_t row = 0; row < rows; row++, x += n, g_w += n, g_x += n) {
        REAL c = center[row];
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            REAL d = (x[i] - c) * inverse;
            scratch[i] = d < -CLAMP ? -CLAMP : (d > CLAMP ? CLAMP : d);
        }
        NAME(pull_back)(scratch, n, nu[row], g_w, scratch + n, g_x);
#pragma omp simd
        for (int64_t i = 0; i < n; i++) g_x[i] *= inverse;
    }
}

/* v (rows, n), X (rows, n, d) -> w (rows, n), mu and sigma (rows, d); scores s_i = (x_i - center) / tau of the
 * standardised values x = -(v - mean v) unit are kept in s, for the backward pass. Failed samples weigh nothing; a row
 * with fewer finite values than k, or whose values differ by no more than their rounding (see dcem.solvers.scores), has
 * valid = 0 and the weights of equal values. Returns how many rows are not valid. */
FAST int64_t NAME(dcem_refit_forward)(
    const REAL *v, const REAL *X, int64_t rows, int64_t n, int64_t d, double k, double tau, int64_t standardize, REAL low,
    REAL high, REAL *w, REAL *mu, REAL *sigma, REAL *s, REAL *nu, REAL *unit, REAL *valid, REAL *scratch) {
    int64_t invalid = 0;
    for (int64_t row = 0; row < rows; row++, v += n, X += n * d, w += n, mu += d, sigma += d, s += n) {
        REAL *x = scratch, center;
        int64_t m = 0;
        double sum = 0, squares = 0, first = 0; /* about the first value, so that equal values have no variance */
        double bottom = INFINITY, top = -INFINITY;
        for (int64_t i = 0; i < n; i++)
            if (v[i] - v[i] == 0) {
                if (m++ == 0) first = v[i];
                sum += v[i] - first;
                bottom = v[i] < bottom ? v[i] : bottom, top = v[i] > top ? v[i] : top;
            }
        valid[row] = m >= k && top - bottom > 32 * (double)EPSILON * (top > -bottom ? top : -bottom);
        if (!valid[row]) invalid++, m = n;
        double mean = first + sum / m;
        if (standardize) {
            double largest = 0;
            for (int64_t i = 0; i < n; i++)
                if (v[i] - v[i] == 0) largest = fabs(v[i] - mean) > largest ? fabs(v[i] - mean) : largest;
            for (int64_t i = 0; i < n; i++)
                if (v[i] - v[i] == 0 && largest > 0) squares += (v[i] - mean) / largest * ((v[i] - mean) / largest);
            double std = largest * sqrt(squares / m);
            unit[row] = std >= SMALLEST && valid[row] ? (REAL)(1 / std) : 0;
        } else {
            unit[row] = valid[row];
        }
        int64_t at = 0; /* the finite values, side by side */
        for (int64_t i = 0; i < n; i++)
            if (!valid[row]) x[at++] = 0;
            else if (v[i] - v[i] == 0) x[at++] = (REAL)(-(v[i] - mean) * unit[row]);
        if (m > k) {
            NAME(solve)(x, m, k, tau, s, scratch + n, &center, nu + row);
            NAME(weights)(s, m, nu[row], w);
        } else { /* all there are */
            nu[row] = CLAMP;
            for (int64_t i = 0; i < m; i++) w[i] = 1, s[i] = CLAMP;
        }
        if (m < n) /* back to their places */
            for (int64_t i = n - 1; i >= 0; i--) {
                int finite = v[i] - v[i] == 0;
                w[i] = finite ? w[--m] : 0, s[i] = finite ? s[m] : -CLAMP - nu[row];
            }
        double total = 0;
        for (int64_t i = 0; i < n; i++) total += w[i];
        REAL share = (REAL)(1 / total);
        for (int64_t c = 0; c < d; c++) mu[c] = 0, sigma[c] = 0;
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < d; c++) mu[c] += w[i] * share * X[i * d + c];
        for (int64_t i = 0; i < n; i++)
            for (int64_t c = 0; c < d; c++) {
                REAL r = X[i * d + c] - mu[c];
                sigma[c] += w[i] * share * r * r;
            }
        for (int64_t c = 0; c < d; c++) {
            REAL std = (REAL)sqrt(sigma[c]);
            sigma[c] = std < low ? low : (std > high ? high : std);
        }
    }
    return invalid;
}

/* g_v and g_X from g_w (may be NULL), g_mu and g_sigma (either may be NULL) */
FAST void NAME(dcem_refit_backward)(
    const REAL *v, const REAL *X, int64_t rows, int64_t n, int64_t d, double k, double tau, int64_t standardize, REAL low,
    REAL high, const REAL *w, const REAL *mu, const REAL *sigma, const REAL *s, const REAL *nu,
    const REAL *unit, const REAL *g_w, const REAL *g_mu, const REAL *g_sigma, REAL *g_v, REAL *g_X, REAL *scratch) {
    REAL over_k = (REAL)(1 / k), *g = scratch, *q = scratch + n, *g_variance = scratch + 2 * n;
    for (int64_t row = 0; row < rows; row++) {
        for (int64_t c = 0; c < d; c++) /* d sigma^2 = 2 sigma d sigma, and nothing where sigma is clamped */
            g_variance[c] = g_sigma && sigma[c] > low && sigma[c] < high ? g_sigma[c] / (2 * sigma[c]) : 0;
        for (int64_t i = 0; i < n; i++) {
            REAL sum = 0;
            for (int64_t c = 0; c < d; c++) {
                REAL r = X[i * d + c] - mu[c], g_m = g_mu ? g_mu[c] : 0;
                sum += g_m * r + g_variance[c] * r * r;
                g_X[i * d + c] = w[i] * over_k * (g_m + 2 * g_variance[c] * r);
            }
            g[i] = sum * over_k + (g_w ? g_w[i] : 0);
        }
        NAME(pull_back)(s, n, nu[row], g, q, g);
        double sum = 0, dot = 0, first = 0, mean = 0, squares = 0;
        int64_t m = 0;
        for (int64_t i = 0; i < n; i++) /* the mean again in double: a rounded one would not cancel in g_v */
            if (v[i] - v[i] == 0) {
                if (m++ == 0) first = v[i];
                mean += v[i] - first;
            }
        mean = first + mean / (m ? m : 1);
        for (int64_t i = 0; i < n; i++) {
            int finite = v[i] - v[i] == 0;
            double u = finite ? (v[i] - mean) * unit[row] : 0;
            g[i] = finite && unit[row] > 0 ? -g[i] / (REAL)tau : 0;
            sum += g[i], dot += g[i] * u, squares += u * u;
        }
        double shared = sum / (m ? m : 1), slope = squares > 0 ? dot / squares : 0;
        for (int64_t i = 0; i < n; i++) {
            int finite = v[i] - v[i] == 0;
            double u = finite ? (v[i] - mean) * unit[row] : 0;
            g_v[i] = !finite ? 0 : standardize ? (REAL)((g[i] - shared - u * slope) * unit[row]) : g[i];
        }
        v += n, X += n * d, w += n, mu += d, sigma += d, s += n, g_v += n, g_X += n * d;
        if (g_w) g_w += n;
        if (g_mu) g_mu += d;
        if (g_sigma) g_sigma += d;
    }
}

#endif
