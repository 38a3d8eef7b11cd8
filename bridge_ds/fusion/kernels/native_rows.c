/* The primitives in C with OpenMP, for CPUs: each token's L states are read once from memory, where they lie.
 *
 * Same contract as torch_rows.py. Built by native_build.py with the machine's own compiler. States are float32 or
 * bfloat16; everything else is float32. This file includes itself once for each type of state.
 *
 * Letters: m tokens of a call, L layers, P = L + 1 places, D width, H heads. `index` holds row numbers (or is null: rows
 * lo, lo + 1, ...); `strides` the elements from one row of a state to the next.
 */
#ifndef STATE

#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 32 /* partial sums: enough for the vector units of any current CPU */

static inline float from_float32(float x) { return x; }

static inline float from_bfloat16(uint16_t x) {
    union {
        uint32_t bits;
        float value;
    } wide = {(uint32_t)x << 16};
    return wide.value;
}

/* By halves: one after the other would wait for each sum before the next. */
static inline float add_up(float *sums) {
    for (int half = LANES / 2; half; half /= 2)
        for (int k = 0; k < half; k++) sums[k] += sums[k + half];
    return sums[0];
}

/* The 64 bits of number i of a seed: SplitMix64, as dropout.py has it. */
static inline uint64_t bits_of(uint64_t seed, long i) {
    uint64_t z = seed + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Four factors of each number, its lowest 16 bits first. */
void draw(long count, uint64_t seed, long dropped, float kept_scale, float *factors, int threads) {
    const int16_t least = (int16_t)(dropped - 32768);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < count / 4; i++) {
        const uint64_t z = bits_of(seed, i);
        for (int k = 0; k < 4; k++) factors[4 * i + k] = (int16_t)(z >> 16 * k) >= least ? kept_scale : 0;
    }
    for (long at = count / 4 * 4; at < count; at++)
        factors[at] = (int16_t)(bits_of(seed, at / 4) >> at % 4 * 16) >= least ? kept_scale : 0;
}

#define STATE float
#define WIDE from_float32
#define NAME(name) name##_float32
#include "native_rows.c"
#undef STATE
#undef WIDE
#undef NAME
#define STATE uint16_t
#define WIDE from_bfloat16
#define NAME(name) name##_bfloat16
#include "native_rows.c"

#else

static inline float NAME(dot)(const STATE *a, const float *b, long n) {
    float sums[LANES] = {0}, total;
    long d = 0;
    for (; d + LANES <= n; d += LANES)
        for (int k = 0; k < LANES; k++) sums[k] += WIDE(a[d + k]) * b[d + k];
    total = add_up(sums);
    for (; d < n; d++) total += WIDE(a[d]) * b[d];
    return total;
}

/* out[l] = row l . b, four layers at a time. */
static inline void NAME(dot_all)(const STATE **row, const float *b, long L, long n, float *out) {
    long l = 0;
    for (; l + 4 <= L; l += 4) {
        const STATE *r0 = row[l], *r1 = row[l + 1], *r2 = row[l + 2], *r3 = row[l + 3];
        float s0[LANES] = {0}, s1[LANES] = {0}, s2[LANES] = {0}, s3[LANES] = {0};
        long d = 0;
        for (; d + LANES <= n; d += LANES)
            for (int k = 0; k < LANES; k++) {
                s0[k] += WIDE(r0[d + k]) * b[d + k];
                s1[k] += WIDE(r1[d + k]) * b[d + k];
                s2[k] += WIDE(r2[d + k]) * b[d + k];
                s3[k] += WIDE(r3[d + k]) * b[d + k];
            }
        out[l] = add_up(s0), out[l + 1] = add_up(s1), out[l + 2] = add_up(s2), out[l + 3] = add_up(s3);
        for (; d < n; d++) {
            out[l] += WIDE(r0[d]) * b[d];
            out[l + 1] += WIDE(r1[d]) * b[d];
            out[l + 2] += WIDE(r2[d]) * b[d];
            out[l + 3] += WIDE(r3[d]) * b[d];
        }
    }
    for (; l < L; l++) out[l] = NAME(dot)(row[l], b, n);
}

/* out (+)= sum of weights x rows. Four layers at a time: many streams at once outrun the prefetcher, and `out`, one
 * row, stays in the first cache. */
static inline void NAME(weigh)(const STATE **row, const float *weights, long L, long n, float *restrict out, int add) {
    long l = 0;
    if (!add) memset(out, 0, n * sizeof *out);
    for (; l + 4 <= L; l += 4) {
        const STATE *a = row[l], *b = row[l + 1], *c = row[l + 2], *e = row[l + 3];
        const float *w = weights + l;
        for (long d = 0; d < n; d++) out[d] += w[0] * WIDE(a[d]) + w[1] * WIDE(b[d]) + w[2] * WIDE(c[d]) + w[3] * WIDE(e[d]);
    }
    for (; l < L; l++)
        for (long d = 0; d < n; d++) out[d] += weights[l] * WIDE(row[l][d]);
}

/* The states of one token: where its row begins in each layer. */
static inline void NAME(find)(
    const STATE **row, void *const *states, const long *strides, const long *index, long L, long token) {
    const long r = index ? index[token] : token;
    for (long l = 0; l < L; l++) row[l] = (const STATE *)states[l] + r * strides[l];
}

