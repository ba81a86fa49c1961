/* `vidi.image.resize` with the vector instructions of newer x86 processors: AVX-512 with VBMI, which
   picks any 64 bytes out of 64, and VNNI, which multiplies 32 pairs of them and adds. The sums are
   of whole numbers, so they are those of the exact one, whatever their order.

   Compiled when vidi is installed from its source (hatch_build.py), and called by `compiled.py`. */

#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VECTOR __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))
#define INLINE static inline __attribute__((always_inline))

/* Weights are taken two by two. Enough for a cubic that shrinks to a quarter. */
#define MOST_PAIRS 8
/* Fifteen sums of red, green and blue fill a vector of sixteen. */
#define PIXELS 5
/* Every other byte: a byte that is followed by a zero is a number of 16 bits. */
#define LOW_BYTES 0x5555555555555555u

/* A target pixel t is the sum of taps[t * count + k] * source[first[t] + k], over 2**bits. */
typedef struct {
    const int64_t *first;
    const int32_t *taps;
    int count;
    int bits;
} Weights;

int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
           __builtin_cpu_supports("avx512vnni");
}

/* The first `many` of 64 bytes. */
INLINE uint64_t first_bytes(ptrdiff_t many) {
    return many < 64 ? ((uint64_t)1 << many) - 1 : ~(uint64_t)0;
}

/* Sixteen sums, which begin with a half of what they are divided by, to 0..255. */
VECTOR INLINE __m128i rounded(__m512i sums, int bits) {
    const __m512i zero = _mm512_setzero_si512();
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_srai_epi32(sums, bits), zero));
}

/* Five columns of the target, from a window of 64 bytes of every row. Writes 16 bytes a row.
   `pairs` is a constant wherever this is called: what is in the loops stays in registers. */
VECTOR INLINE void five_columns(const uint8_t *source, ptrdiff_t stride, int height,
                                uint64_t readable, uint8_t *out, ptrdiff_t out_stride,
                                const uint8_t places[][64], const int16_t taps[][32], int pairs,
                                int bits) {
    const __m512i half = _mm512_set1_epi32(1 << (bits - 1));
    __m512i place[MOST_PAIRS], tap[MOST_PAIRS];
    for (int pair = 0; pair < pairs; pair++) {
        place[pair] = _mm512_loadu_si512(places[pair]);
        tap[pair] = _mm512_loadu_si512(taps[pair]);
    }
    for (int row = 0; row < height; row++) {
        const __m512i window = _mm512_maskz_loadu_epi8(readable, source + row * stride);
        __m512i sums = half;
        for (int pair = 0; pair < pairs; pair++) {
            const __m512i both = _mm512_maskz_permutexvar_epi8(LOW_BYTES, place[pair], window);
            sums = _mm512_dpwssd_epi32(sums, both, tap[pair]);
        }
        _mm_storeu_si128((__m128i *)(out + row * out_stride), rounded(sums, bits));
    }
}

/* All rows to another width; 0 where five columns need more than 64 bytes of a row. */
VECTOR static int along_rows(const uint8_t *source, ptrdiff_t stride, int height, int width,
                             uint8_t *out, ptrdiff_t out_stride, int to_width,
                             const Weights *weights) {
    for (int start = 0; start < to_width; start += PIXELS) {
        const int64_t first = weights->first[start];
        uint8_t places[MOST_PAIRS][64] = {{0}};
        int16_t taps[MOST_PAIRS][32] = {{0}};
        for (int pixel = 0; pixel < PIXELS && start + pixel < to_width; pixel++) {
            const int target = start + pixel;
            for (int k = 0; k < weights->count; k++) {
                const int32_t tap = weights->taps[(ptrdiff_t)target * weights->count + k];
                const int64_t place = 3 * (weights->first[target] + k - first);
                if (tap == 0) continue; /* Past the end of the row, among others. */
                if (place + 3 > 64) return 0;
                for (int channel = 0; channel < 3; channel++) {
                    const int lane = 3 * pixel + channel;
                    places[k / 2][4 * lane + 2 * (k % 2)] = (uint8_t)(place + channel);
                    taps[k / 2][2 * lane + k % 2] = (int16_t)tap;
                }
            }
        }
#define FIVE(pairs)                                                                               \
    case pairs:                                                                                   \
        five_columns(source + 3 * first, stride, height, first_bytes(3 * (width - first)),        \
                     out + 3 * start, out_stride, (const uint8_t(*)[64])places,                   \
                     (const int16_t(*)[32])taps, pairs, weights->bits);                           \
        break;
        switch ((weights->count + 1) / 2) {
            FIVE(1) FIVE(2) FIVE(3) FIVE(4) FIVE(5) FIVE(6) FIVE(7) FIVE(8)
        }
    }
    return 1;
}

