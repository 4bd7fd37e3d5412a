/* Vectors of floats as wide as the processor's, and products of small matrices made of them. */
#include <math.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__AVX__)
#include <immintrin.h>
#endif

/* W floats are a vector. A product keeps ROWS_n rows of n vectors in registers. */
#if defined(__AVX512F__)
enum { W = 16, ROWS_1 = 12, ROWS_2 = 12, ROWS_3 = 8 };
#elif defined(__AVX__)
enum { W = 8, ROWS_1 = 8, ROWS_2 = 6, ROWS_3 = 4 };
#elif defined(__aarch64__)
enum { W = 4, ROWS_1 = 12, ROWS_2 = 12, ROWS_3 = 8 };
#else
enum { W = 4, ROWS_1 = 8, ROWS_2 = 6, ROWS_3 = 4 };
#endif
enum { MOST_ROWS = 12, MOST_VECTORS = 3 };

typedef ptrdiff_t size;
typedef float vec __attribute__((vector_size(4 * W), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * W), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNUSED __attribute__((unused)) /* not every file calls it */
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Without it a vector is read from the cache again for every row that it is multiplied with. */
#if defined(__AVX512F__)
#define KEEP(x) __asm__("" : "+v"(x))
#elif defined(__AVX__)
#define KEEP(x) __asm__("" : "+x"(x))
#else
#define KEEP(x)
#endif

INLINE vec load(const float *at) { return *(const vec *)at; }
INLINE void store(float *at, vec x) { *(vec *)at = x; }
INLINE vec all(float x) { return x - (vec){0}; }

/* The second where either is no number. */
INLINE vec larger(vec a, vec b) {
#if defined(__AVX512F__)
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX__)
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
    ivec first = a > b;
    return (vec)((first & (ivec)a) | (~first & (ivec)b));
#endif
}

/* 2^x up to 128; 2^-126 for all x below that. */
INLINE vec power_of_2(vec x) {
    const float to_integer = 0x1.8p23f + 127; /* added, it leaves a whole number with an exponent's bias */
    x = larger(all(-126), x);
    vec whole = x + to_integer;
    vec f = x - (whole - to_integer);
    vec y = all(1.5403530393381606e-4f);
    y = y * f + 1.3333558146428443e-3f;
    y = y * f + 9.6181291076284772e-3f;
    y = y * f + 5.5504108664821580e-2f;
    y = y * f + 2.4022650695910072e-1f;
    y = y * f + 6.9314718055994531e-1f;
    y = y * f + 1;
    return y * (vec)((ivec)whole << 23);
}

INLINE float sum_of(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float sum = x[0];
    for (int l = 1; l < W; l++) sum += x[l];
    return sum;
#endif
}

INLINE float largest_of(vec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float top = x[0];
    for (int l = 1; l < W; l++) top = x[l] > top ? x[l] : top;
    return top;
#endif
}

INLINE float dot(const float *a, const float *b, size n) {
    float rest = 0;
    vec sum = (vec){0};
    size i = 0;
    for (; i + W <= n; i += W) sum += load(a + i) * load(b + i);
    for (; i < n; i++) rest += a[i] * b[i];
    return sum_of(sum) + rest;
}

INLINE void product_of(const int rows, const int vectors, const float *a, size by_i, size by_k, const float *b,
                       size by_b, float *c, size by_c, size n, int add, vec *high) {
    vec sum[MOST_ROWS][MOST_VECTORS];
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) sum[i][j] = add ? load(c + i * by_c + j * W) : (vec){0};
    }
    for (size k = 0; k < n; k++) {
        vec x[MOST_VECTORS];
        UNROLL for (int j = 0; j < vectors; j++) {
            x[j] = load(b + k * by_b + j * W);
            KEEP(x[j]);
        }
        UNROLL for (int i = 0; i < rows; i++) {
            vec y = all(a[i * by_i + k * by_k]);
            UNROLL for (int j = 0; j < vectors; j++) sum[i][j] += y * x[j];
        }
    }
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) {
            store(c + i * by_c + j * W, sum[i][j]);
            if (high) high[j] = larger(high[j], sum[i][j]);
        }
    }
}

INLINE void product_rows(const int vectors, const int at_once, const float *a, size by_i, size by_k, const float *b,
                         size by_b, float *c, size by_c, size rows, size n, int add, float *top) {
    vec high[MOST_VECTORS], *keep = top ? high : NULL;
    size i = 0;
    UNROLL for (int j = 0; j < vectors; j++) high[j] = top ? load(top + j * W) : (vec){0};
    for (; i + at_once <= rows; i += at_once)
        product_of(at_once, vectors, a + i * by_i, by_i, by_k, b, by_b, c + i * by_c, by_c, n, add, keep);
    for (; i + at_once / 2 <= rows; i += at_once / 2)
        product_of(at_once / 2, vectors, a + i * by_i, by_i, by_k, b, by_b, c + i * by_c, by_c, n, add, keep);
    for (; i < rows; i++)
        product_of(1, vectors, a + i * by_i, by_i, by_k, b, by_b, c + i * by_c, by_c, n, add, keep);
    UNROLL for (int j = 0; j < vectors; j++) {
        if (top) store(top + j * W, high[j]);
    }
}

