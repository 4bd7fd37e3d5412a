/* Attention to the largest scores of each row: which they are, and sums over them. Scores are compared as integers. */
#include "threads.h"

struct selection {
    const float *q, *k; /* [images][n][c]; turned, [images][c][m] with any columns from n on */
    float *values;      /* [images][n][count], descending, of equal ones the first, 0 before -0; NAN where a score is */
    int32_t *at;        /* where they are */
    size images, n, m, c, count, rows, workers; /* m is a multiple of W; rows of a tile; count is at most n */
};

struct chosen {
    const float *weights; /* [images][n][count]; where it is 0, nothing is read or added */
    const int32_t *at;    /* [images][n][count] */
    const float *queries; /* a vector of each row, [images][n][d] */
    const float *keys;    /* those that are chosen from, [images][n][d] */
    float *out;
    size images, n, d, count, rows, workers; /* d is a multiple of W */
};

/* A row's scores fall into so many groups for each that is chosen; so many vectors are worked on at once. */
enum { GROUPS = 8, AT_ONCE = 4 };
/* Below all numbers, also less 1. */
enum { LEAST = INT32_MIN + 1 };

/* Floats in the order of integers, and the way back. */
INLINE ivec ordered(vec x) {
    ivec bits = (ivec)x;
    return bits ^ ((bits >> 31) & INT32_MAX);
}

INLINE ivec load_integers(const int32_t *at) { return *(const ivec *)at; }
INLINE ivec all_integers(int32_t x) { return x - (ivec){0}; }

INLINE float float_of(int32_t x) { return ((vec)ordered((vec)all_integers(x)))[0]; }

INLINE ivec count_up(void) {
    ivec x;
    for (int l = 0; l < W; l++) x[l] = l;
    return x;
}

INLINE int32_t integer_sum(ivec x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)x);
#else
    int32_t sum = x[0];
    for (int l = 1; l < W; l++) sum += x[l];
    return sum;
#endif
}

/* One more where x exceeds y. */
INLINE ivec one_more(ivec number, ivec x, ivec y) {
#if defined(__AVX512F__)
    __mmask16 mask = _mm512_cmpgt_epi32_mask((__m512i)x, (__m512i)y);
    return (ivec)_mm512_mask_add_epi32((__m512i)number, mask, (__m512i)number, _mm512_set1_epi32(1));
#else
    return number - (x > y);
#endif
}

/* Append the places of the numbers that are not below the bound; gives how many places there are then. */
INLINE size append(vec x, vec bound, ivec place, int32_t *places, size n) {
#if defined(__AVX512F__)
    __mmask16 mask = _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_NLT_UQ);
    _mm512_storeu_si512(places + n, _mm512_maskz_compress_epi32(mask, (__m512i)place));
    return n + __builtin_popcount(mask);
#else
    ivec which = ~(x < bound);
#if defined(__AVX__)
    if (_mm256_testz_si256((__m256i)which, (__m256i)which)) return n;
#endif
    for (int l = 0; l < W; l++) {
        places[n] = place[l];
        n -= which[l];
    }
    return n;
#endif
}

INLINE ivec larger_of(ivec x, ivec y) {
#if defined(__AVX512F__)
    return (ivec)_mm512_max_epi32((__m512i)x, (__m512i)y);
#else
    ivec first = x > y;
    return (first & x) | (~first & y);
#endif
}

/* A number that at least count of these vectors' numbers reach: the largest such, unless no more than most reach it.
   *reach: how many do. */
static int32_t threshold(const int32_t *x, size vectors, size count, size most, size *reach) {
    ivec most_of = load_integers(x), least_of = ~most_of;
    for (size i = 1; i < vectors; i++) {
        most_of = larger_of(most_of, load_integers(x + i * W));
        least_of = larger_of(least_of, ~load_integers(x + i * W));
    }
    int32_t low = ~least_of[0], high = most_of[0];
    for (int l = 1; l < W; l++) {
        low = ~least_of[l] < low ? ~least_of[l] : low;
        high = most_of[l] > high ? most_of[l] : high;
    }
    *reach = vectors * W;
    while (low < high && *reach > most) {
        uint32_t range = (uint32_t)high - (uint32_t)low;
        int32_t middle = (int32_t)((uint32_t)low + (range - range / 2));
        ivec below = all_integers(middle - 1), number[AT_ONCE] = {{0}};
        size i = 0, found;
        for (; i + AT_ONCE <= vectors; i += AT_ONCE) {
            UNROLL for (int j = 0; j < AT_ONCE; j++)
                number[j] = one_more(number[j], load_integers(x + (i + j) * W), below);
        }
        for (; i < vectors; i++) number[0] = one_more(number[0], load_integers(x + i * W), below);
        found = integer_sum((number[0] + number[1]) + (number[2] + number[3]));
        if (found >= count) {
            low = middle;
            *reach = found;
        } else
            high = middle - 1;
    }
    return low;
}

