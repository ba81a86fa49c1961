/* 3 x 3 convolutions of bfloat16 numbers, with a stride and a padding of 1, by Winograd's minimal
   filtering (Lavin & Gray 2016, F(4 x 4, 3 x 3)): 36 multiplications for 4 x 4 outputs in the place
   of 144. Forward, the gradient by the input (the same with turned weights) and the one by the
   weights, for x86 processors with AVX-512 BF16.

   A tile is 4 x 4 outputs, its patch the 6 x 6 inputs that they are made of, a place one of the 36
   of a transformed patch. At each place the transformed patches of many tiles times the transformed
   weights are a product of matrices, of bfloat16 numbers with sums in float32.

   Images are (N, H, W, channels), without gaps; the number of channels is a multiple of 8 on one
   side and of 16 on the other. The sums do not depend on the number of threads.

   Compiled when vidi is installed from its source (hatch_build.py), and called by `compiled.py`. */

#include <immintrin.h>
#include <omp.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define VECTOR __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

#define TILE 4
#define PATCH 6
#define PLACES (PATCH * PATCH)
/* float32 numbers of a vector. */
#define LANES 16
/* A product's block: 24 of the 32 vectors hold sums. */
#define ROWS 6
#define VECTORS 4
#define BLOCK (VECTORS * LANES)
/* Transformed patches that a thread works on at once: they and their sums stay in its cache. */
#define GROUP_BYTES (600 << 10)
#define MOST_IN_GROUP 96
/* Transformed patches and gradients that wait for their product, in the cache that all share. */
#define WAITING_BYTES (14 << 20)
/* The same for a thread that has sums of its own, as far as those are no larger than that. */
#define OWN_WAITING_BYTES (800 << 10)
#define OWN_SUMS_BYTES (1400 << 10)
#define MOST_PARTS 16
#define FEWEST_TILES 32
/* Consecutive places do not begin at the same set of the cache. */
#define GAP_BYTES 64

/* Interpolation at 0, A, -A, B, -B and infinity. With these two, rounding to bfloat16 costs half
   as much as with the textbook's 1 and 2: 1.0 % of an output's standard deviation, not 2.2 %. */
#define A 0.625f
#define B 1.5f
#define AA (A * A)
#define BB (B * B)
/* What G divides by at these points. */
#define AT_0 (AA * BB)
#define AT_A (2 * AA * (AA - BB))
#define AT_B (2 * BB * (BB - AA))

typedef struct {
    int64_t images, height, width, inputs, outputs;
} Shape;

typedef struct {
    int64_t image, top, left;
} Tile;

int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
}

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }
INLINE int64_t tiles_along(int64_t length) { return (length + TILE - 1) / TILE; }

INLINE int64_t tiles_of(const Shape *shape) {
    return shape->images * tiles_along(shape->height) * tiles_along(shape->width);
}

INLINE Tile tile_at(const Shape *shape, int64_t index) {
    const int64_t across = tiles_along(shape->width), each = across * tiles_along(shape->height);
    const Tile tile = {index / each, index % each / across * TILE, index % across * TILE};
    return tile;
}

/* The first `many` lanes, of 16 and of 32. */
INLINE __mmask16 lanes(int64_t many) { return many < 16 ? (__mmask16)((1u << many) - 1) : 0xffff; }
INLINE __mmask32 numbers(int64_t many) { return many < 32 ? (1u << many) - 1 : 0xffffffff; }

#define ALL(x) _mm512_set1_ps(x)
#define ADD _mm512_add_ps
#define SUB _mm512_sub_ps
#define MUL _mm512_mul_ps
/* a * b + c, and c - a * b. */
#define MULADD _mm512_fmadd_ps
#define LESS _mm512_fnmadd_ps

/* One dimension of each transform; sums and differences of a pair of points share their terms. */

VECTOR INLINE void both_signs(__m512 even, __m512 odd, __m512 out[2]) {
    out[0] = ADD(even, odd);
    out[1] = SUB(even, odd);
}