void NAME(attend)(
    void *const *states, const long *strides, const long *index, long lo, long m, long L, long D, long H, const float *u,
    const float *place_scores, const float *keep, const float *scale, float *attention, float *pooled, int threads) {
    const long P = L + 1;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < m; i++) {
        const STATE *row[L];
        float weights[L];
        NAME(find)(row, states, strides, index, L, lo + i);
        for (long h = 0; h < H; h++) {
            const long at = (i * H + h) * P;
            float *a = attention + at, top, sum = 0;
            top = a[0] = place_scores[h * P];
            NAME(dot_all)(row, u + h * D, L, D, a + 1);
            for (long l = 0; l < L; l++) {
                if (scale) a[l + 1] *= scale[i * L + l];
                a[l + 1] += place_scores[h * P + l + 1];
                if (a[l + 1] > top) top = a[l + 1];
            }
            for (long p = 0; p < P; p++) sum += a[p] = expf(a[p] - top);
            for (long p = 0; p < P; p++) a[p] /= sum;
            for (long l = 0; l < L; l++)
                weights[l] = a[l + 1] * (keep ? keep[at + l + 1] : 1) * (scale ? scale[i * L + l] : 1);
            NAME(weigh)(row, weights, L, D, pooled + (h * m + i) * D, 0);
        }
    }
}

/* sums: [threads, H, D], zeros; a thread adds its tokens' part of the gradient of u to its own. */
void NAME(attend_backward)(
    void *const *states, const long *strides, const long *index, long lo, long m, long L, long D, long H,
    const float *d_pooled, const float *d_kept, const float *attention, const float *keep, const float *scale,
    float *d_scores, float *sums, int threads) {
    const long P = L + 1;
#pragma omp parallel num_threads(threads)
    {
        float *mine = sums + omp_get_thread_num() * H * D;
#pragma omp for schedule(static)
        for (long i = 0; i < m; i++) {
            const STATE *row[L];
            float weights[L];
            NAME(find)(row, states, strides, index, L, lo + i);
            for (long h = 0; h < H; h++) {
                const long at = (i * H + h) * P;
                const float *a = attention + at;
                float *d = d_scores + at, mean = 0;
                d[0] = 0;
                NAME(dot_all)(row, d_pooled + (h * m + i) * D, L, D, d + 1);
                for (long p = 0; p < P; p++) {
                    if (scale && p) d[p] *= scale[i * L + p - 1];
                    d[p] += d_kept[at + p];
                    if (keep) d[p] *= keep[at + p];
                    mean += a[p] * d[p];
                }
                for (long p = 0; p < P; p++) d[p] = a[p] * (d[p] - mean);
                for (long l = 0; l < L; l++) weights[l] = scale ? d[l + 1] * scale[i * L + l] : d[l + 1];
                NAME(weigh)(row, weights, L, D, mine + h * D, 1);
            }
        }
    }
}

/* weights: H x L numbers for each token, `next` elements from one token's to the next one's (0: all share them). */
void NAME(mix)(
    void *const *states, const long *strides, const long *index, long lo, long m, long L, long D, long H,
    const float *weights, long next, float *out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < m; i++) {
        const STATE *row[L];
        NAME(find)(row, states, strides, index, L, lo + i);
        for (long h = 0; h < H; h++) NAME(weigh)(row, weights + i * next + h * L, L, D, out + (h * m + i) * D, 0);
    }
}

void NAME(dots)(
    void *const *states, const long *strides, const long *index, long lo, long m, long L, long D, long H,
    const float *vectors, float *found, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < m; i++) {
        const STATE *row[L];
        NAME(find)(row, states, strides, index, L, lo + i);
        for (long h = 0; h < H; h++) NAME(dot_all)(row, vectors + (h * m + i) * D, L, D, found + (i * H + h) * L);
    }
}

/* sums: [threads, L] in float64, zeros. */
void NAME(dot_totals)(
    void *const *states, const long *strides, const long *index, long lo, long m, long L, long D, const float *vectors,
    double *sums, int threads) {
#pragma omp parallel num_threads(threads)
    {
        double *mine = sums + omp_get_thread_num() * L;
#pragma omp for schedule(static)
        for (long i = 0; i < m; i++) {
            const STATE *row[L];
            NAME(find)(row, states, strides, index, L, lo + i);
            float found[L];
            NAME(dot_all)(row, vectors + i * D, L, D, found);
            for (long l = 0; l < L; l++) mine[l] += found[l];
        }
    }
}

void NAME(mean_squares)(
    void *const *states, const long *strides, const long *index, long lo, long m, long L, long D, float *found,
    int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long i = 0; i < m; i++) {
        const STATE *row[L];
        NAME(find)(row, states, strides, index, L, lo + i);
        for (long l = 0; l < L; l++) {
            float sums[LANES] = {0}, total;
            long d = 0;
            for (; d + LANES <= D; d += LANES)
                for (int k = 0; k < LANES; k++) sums[k] += WIDE(row[l][d + k]) * WIDE(row[l][d + k]);
            total = add_up(sums);
            for (; d < D; d++) total += WIDE(row[l][d]) * WIDE(row[l][d]);
            found[i * L + l] = total / D;
        }
    }
}

#endif