/* Floats and places from i on, of n, go to their ranks below count. */
INLINE void put(ivec ranks, size i, size n, size count, vec value, const int32_t *places, float *values, int32_t *at) {
#if defined(__AVX512F__)
    __m512i to = (__m512i)ranks, most = _mm512_set1_epi32((int)count), place = _mm512_loadu_si512(places + i);
    __mmask16 mask = _mm512_cmplt_epi32_mask(to, most) & (n - i < W ? (1 << (n - i)) - 1 : -1);
    _mm512_mask_i32scatter_ps(values, mask, to, (__m512)value, 4);
    _mm512_mask_i32scatter_epi32(at, mask, to, place, 4);
#else
    for (size l = 0; l < W && i + l < n; l++) {
        if (ranks[l] >= count) continue;
        values[ranks[l]] = value[l];
        at[ranks[l]] = places[i + l];
    }
#endif
}

/* As rank, for the numbers of some vectors from first on. */
INLINE void rank_of(const int vectors, const int32_t *numbers, const int32_t *places, size first, size n, size count,
                    float *values, int32_t *at) {
    const ivec lane = count_up();
    ivec own[AT_ONCE], before[AT_ONCE];
    size j = 0;
    UNROLL for (int x = 0; x < vectors; x++) {
        own[x] = load_integers(numbers + first + x * W);
        before[x] = (ivec){0};
    }
    /* What comes before need only reach an own number, that is exceed it less 1. */
    for (; j < first; j++) {
        UNROLL for (int x = 0; x < vectors; x++) before[x] = one_more(before[x], all_integers(numbers[j]), own[x] - 1);
    }
    UNROLL for (int y = 0; y < vectors; y++) {
        for (int32_t l = 0; l < W && j < n; l++, j++) {
            ivec other = all_integers(numbers[j]), later = lane > l;
            UNROLL for (int x = 0; x < vectors; x++) {
                ivec reached = x < y ? (ivec){0} : x > y ? all_integers(-1) : later;
                before[x] = one_more(before[x], other, own[x] + reached);
            }
        }
    }
    for (; j < n; j++) {
        UNROLL for (int x = 0; x < vectors; x++) before[x] = one_more(before[x], all_integers(numbers[j]), own[x]);
    }
    UNROLL for (int x = 0; x < vectors; x++) {
        vec value = (vec)ordered((vec)own[x]);
        put(before[x], first + x * W, n, count, value, places, values, at);
    }
}

/* Of n numbers, in the order of their places, the count largest: their floats, descending, and their places. The last
   vector of numbers is filled up. */
static void rank(const int32_t *numbers, const int32_t *places, size n, size count, float *values, int32_t *at) {
    size i = 0;
    for (; i + (AT_ONCE - 1) * W < n; i += AT_ONCE * W) rank_of(AT_ONCE, numbers, places, i, n, count, values, at);
    for (; i < n; i += W) rank_of(1, numbers, places, i, n, count, values, at);
}

/* How many groups: a multiple of W. */
INLINE size groups_of(size m, size count) {
    size groups = (GROUPS * count + W - 1) / W * W;
    return groups < m ? groups : m;
}

/* The largest of each group, from first on; gives where a score is no number. */
INLINE ivec tops_of(const int vectors, const float *scores, size m, size groups, size first, int32_t *tops) {
    vec top[AT_ONCE];
    ivec no_number = (ivec){0};
    UNROLL for (int x = 0; x < vectors; x++) top[x] = all(-INFINITY);
    /* Neighbours are alike, so the scores of a group lie far apart. */
    for (size i = first; i < m; i += groups) {
        UNROLL for (int x = 0; x < vectors; x++) {
            if (i + x * W >= m) break;
            vec score = load(scores + i + x * W);
            top[x] = larger(score, top[x]);
            no_number |= score != score;
        }
    }
    UNROLL for (int x = 0; x < vectors; x++) *(ivec *)(tops + first + x * W) = ordered(top[x]);
    return no_number;
}

/* The count largest of m scores. numbers and places hold m + W, tops as many as there are groups. */
static void select_row(const float *scores, size m, size count, float *values, int32_t *at, int32_t *numbers,
                       int32_t *places, int32_t *tops) {
    size groups = groups_of(m, count), reach, n = 0, i = 0;
    const size most = count + count / 4 + W;
    ivec no_number = (ivec){0};
    for (; i + AT_ONCE * W <= groups; i += AT_ONCE * W) no_number |= tops_of(AT_ONCE, scores, m, groups, i, tops);
    for (; i < groups; i += W) no_number |= tops_of(1, scores, m, groups, i, tops);
    if (integer_sum(no_number)) {
        for (size j = 0; j < count; j++) values[j] = NAN, at[j] = j;
        return;
    }
    /* As many scores reach this as group maxima do, at least. */
    int32_t bound = threshold(tops, groups / W, count, count + count / 8, &reach);
    vec float_bound = all(float_of(bound));
    ivec place = count_up();
    for (size j = 0; j < m; j += W, place += W) n = append(load(scores + j), float_bound, place, places, n);
    for (size j = 0; j < n; j++) numbers[j] = (ordered(all(scores[places[j]])))[0];
    for (size j = n; j % W; j++) numbers[j] = LEAST;
    if (n > most) {
        bound = threshold(numbers, (n + W - 1) / W, count, most, &reach);
        size left = reach, kept = 0; /* left: of those that equal the bound */
        if (reach > most) {
            left = count;
            for (size j = 0; j < n; j++) left -= numbers[j] > bound;
        }
        for (size j = 0; j < n; j++) {
            if (numbers[j] < bound || (numbers[j] == bound && left-- <= 0)) continue;
            numbers[kept] = numbers[j];
            places[kept++] = places[j];
        }
        n = kept;
        for (size j = n; j % W; j++) numbers[j] = LEAST;
    }
    rank(numbers, places, n, count, values, at);
}