VECTOR INLINE void transform_inputs(const __m512 in[PATCH], __m512 out[PATCH]) {
    out[0] = MULADD(ALL(AA * BB), in[0], LESS(ALL(AA + BB), in[2], in[4]));
    both_signs(LESS(ALL(BB), in[2], in[4]), MUL(ALL(A), LESS(ALL(BB), in[1], in[3])), out + 1);
    both_signs(LESS(ALL(AA), in[2], in[4]), MUL(ALL(B), LESS(ALL(AA), in[1], in[3])), out + 3);
    out[5] = MULADD(ALL(AA * BB), in[1], LESS(ALL(AA + BB), in[3], in[5]));
}

VECTOR INLINE void transform_sums(const __m512 in[PATCH], __m512 out[TILE]) {
    const __m512 plus_a = ADD(in[1], in[2]), minus_a = SUB(in[1], in[2]);
    const __m512 plus_b = ADD(in[3], in[4]), minus_b = SUB(in[3], in[4]);
    out[0] = ADD(in[0], ADD(plus_a, plus_b));
    out[1] = MULADD(ALL(A), minus_a, MUL(ALL(B), minus_b));
    out[2] = MULADD(ALL(AA), plus_a, MUL(ALL(BB), plus_b));
    out[3] = MULADD(ALL(A * AA), minus_a, MULADD(ALL(B * BB), minus_b, in[5]));
}

/* `transform_sums` transposed. */
VECTOR INLINE void transform_gradients(const __m512 in[TILE], __m512 out[PATCH]) {
    out[0] = in[0];
    both_signs(MULADD(ALL(AA), in[2], in[0]),
               MULADD(ALL(A * AA), in[3], MUL(ALL(A), in[1])), out + 1);
    both_signs(MULADD(ALL(BB), in[2], in[0]),
               MULADD(ALL(B * BB), in[3], MUL(ALL(B), in[1])), out + 3);
    out[5] = in[3];
}

VECTOR INLINE void transform_weights(const __m512 in[3], __m512 out[PATCH]) {
    out[0] = MUL(ALL(1 / AT_0), in[0]);
    both_signs(MUL(ALL(1 / AT_A), MULADD(ALL(AA), in[2], in[0])), MUL(ALL(A / AT_A), in[1]),
               out + 1);
    both_signs(MUL(ALL(1 / AT_B), MULADD(ALL(BB), in[2], in[0])), MUL(ALL(B / AT_B), in[1]),
               out + 3);
    out[5] = in[2];
}

/* `transform_weights` transposed. */
VECTOR INLINE void transform_weight_gradients(const __m512 in[PATCH], __m512 out[3]) {
    const __m512 plus_a = MUL(ALL(1 / AT_A), ADD(in[1], in[2]));
    const __m512 plus_b = MUL(ALL(1 / AT_B), ADD(in[3], in[4]));
    out[0] = MULADD(ALL(1 / AT_0), in[0], ADD(plus_a, plus_b));
    out[1] = MULADD(ALL(A / AT_A), SUB(in[1], in[2]), MUL(ALL(B / AT_B), SUB(in[3], in[4])));
    out[2] = MULADD(ALL(AA), plus_a, MULADD(ALL(BB), plus_b, in[5]));
}

/* a0 b0 a1 b1 ..., rounded: what the processor multiplies and adds two by two. */
VECTOR INLINE __m512i paired(__m512 a, __m512 b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
}

/* rows x (vectors * 16) sums over `pairs` pairs; `rows` and `vectors` are constants wherever this
   is called, so that the sums stay in registers. `add`: to what is there already. */