/* One row of the target, `length` bytes, from the rows of the source below one another. */
VECTOR INLINE void one_row(const uint8_t *source, ptrdiff_t stride, ptrdiff_t length, uint8_t *out,
                           const int32_t *taps, int pairs, int bits, const __m512i *places) {
    const __m512i half = _mm512_set1_epi32(1 << (bits - 1));
    for (ptrdiff_t at = 0; at < length; at += 64) {
        const uint64_t inside = first_bytes(length - at);
        __m512i sums[4] = {half, half, half, half};
        for (int pair = 0; pair < pairs; pair++) {
            const uint8_t *from = source + 2 * pair * stride + at;
            const __m512i upper = _mm512_maskz_loadu_epi8(inside, from);
            const __m512i lower = _mm512_maskz_loadu_epi8(inside, from + stride);
            const __m512i tap = _mm512_set1_epi32(taps[pair]);
            for (int part = 0; part < 4; part++) {
                const __m512i both =
                    _mm512_maskz_permutex2var_epi8(LOW_BYTES, upper, places[part], lower);
                sums[part] = _mm512_dpwssd_epi32(sums[part], both, tap);
            }
        }
        __m512i bytes = _mm512_castsi128_si512(rounded(sums[0], bits));
        bytes = _mm512_inserti32x4(bytes, rounded(sums[1], bits), 1);
        bytes = _mm512_inserti32x4(bytes, rounded(sums[2], bits), 2);
        bytes = _mm512_inserti32x4(bytes, rounded(sums[3], bits), 3);
        _mm512_mask_storeu_epi8(out + at, inside, bytes);
    }
}

/* All columns to another height. An odd number of weights reads one row more, times zero. */
VECTOR static void along_columns(const uint8_t *source, ptrdiff_t stride, ptrdiff_t length,
                                 uint8_t *out, int to_height, const Weights *weights) {
    uint8_t bytes[4][64] = {{0}};
    __m512i places[4];
    for (int part = 0; part < 4; part++) {
        for (int lane = 0; lane < 16; lane++) {
            bytes[part][4 * lane] = (uint8_t)(16 * part + lane);
            bytes[part][4 * lane + 2] = (uint8_t)(64 + 16 * part + lane);
        }
        places[part] = _mm512_loadu_si512(bytes[part]);
    }
    for (int row = 0; row < to_height; row++) {
        int16_t numbers[2 * MOST_PAIRS] = {0};
        int32_t taps[MOST_PAIRS];
        for (int k = 0; k < weights->count; k++)
            numbers[k] = (int16_t)weights->taps[(ptrdiff_t)row * weights->count + k];
        memcpy(taps, numbers, sizeof taps);
#define ROW(pairs)                                                                                \
    case pairs:                                                                                   \
        one_row(source + weights->first[row] * stride, stride, length, out + row * length, taps,  \
                pairs, weights->bits, places);                                                    \
        break;
        switch ((weights->count + 1) / 2) {
            ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7) ROW(8)
        }
    }
}

/* (height, width, 3), rows `stride` bytes apart -> (to_height, to_width, 3) without gaps.

   space: for rows of the target's width, `space_stride` bytes apart, at least 3 * to_width + 16; as
   many as the source has, and as many as the last row's weights reach over and one.
   Returns 1 when it is done, 0 where the image shrinks by too much for it. */
int resize(const uint8_t *source, ptrdiff_t stride, int height, int width, uint8_t *out,
           int to_height, int to_width, const Weights *columns, const Weights *rows, uint8_t *space,
           ptrdiff_t space_stride) {
    if (columns->count > 2 * MOST_PAIRS || rows->count > 2 * MOST_PAIRS) return 0;
    if (!along_rows(source, stride, height, width, space, space_stride, to_width, columns)) return 0;
    along_columns(space, space_stride, 3 * (ptrdiff_t)to_width, out, to_height, rows);
    return 1;
}