/* Floats of memory for each worker. */
size selection_workspace(size rows, size m, size count) { return rows * m + 2 * (m + W) + groups_of(m, count); }

static void select_tile(const void *job, size tile, size worker, float *memory) {
    const struct selection *of = job;
    size image, first, count = positions_of(tile, of->n, of->rows, &image, &first), m = of->m, c = of->c;
    int32_t *numbers = (int32_t *)(memory + of->rows * m), *places = numbers + m + W, *tops = places + m + W;
    (void)worker;
    first += image * of->n;
    wide_product(of->q + first * c, c, 1, of->k + image * c * m, m, memory, m, count, c, m, 0);
    for (size i = 0; i < count; i++) {
        float *scores = memory + i * m;
        size to = (first + i) * of->count;
        for (size j = of->n; j < m; j++) scores[j] = -INFINITY;
        select_row(scores, m, of->count, of->values + to, of->at + to, numbers, places, tops);
    }
}

void largest_select(const struct selection *of, float *workspace) {
    size tiles = of->images * ((of->n + of->rows - 1) / of->rows);
    share_tiles(select_tile, of, tiles, of->workers, 0, workspace, selection_workspace(of->rows, of->m, of->count));
}

INLINE void sums_of(const int vectors, const struct chosen *of, const float *keys, size row, size column) {
    vec sum[4];
    UNROLL for (int x = 0; x < vectors; x++) sum[x] = (vec){0};
    for (size r = row * of->count; r < (row + 1) * of->count; r++) {
        const float weight = of->weights[r], *key = keys + of->at[r] * of->d + column;
        if (weight == 0) continue;
        UNROLL for (int x = 0; x < vectors; x++) sum[x] += weight * load(key + x * W);
    }
    UNROLL for (int x = 0; x < vectors; x++) store(of->out + row * of->d + column + x * W, sum[x]);
}

static void sums_of_tile(const void *job, size tile, size worker, float *memory) {
    const struct chosen *of = job;
    size image, first, count = positions_of(tile, of->n, of->rows, &image, &first), d = of->d;
    const float *keys = of->keys + image * of->n * d;
    (void)worker, (void)memory;
    for (size i = image * of->n + first; i < image * of->n + first + count; i++) {
        size j = 0;
        for (; j + 4 * W <= d; j += 4 * W) sums_of(4, of, keys, i, j);
        for (; j + 2 * W <= d; j += 2 * W) sums_of(2, of, keys, i, j);
        for (; j < d; j += W) sums_of(1, of, keys, i, j);
    }
}

static void dots_of_tile(const void *job, size tile, size worker, float *memory) {
    const struct chosen *of = job;
    size image, first, count = positions_of(tile, of->n, of->rows, &image, &first), d = of->d;
    const float *keys = of->keys + image * of->n * d;
    (void)worker, (void)memory;
    for (size i = image * of->n + first; i < image * of->n + first + count; i++)
        for (size r = i * of->count; r < (i + 1) * of->count; r++)
            of->out[r] = of->weights[r] == 0 ? 0 : dot(of->queries + i * d, keys + of->at[r] * d, d);
}

static void spread_tile(const void *job, size tile, size worker, float *memory) {
    const struct chosen *of = job;
    size image, first, count = positions_of(tile, of->n, of->rows, &image, &first), d = of->d;
    float *sums = of->out + (worker * of->images + image) * of->n * d;
    (void)memory;
    for (size i = image * of->n + first; i < image * of->n + first + count; i++)
        for (size r = i * of->count; r < (i + 1) * of->count; r++) {
            const float weight = of->weights[r], *query = of->queries + i * d;
            float *sum = sums + of->at[r] * d;
            if (weight == 0) continue;
            for (size j = 0; j < d; j += W) store(sum + j, load(sum + j) + weight * load(query + j));
        }
}

static void share(tile_function function, const struct chosen *of, int fixed) {
    share_tiles(function, of, of->images * ((of->n + of->rows - 1) / of->rows), of->workers, fixed, NULL, 0);
}

/* out[i] = sum of weight times key over the chosen of row i, d wide. */
void chosen_sums(const struct chosen *of) { share(sums_of_tile, of, 0); }

/* out[i][r] = product of the vector of row i and the r-th that it chose. */
void chosen_dots(const struct chosen *of) { share(dots_of_tile, of, 0); }

/* out[worker] grows, at what row i chose, by weight times the vector of row i. */
void chosen_spread(const struct chosen *of) { share(spread_tile, of, 1); }