VECTOR INLINE void multiply(int rows, int vectors, const uint16_t *left, ptrdiff_t left_row,
                            ptrdiff_t left_pair, const uint16_t *right, int64_t pairs, int add,
                            float *out, ptrdiff_t out_row) {
    __m512 sums[ROWS][VECTORS];
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < vectors; v++)
            sums[row][v] = add ? _mm512_loadu_ps(out + row * out_row + v * LANES) : ALL(0.0f);
    for (int64_t pair = 0; pair < pairs; pair++) {
        __m512bh across[VECTORS];
        UNROLL for (int v = 0; v < vectors; v++)
            across[v] = (__m512bh)_mm512_loadu_si512(right + (pair * vectors + v) * 2 * LANES);
        UNROLL for (int row = 0; row < rows; row++) {
            int32_t two;
            memcpy(&two, left + row * left_row + pair * left_pair, sizeof two);
            const __m512bh down = (__m512bh)_mm512_set1_epi32(two);
            UNROLL for (int v = 0; v < vectors; v++)
                sums[row][v] = _mm512_dpbf16_ps(sums[row][v], down, across[v]);
        }
    }
    UNROLL for (int row = 0; row < rows; row++)
        UNROLL for (int v = 0; v < vectors; v++)
            _mm512_storeu_ps(out + row * out_row + v * LANES, sums[row][v]);
}

#define MULTIPLY(name, rows)                                                                      \
    VECTOR static void name(int64_t width, const uint16_t *left, ptrdiff_t left_row,              \
                            ptrdiff_t left_pair, const uint16_t *right, int64_t pairs, int add,   \
                            float *out, ptrdiff_t out_row) {                                      \
        switch (width / LANES) {                                                                  \
        case 1:                                                                                   \
            multiply(rows, 1, left, left_row, left_pair, right, pairs, add, out, out_row);        \
            break;                                                                                \
        case 2:                                                                                   \
            multiply(rows, 2, left, left_row, left_pair, right, pairs, add, out, out_row);        \
            break;                                                                                \
        case 3:                                                                                   \
            multiply(rows, 3, left, left_row, left_pair, right, pairs, add, out, out_row);        \
            break;                                                                                \
        default:                                                                                  \
            multiply(rows, 4, left, left_row, left_pair, right, pairs, add, out, out_row);        \
        }                                                                                         \
    }
MULTIPLY(multiply_six, ROWS)
MULTIPLY(multiply_two, 2)