/* c[i by_c + j] is, or grows by, the sum over k < n of a[i by_i + k by_k] b[k by_b + j], for i < rows
   and j < vectors W. */
static void product(const float *a, size by_i, size by_k, const float *b, size by_b, float *c, size by_c, size rows,
                    size n, int vectors, int add) {
    if (vectors == 3) product_rows(3, ROWS_3, a, by_i, by_k, b, by_b, c, by_c, rows, n, add, NULL);
    if (vectors == 2) product_rows(2, ROWS_2, a, by_i, by_k, b, by_b, c, by_c, rows, n, add, NULL);
    if (vectors == 1) product_rows(1, ROWS_1, a, by_i, by_k, b, by_b, c, by_c, rows, n, add, NULL);
}

/* As product, not adding; top[j] rises to the largest of what is in column j. */
UNUSED static void product_and_top(const float *a, size by_i, size by_k, const float *b, size by_b, float *c, size by_c,
                                   size rows, size n, int vectors, float *top) {
    if (vectors == 3) product_rows(3, ROWS_3, a, by_i, by_k, b, by_b, c, by_c, rows, n, 0, top);
    if (vectors == 2) product_rows(2, ROWS_2, a, by_i, by_k, b, by_b, c, by_c, rows, n, 0, top);
    if (vectors == 1) product_rows(1, ROWS_1, a, by_i, by_k, b, by_b, c, by_c, rows, n, 0, top);
}

/* How many of so many vectors to take at once: 3, but of the last 4 two. */
INLINE int next_vectors(size left) { return left == 4 ? 2 : left < 3 ? (int)left : 3; }

/* As product, for j < columns, a multiple of W. */
UNUSED static void wide_product(const float *a, size by_i, size by_k, const float *b, size by_b, float *c, size by_c,
                                size rows, size n, size columns, int add) {
    for (int vectors; columns > 0; columns -= vectors * W, b += vectors * W, c += vectors * W) {
        vectors = next_vectors(columns / W);
        product(a, by_i, by_k, b, by_b, c, by_c, rows, n, vectors, add);
    }
}

/* Lines of rows of floats, rows by_row apart, lines by_line. If which is given, row i of line l is row
   which[l by_line + i] of all. The rest is for share_softmax, see there. */
struct lines {
    float *at;
    const int64_t *which;
    size by_row, by_line;
    size by_image, by_tile, by_worker, which_by_image;
};

INLINE float *row(const struct lines *x, size line, size i) {
    if (x->which) return x->at + x->which[line * x->by_line + i] * x->by_row;
    return x->at + line * x->by_line + i * x->by_row;
}

/* Distance of rows of a width: rows a multiple of 1 KB apart share few places of the first-level cache. */
INLINE size pitch(size width) { return width % 256 ? width : width + W; }

/* count rows of a line, from first on, pitch(width) apart: where they are, or a copy in space. */
INLINE const float *in_one_piece(const struct lines *x, size line, size first, size count, size width, float *space) {
    size apart = pitch(width);
    if (!x->which && x->by_row == apart) return row(x, line, first);
    for (size i = 0; i < count; i++) {
        const float *from = row(x, line, first + i);
        for (size j = 0; j < width; j++) space[i * apart + j] = from[j];
    }
    return space;
}

typedef float four __attribute__((vector_size(16), aligned(4), may_alias));

/* to[j by_to + i] = from[i by_from + j] for i, j < 4. */
INLINE void transposed_4(const float *from, size by_from, float *to, size by_to) {
    four a = *(const four *)from, b = *(const four *)(from + by_from);
    four c = *(const four *)(from + 2 * by_from), d = *(const four *)(from + 3 * by_from);
    four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_2 = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    four cd = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_2 = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(four *)(to + by_to) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    *(four *)(to + 2 * by_to) = __builtin_shufflevector(ab_2, cd_2, 0, 1, 4, 5);
    *(four *)(to + 3 * by_to) = __builtin_shufflevector(ab_2, cd_2, 2, 3, 6, 7);
}

/* to[j by_to + i] = from[i by_from + j] for i < rows, j < columns. */
static void transpose(const float *from, size by_from, size rows, size columns, float *to, size by_to) {
    size i = 0, j;
    for (; i + 4 <= rows; i += 4) {
        for (j = 0; j + 4 <= columns; j += 4) transposed_4(from + i * by_from + j, by_from, to + j * by_to + i, by_to);
        for (; j < columns; j++)
            for (size l = i; l < i + 4; l++) to[j * by_to + l] = from[l * by_from + j];
    }
    for (; i < rows; i++)
        for (j = 0; j < columns; j++) to[j * by_to + i] = from[i * by_from + j];
}

/* As transpose, and 0 up to the next multiple of W. */
INLINE void transpose_padded(const float *from, size by_from, size rows, size columns, float *to, size by_to) {
    size last = (rows - 1) / W * W;
    for (size j = 0; j < columns; j++) store(to + j * by_to + last, (vec){0});
    transpose(from, by_from, rows, columns, to, by_to);
}
