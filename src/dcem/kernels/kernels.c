/* The operators of dcem.kernels on the CPU: soft projections and the refit of a diagonal Gaussian, row by row.
 *
 * The mathematics is that of dcem.projections and dcem.solvers, which remain the reference; here a whole row stays in
 * cache and costs one call. Every row is computed by itself, so that its bits depend on nothing but the row.
 * projection.h and refit.h are included twice, once for float and once for double.
 *
 *   projection   w = phi(z),  z = s + nu,  s = (x - c) / tau,  sum w = k
 *   backward     g_s = q (g_w - (<q, g_w> + g_nu) / sum q),  q = phi'(z)
 *   refit        x = -(v - mean v) / std v,  w = LML of x,  mu = sum w X / sum w,  sigma^2 = sum w (X - mu)^2 / sum w
 */
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef FAST
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FAST
#endif
#endif
#define INLINE static inline __attribute__((always_inline))
#define CONCAT_(a, b) a##b
#define CONCAT(a, b) CONCAT_(a, b)
#define NAME(f) CONCAT(f, SUFFIX)

#define ROUNDED 84 /* sums of this many roundings for each unit of k are as exact as they have to be */
#define BLOCK 512 /* numbers that are added in single precision: of long sums the digits would be lost */

enum { SIGMOID, CAPPED_EXPONENTIAL, CLIP }; /* phi: of LML, the constrained softmax, the constrained sparsemax */

/* Rows are divided among threads that live as long as the call: nothing is left running when it returns, whatever
 * signal arrives, and a forked child finds no pool that it has no threads for. */
enum { MOST_THREADS = 64 };
typedef int (*rows_of)(const void *task, int64_t first, int64_t end); /* returns 1 where memory was lacking */
typedef struct {
    rows_of run;
    const void *task;
    int64_t first, end;
    int failed;
} part;

static void *run_part(void *argument) {
    part *p = argument;
    p->failed = p->run(p->task, p->first, p->end);
    return NULL;
}

static int over_rows(rows_of run, const void *task, int64_t rows, int64_t threads) {
    part parts[MOST_THREADS];
    pthread_t handles[MOST_THREADS];
    int started[MOST_THREADS], failed = 0;
    threads = threads < 1 ? 1 : (threads > MOST_THREADS ? MOST_THREADS : threads);
    for (int64_t i = 0; i < threads; i++) {
        parts[i] = (part){run, task, rows * i / threads, rows * (i + 1) / threads, 0};
        started[i] = i > 0 && pthread_create(&handles[i], NULL, run_part, &parts[i]) == 0;
    }
    for (int64_t i = 0; i < threads; i++)
        if (!started[i]) run_part(&parts[i]);
    for (int64_t i = 0; i < threads; i++) {
        if (started[i]) pthread_join(handles[i], NULL);
        failed |= parts[i].failed;
    }
    return failed;
}

#define REAL float
#define UINT uint32_t
#define SUFFIX _f32
#define EXP_LOW -87.0f
#define EXP_HIGH 88.0f
#define BITS 32
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127
#define ROUNDER 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, in the lowest bits */
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define TOLERANCE 5e-7
#define NEAR 4.9e-3 /* cube root of the machine precision */
#define CLAMP 200.0f /* beyond it every weight is 0 or 1 to the last digit, and nu still has digits */
#define EPSILON FLT_EPSILON
#define SMALLEST FLT_MIN
#define LARGEST FLT_MAX
#include "projection.h"
#include "refit.h"

#undef REAL
#undef UINT
#undef SUFFIX
#undef EXP_LOW
#undef EXP_HIGH
#undef BITS
#undef MANTISSA_BITS
#undef EXPONENT_BIAS
#undef ROUNDER
#undef LN2_HIGH
#undef LN2_LOW
#undef TOLERANCE
#undef NEAR
#undef CLAMP
#undef EPSILON
#undef SMALLEST
#undef LARGEST
#define REAL double
#define UINT uint64_t
#define SUFFIX _f64
#define EXP_LOW -708.0
#define EXP_HIGH 709.0
#define BITS 64
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023
#define ROUNDER 6755399441055744.0 /* 1.5 * 2^52 */
#define LN2_HIGH 0.693145751953125
#define LN2_LOW 1.42860682030941723212e-6
#define TOLERANCE 2e-15
#define NEAR 6e-6
#define CLAMP 1500.0
#define EPSILON DBL_EPSILON
#define SMALLEST DBL_MIN
#define LARGEST DBL_MAX
#define DOUBLE
#include "projection.h"
#include "refit.h"