/* Where 16 numbers lie that are `stride` apart. */
VECTOR INLINE __m512i multiples(int64_t stride) {
    return _mm512_mullo_epi32(
        _mm512_set1_epi32((int)stride),
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
}

/* How many numbers `pack_weights` writes. */
int64_t packed_size(int64_t inputs, int64_t outputs) {
    return PLACES * inputs * rounded_up(outputs, LANES);
}

/* weights, with a stride for outputs, inputs, rows and columns, transformed, in the order of the
   products: [block of outputs][place][pair of inputs][output of the block][2]. turned: rows and
   columns from their ends, as the gradient by the input has them. */
VECTOR void pack_weights(const float *weights, const int64_t stride[4], int64_t inputs,
                         int64_t outputs, int turned, uint16_t *packed, int threads) {
    const int64_t padded = rounded_up(outputs, LANES), pairs = inputs / 2;
    const __m512i apart = multiples(stride[0]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t output = 0; output < padded; output += LANES) {
        const __mmask16 there = lanes(outputs - output);
        const int64_t block = output / BLOCK * BLOCK, width = smaller(BLOCK, padded - block);
        uint16_t *out = packed + block * PLACES * inputs + (output - block) * 2;
        for (int64_t pair = 0; pair < pairs; pair++) {
            __m512 made[2][PATCH][PATCH];
            for (int one = 0; one < 2; one++) {
                const float *from = weights + output * stride[0] + (2 * pair + one) * stride[1];
                __m512 columns[PATCH][3];
                for (int x = 0; x < 3; x++) {
                    __m512 in[3], column[PATCH];
                    for (int y = 0; y < 3; y++) {
                        const int64_t row = turned ? 2 - y : y, across = turned ? 2 - x : x;
                        in[y] = _mm512_mask_i32gather_ps(
                            ALL(0.0f), there, apart, from + row * stride[2] + across * stride[3],
                            sizeof(float));
                    }
                    transform_weights(in, column);
                    for (int y = 0; y < PATCH; y++)
                        columns[y][x] = column[y];
                }
                for (int y = 0; y < PATCH; y++)
                    transform_weights(columns[y], made[one][y]);
            }
            for (int place = 0; place < PLACES; place++)
                _mm512_storeu_si512(out + (place * pairs + pair) * width * 2,
                                    paired(made[0][place / PATCH][place % PATCH],
                                           made[1][place / PATCH][place % PATCH]));
        }
    }
}

/* The patch of a tile, 32 channels of it, to `step` numbers from place to place. */
VECTOR INLINE void transform_patch(const Shape *shape, const uint16_t *images, Tile tile,
                                   int64_t channel, uint16_t *out, ptrdiff_t step) {
    const int64_t channels = shape->inputs;
    const __mmask32 there = numbers(channels - channel);
    const uint16_t *image =
        images + tile.image * shape->height * shape->width * channels + channel;
    /* A vector holds two bfloat16 numbers in each lane, the later one in the upper half. */
    const __m512i upper = _mm512_set1_epi32((int)0xffff0000);
    __m512 rows[2][PATCH][PATCH];
    for (int x = 0; x < PATCH; x++) {
        const int64_t column = tile.left + x - 1;
        __m512 even[PATCH], odd[PATCH], out_even[PATCH], out_odd[PATCH];
        UNROLL for (int y = 0; y < PATCH; y++) {
            const int64_t row = tile.top + y - 1;
            __m512i both = _mm512_setzero_si512();
            if (row >= 0 && row < shape->height && column >= 0 && column < shape->width)
                both = _mm512_maskz_loadu_epi16(
                    there, image + (row * shape->width + column) * channels);
            even[y] = (__m512)_mm512_slli_epi32(both, 16);
            odd[y] = (__m512)_mm512_and_si512(both, upper);
        }
        transform_inputs(even, out_even);
        transform_inputs(odd, out_odd);
        UNROLL for (int y = 0; y < PATCH; y++) {
            rows[0][y][x] = out_even[y];
            rows[1][y][x] = out_odd[y];
        }
    }
    for (int y = 0; y < PATCH; y++) {
        __m512 even[PATCH], odd[PATCH];
        transform_inputs(rows[0][y], even);
        transform_inputs(rows[1][y], odd);
        UNROLL for (int x = 0; x < PATCH; x++)
            _mm512_mask_storeu_epi16(out + (y * PATCH + x) * step, there, paired(even[x], odd[x]));
    }
}

/* 16 outputs of a tile from their sums, as far as the image reaches. */
VECTOR INLINE void write_tile(const Shape *shape, const float *sums, ptrdiff_t step, Tile tile,
                              int64_t output, uint16_t *images) {
    const __mmask16 there = lanes(shape->outputs - output);
    const int64_t height = smaller(TILE, shape->height - tile.top);
    const int64_t width = smaller(TILE, shape->width - tile.left);
    const int64_t corner = (tile.image * shape->height + tile.top) * shape->width + tile.left;
    uint16_t *out = images + corner * shape->outputs + output;
    __m512 rows[TILE][PATCH];
    for (int x = 0; x < PATCH; x++) {
        __m512 in[PATCH], column[TILE];
        UNROLL for (int y = 0; y < PATCH; y++)
            in[y] = _mm512_loadu_ps(sums + (y * PATCH + x) * step);
        transform_sums(in, column);
        UNROLL for (int y = 0; y < TILE; y++)
            rows[y][x] = column[y];
    }
    for (int y = 0; y < height; y++) {
        __m512 made[TILE];
        transform_sums(rows[y], made);
        UNROLL for (int x = 0; x < TILE; x++)
            if (x < width)
                _mm256_mask_storeu_epi16(out + (y * shape->width + x) * shape->outputs, there,
                                         (__m256i)_mm512_cvtneps_pbh(made[x]));
    }
}

typedef struct {
    int64_t tiles;
    /* Numbers from place to place, of the transformed patches and of the sums. */
    ptrdiff_t patches, sums;
    size_t bytes;
} Group;

INLINE Group group_of(const Shape *shape) {
    const int64_t fitting = GROUP_BYTES / (int64_t)(PLACES * sizeof(uint16_t) * shape->inputs);
    Group group;
    group.tiles = larger(ROWS, smaller(MOST_IN_GROUP, fitting / ROWS * ROWS));
    group.patches = group.tiles * shape->inputs + GAP_BYTES / sizeof(uint16_t);
    group.sums = group.tiles * BLOCK + GAP_BYTES / sizeof(float);
    group.bytes = rounded_up(PLACES * (group.patches * sizeof(uint16_t) +
                                       group.sums * sizeof(float)), 64);
    return group;
}

/* Bytes of scratch space that `convolve` needs. */
int64_t convolve_bytes(const Shape *shape, int threads) {
    return (int64_t)group_of(shape).bytes * threads;
}

/* in (N, H, W, inputs) -> out (N, H, W, outputs), both bfloat16; weights as `pack_weights` left
   them. */
VECTOR void convolve(const Shape *shape, const uint16_t *in, const uint16_t *weights, uint16_t *out,
                     char *scratch, int threads) {
    const Group group = group_of(shape);
    const int64_t tiles = tiles_of(shape), pairs = shape->inputs / 2;
    const int64_t padded = rounded_up(shape->outputs, LANES);
    const int64_t groups = (tiles + group.tiles - 1) / group.tiles;
    /* Rows that no tile fills are multiplied, too. */
    memset(scratch, 0, group.bytes * threads);
#pragma omp parallel num_threads(threads)
    {
        float *sums = (float *)(scratch + omp_get_thread_num() * group.bytes);
        uint16_t *patches = (uint16_t *)(sums + PLACES * group.sums);
#pragma omp for schedule(dynamic, 1)
        for (int64_t number = 0; number < groups; number++) {
            const int64_t first = number * group.tiles;
            const int64_t count = smaller(group.tiles, tiles - first);
            for (int64_t t = 0; t < count; t++)
                for (int64_t channel = 0; channel < shape->inputs; channel += 2 * LANES)
                    transform_patch(shape, in, tile_at(shape, first + t), channel,
                                    patches + t * shape->inputs + channel, group.patches);
            for (int64_t block = 0; block < padded; block += BLOCK) {
                const int64_t width = smaller(BLOCK, padded - block);
                for (int place = 0; place < PLACES; place++)
                    for (int64_t t = 0; t < count; t += ROWS)
                        multiply_six(width, patches + place * group.patches + t * shape->inputs,
                                     shape->inputs, 2,
                                     weights + (block * PLACES + place * width) * shape->inputs,
                                     pairs, 0, sums + place * group.sums + t * width, width);
                for (int64_t t = 0; t < count; t++)
                    for (int64_t v = 0; v < width; v += LANES)
                        write_tile(shape, sums + t * width + v, group.sums,
                                   tile_at(shape, first + t), block + v, out);
            }
        }
    }
}

/* Two neighbouring tiles' patches, or gradients, of 16 channels, in pairs. */
VECTOR INLINE void transform_two(const Shape *shape, const uint16_t *images, int64_t channels,
                                 int gradients, int64_t index, int64_t tiles, int64_t channel,
                                 uint16_t *out, ptrdiff_t step) {
    const int size = gradients ? TILE : PATCH, margin = gradients ? 0 : 1;
    const __mmask16 there = lanes(channels - channel);
    __m512 made[2][PATCH][PATCH];
    for (int one = 0; one < 2; one++) {
        const Tile tile = tile_at(shape, index + one);
        const uint16_t *image =
            images + tile.image * shape->height * shape->width * channels + channel;
        __m512 rows[PATCH][PATCH];
        for (int x = 0; x < size; x++) {
            const int64_t column = tile.left + x - margin;
            const int inside = index + one < tiles && column >= 0 && column < shape->width;
            __m512 in[PATCH], transformed[PATCH];
            UNROLL for (int y = 0; y < size; y++) {
                const int64_t row = tile.top + y - margin;
                in[y] = ALL(0.0f);
                if (inside && row >= 0 && row < shape->height)
                    in[y] = (__m512)_mm512_slli_epi32(
                        _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(
                            there, image + (row * shape->width + column) * channels)),
                        16);
            }
            if (gradients)
                transform_gradients(in, transformed);
            else
                transform_inputs(in, transformed);
            UNROLL for (int y = 0; y < PATCH; y++)
                rows[y][x] = transformed[y];
        }
        for (int y = 0; y < PATCH; y++)
            if (gradients)
                transform_gradients(rows[y], made[one][y]);
            else
                transform_inputs(rows[y], made[one][y]);
    }
    for (int y = 0; y < PATCH; y++)
        UNROLL for (int x = 0; x < PATCH; x++)
            _mm512_storeu_si512(out + (y * PATCH + x) * step, paired(made[0][y][x], made[1][y][x]));
}

/* How the gradient by the weights is summed up. */
typedef struct {
    /* Sums of the places are small enough for the cache of a core: each part of the tiles has its
       own and is one thread's work. Otherwise there is one part, and all threads work on it. */
    int64_t parts, tiles_of_part;
    /* Tiles that are transformed at once, and how many channels are written of each. */
    int64_t tiles, inputs, outputs;
    /* Numbers of the transformed patches, of the gradients and of a part's sums. */
    int64_t patches, gradients, sums;
} Summing;

INLINE Summing summing_of(const Shape *shape) {
    Summing by;
    by.inputs = rounded_up(shape->inputs, LANES);
    by.outputs = rounded_up(shape->outputs, LANES);
    by.sums = PLACES * shape->inputs * by.outputs;
    const int64_t tiles = rounded_up(tiles_of(shape), 2);
    const int64_t tile_bytes = PLACES * sizeof(uint16_t) * (by.inputs + by.outputs);
    const int alone = by.sums * (int64_t)sizeof(float) <= OWN_SUMS_BYTES;
    by.tiles = larger(FEWEST_TILES, (alone ? OWN_WAITING_BYTES : WAITING_BYTES) / tile_bytes / 2 * 2);
    by.tiles = smaller(tiles, by.tiles);
    by.parts = alone ? smaller(MOST_PARTS, (tiles + by.tiles - 1) / by.tiles) : 1;
    by.tiles_of_part = rounded_up((tiles + by.parts - 1) / by.parts, 2);
    by.patches = PLACES * by.tiles * by.inputs;
    by.gradients = PLACES * by.tiles * by.outputs;
    return by;
}

INLINE int64_t waiting_bytes(const Summing *by) {
    return rounded_up((by->patches + by->gradients) * (int64_t)sizeof(uint16_t), 64);
}

/* Bytes of scratch space that `weight_gradient` needs. */
int64_t weight_gradient_bytes(const Shape *shape, int threads) {
    const Summing by = summing_of(shape);
    return by.parts * by.sums * (int64_t)sizeof(float) +
           waiting_bytes(&by) * (by.parts > 1 ? threads : 1);
}

/* Transforms the pair-th two of the tiles from `first` on, in and by_outputs. */
VECTOR static void transform_both(const Shape *shape, const Summing *by, const uint16_t *in,
                                  const uint16_t *by_outputs, int64_t first, int64_t pair,
                                  int64_t end, uint16_t *patches) {
    uint16_t *gradients = patches + by->patches;
    for (int64_t c = 0; c < by->inputs; c += LANES)
        transform_two(shape, in, shape->inputs, 0, first + 2 * pair, end, c,
                      patches + (pair * by->inputs + c) * 2, by->tiles * by->inputs);
    for (int64_t c = 0; c < by->outputs; c += LANES) {
        const int64_t block = c / BLOCK * BLOCK, width = smaller(BLOCK, by->outputs - block);
        transform_two(shape, by_outputs, shape->outputs, 1, first + 2 * pair, end, c,
                      gradients + block * by->tiles + (pair * width + c - block) * 2,
                      by->tiles * by->outputs);
    }
}

/* Adds what `pairs` of tiles have at a place, for a block of outputs. */
VECTOR static void add_products(const Shape *shape, const Summing *by, const uint16_t *patches,
                                int64_t pairs, int add, int64_t place, int64_t block, float *sums) {
    const int64_t width = smaller(BLOCK, by->outputs - block);
    const uint16_t *left = patches + place * by->tiles * by->inputs;
    const uint16_t *right =
        patches + by->patches + place * by->tiles * by->outputs + block * by->tiles;
    float *out = sums + place * shape->inputs * by->outputs + block;
    int64_t c = 0;
    for (; c + ROWS <= shape->inputs; c += ROWS)
        multiply_six(width, left + c * 2, 2, by->inputs * 2, right, pairs, add,
                     out + c * by->outputs, by->outputs);
    /* An even number of channels is left. */
    for (; c < shape->inputs; c += 2)
        multiply_two(width, left + c * 2, 2, by->inputs * 2, right, pairs, add,
                     out + c * by->outputs, by->outputs);
}

/* Sums over all tiles, every part's behind the other's. */
VECTOR static void add_tiles(const Shape *shape, const Summing *by, const uint16_t *in,
                             const uint16_t *by_outputs, float *sums, char *waiting, int threads) {
    const int64_t tiles = tiles_of(shape), blocks = (by->outputs + BLOCK - 1) / BLOCK;
    if (by->parts > 1) {
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
        for (int64_t part = 0; part < by->parts; part++) {
            uint16_t *patches = (uint16_t *)(waiting + omp_get_thread_num() * waiting_bytes(by));
            const int64_t start = part * by->tiles_of_part;
            const int64_t end = smaller(tiles, start + by->tiles_of_part);
            for (int64_t first = start; first < start + by->tiles_of_part; first += by->tiles) {
                const int64_t pairs = (larger(0, smaller(by->tiles, end - first)) + 1) / 2;
                for (int64_t pair = 0; pair < pairs; pair++)
                    transform_both(shape, by, in, by_outputs, first, pair, end, patches);
                for (int64_t place = 0; place < PLACES; place++)
                    for (int64_t block = 0; block < blocks; block++)
                        add_products(shape, by, patches, pairs, first > start, place, block * BLOCK,
                                     sums + part * by->sums);
            }
        }
        return;
    }
    uint16_t *patches = (uint16_t *)waiting;
#pragma omp parallel num_threads(threads)
    for (int64_t first = 0; first < tiles; first += by->tiles) {
        const int64_t pairs = (smaller(by->tiles, tiles - first) + 1) / 2;
#pragma omp for schedule(dynamic, 4)
        for (int64_t pair = 0; pair < pairs; pair++)
            transform_both(shape, by, in, by_outputs, first, pair, tiles, patches);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < PLACES * blocks; task++)
            add_products(shape, by, patches, pairs, first > 0, task / blocks,
                         task % blocks * BLOCK, sums);
    }
}

/* The gradient by the weights, written with a stride for outputs, inputs, rows and columns, from
   in (N, H, W, inputs) and the gradient by the outputs (N, H, W, outputs). */
VECTOR void weight_gradient(const Shape *shape, const uint16_t *in, const uint16_t *by_outputs,
                            float *out, const int64_t stride[4], char *scratch, int threads) {
    const Summing by = summing_of(shape);
    float *sums = (float *)scratch;
    add_tiles(shape, &by, in, by_outputs, sums, (char *)(sums + by.parts * by.sums), threads);
    const __m512i apart = multiples(stride[0]);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t input = 0; input < shape->inputs; input++)
        for (int64_t output = 0; output < by.outputs; output += LANES) {
            const __mmask16 there = lanes(shape->outputs - output);
            float *to = out + output * stride[0] + input * stride[1];
            __m512 rows[3][PATCH];
            for (int x = 0; x < PATCH; x++) {
                __m512 column[PATCH], made[3];
                for (int y = 0; y < PATCH; y++) {
                    const float *at =
                        sums + ((y * PATCH + x) * shape->inputs + input) * by.outputs + output;
                    column[y] = _mm512_loadu_ps(at);
                    for (int64_t part = 1; part < by.parts; part++)
                        column[y] = ADD(column[y], _mm512_loadu_ps(at + part * by.sums));
                }
                transform_weight_gradients(column, made);
                for (int y = 0; y < 3; y++)
                    rows[y][x] = made[y];
            }
            for (int y = 0; y < 3; y++) {
                __m512 made[3];
                transform_weight_gradients(rows[y], made);
                for (int x = 0; x < 3; x++)
                    _mm512_mask_i32scatter_ps(to + y * stride[2] + x * stride[3], there, apart,
                                              made[x], sizeof(float));
            }
        }
}
