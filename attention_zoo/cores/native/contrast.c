/* The contrastive loss of ENLCA and its gradient, row by row: see attention_zoo/cores/contrast_native.py. Scores are in
   units of log 2. A row is never sorted: where a group ends is found by counting how many entries reach a bound. */
#include "threads.h"

static const float LN_2 = 0.69314718055994531f, LOG2_E = 1.44269504088896340736f;

struct contrast {
    const float *given_q, *given_k; /* embeddings [B][N][width] */
    float *losses;                  /* [B][N] */
    float *to_q, *to_k;             /* receive gradients like the embeddings */
    float *q, *k, *columns;         /* normalised: [B][N][c], q in units of log 2; k; and k as [B][c][n] */
    float *factor_q, *factor_k;     /* that embeddings were multiplied by [B][N]; below 0 where too short */
    float *grad_q, *grad_k;         /* [B][N][c]; of each worker [B][N][c] */
    size images, positions, width;
    size c, n;                      /* width and N, up to multiples of W */
    size rows;                      /* of a tile */
    size workers;
    size count, start;              /* entries of a group; rank at which the second begins */
    float length, min_norm;         /* of normalised embeddings; least that they are divided by */
    float margin, scale;            /* scale is of the gradients */
    int hinge, needs_grad;
};

/* Entries of a row in a group: their values, later their weights; and where they stand. */
struct group {
    float *x;
    int32_t *at;
    size n;
};

typedef int32_t ifour __attribute__((vector_size(16), aligned(4), may_alias));

/* Ends of the two groups, and where the second begins. */
enum { BOUNDS = 3, FIRST = 0, SECOND = 1, BEGIN = 2 };

static size padded(size n) { return (n + W - 1) / W * W; }

/* Floats of memory for tiles of so many rows. */
size contrast_workspace(size n, size rows, size count) {
    return rows * n + 2 * (n + W) + 4 * (padded(count) + W);
}

#if !defined(__AVX512F__)
/* A bit for every lane that holds. */
INLINE uint32_t lanes_of(ivec x) {
#if defined(__AVX__)
    return (uint32_t)_mm256_movemask_ps((__m256)x);
#else
    uint32_t bits = 0;
    for (int l = 0; l < W; l++) bits |= (uint32_t)(x[l] & 1) << l;
    return bits;
#endif
}
#endif

/* Write those of W entries whose bits are set, and their places, one after the other; gives their number. What stands
   behind them, up to W, is overwritten. */
INLINE size keep(vec x, ivec places, uint32_t bits, float *to, int32_t *at) {
#if defined(__AVX512F__)
    _mm512_storeu_ps(to, _mm512_maskz_compress_ps((__mmask16)bits, (__m512)x));
    _mm512_storeu_si512(at, _mm512_maskz_compress_epi32((__mmask16)bits, (__m512i)places));
#else
    size n = 0;
    for (uint32_t left = bits; left; left &= left - 1, n++) {
        to[n] = x[__builtin_ctz(left)];
        at[n] = places[__builtin_ctz(left)];
    }
#endif
    return __builtin_popcount(bits);
}

INLINE ivec first_places(void) {
    ivec places = (ivec){0};
    for (int l = 0; l < W; l++) places[l] = l;
    return places;
}

/* A bit for every lane that is no smaller than the bound's. */
INLINE uint32_t reach(vec x, vec bound) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GE_OQ);
#else
    return lanes_of(x >= bound);
#endif
}

/* How many of x [n], n a multiple of W, reach the bound. */
INLINE size count_from(const float *x, size n, float bound) {
    vec least = all(bound);
#if defined(__AVX512F__)
    __m512i even = _mm512_setzero_si512(), odd = even, ones = _mm512_set1_epi32(1);
    size i = 0;
    for (; i + 2 * W <= n; i += 2 * W) {
        even = _mm512_mask_add_epi32(even, (__mmask16)reach(load(x + i), least), even, ones);
        odd = _mm512_mask_add_epi32(odd, (__mmask16)reach(load(x + i + W), least), odd, ones);
    }
    if (i < n) even = _mm512_mask_add_epi32(even, (__mmask16)reach(load(x + i), least), even, ones);
    return _mm512_reduce_add_epi32(_mm512_add_epi32(even, odd));
#else
    size count = 0;
    for (size i = 0; i < n; i += W) count += __builtin_popcount(reach(load(x + i), least));
    return count;
#endif
}

/* A bound, and how many entries reach it. */
struct bound {
    float at;
    size reached;
};

/* Nearly log2(n + 1/2) and a constant: scores thin out towards the largest, about as an exponential. */
INLINE four logs_of(four n) { return __builtin_convertvector((ifour)(n + 0.5f), four) * 0x1p-23f; }
INLINE float log_of(size n) { return logs_of((four){(float)n})[0]; }

/* A bound that wanted to wanted + slack of x [n] reach; more only where the entries at it are equal. All of them are
   from low on, and below high; wanted is at least 1. The guess, if between, is tried first, and replaced by what is
   found. */
static struct bound find_bound(const float *x, size n, size wanted, size slack, struct bound low, float high,
                               float *guess) {
    size above = 0; /* that reach high */
    for (int turn = 0; low.reached > wanted + slack; turn++) {
        /* By a straight line between the logs of the counts; every third time in the middle. */
        float most = log_of(low.reached), share = (most - log_of(wanted + slack / 2)) / (most - log_of(above));
        if (turn % 3 == 2) share = 0.5f;
        float middle = low.at + (high - low.at) * share;
        if (turn == 0 && *guess > low.at && *guess < high) middle = *guess;
        if (!(middle > low.at && middle < high)) middle = low.at + (high - low.at) / 2;
        if (!(middle > low.at && middle < high)) break; /* no number lies between */
        size reached = count_from(x, n, middle);
        if (reached < wanted)
            high = middle, above = reached;
        else
            low.at = middle, low.reached = reached;
    }
    *guess = low.at;
    return low;
}

/* How many of x [n], n a multiple of W, reach each of the bounds. */
INLINE four count_from_each(const float *x, size n, four bounds) {
    four counts = (four){0};
#if defined(__AVX512F__)
    __m512i sums[BOUNDS], ones = _mm512_set1_epi32(1);
    vec least[BOUNDS];
    UNROLL for (int b = 0; b < BOUNDS; b++) sums[b] = _mm512_setzero_si512(), least[b] = all(bounds[b]);
    for (size i = 0; i < n; i += W) {
        vec some = load(x + i);
        UNROLL for (int b = 0; b < BOUNDS; b++)
            sums[b] = _mm512_mask_add_epi32(sums[b], (__mmask16)reach(some, least[b]), sums[b], ones);
    }
    UNROLL for (int b = 0; b < BOUNDS; b++) counts[b] = (float)_mm512_reduce_add_epi32(sums[b]);
#else
    for (int b = 0; b < BOUNDS; b++) counts[b] = (float)count_from(x, n, bounds[b]);
#endif
    return counts;
}

INLINE four chosen(ifour which, four yes, four no) { return (four)((which & (ifour)yes) | (~which & (ifour)no)); }

/* As find_bound without slack, of several bounds at once, one in each lane: a search waits for its counts, and so do
   the others with it. Of wanted 0 the bound is high. */
static void find_bounds(const float *x, size n, four wanted, struct bound low, float high, four *guesses,
                        struct bound *found) {
    four none = (four){0}, at = low.at - none, reached = (float)low.reached - none, top = high - none, above = none;
    four first = *guesses, of_first = none, logs = logs_of(reached), logs_wanted = logs_of(wanted);
    ifour without = wanted == none, open;
    at = chosen(without, top, at), reached = chosen(without, none, reached);
    open = reached > wanted;
    for (int turn = 0; open[0] | open[1] | open[2]; turn++) {
        /* By a straight line between the counts; every third time in the middle. */
        four share = turn % 3 == 1 ? 0.5f - none : (reached - wanted) / (reached - above);
        four middle = at + (top - at) * share;
        if (turn == 0) middle = chosen((first > at) & (first < top), first, middle);
        if (turn == 1) { /* from the first, as the logs of the counts fall from low to it */
            four of_this = logs_of(of_first);
            middle = first + (first - low.at) * ((of_this - logs_wanted) / (logs - of_this));
        }
        middle = chosen((middle > at) & (middle < top), middle, at + (top - at) / 2);
        open &= (middle > at) & (middle < top); /* else no number lies between */
        four counts = count_from_each(x, n, middle);
        if (turn == 0) first = middle, of_first = counts;
        ifour fewer = counts < wanted, lower = open & fewer, raise = open & ~fewer;
        top = chosen(lower, middle, top), above = chosen(lower, counts, above);
        at = chosen(raise, middle, at), reached = chosen(raise, counts, reached);
        open &= reached > wanted;
    }
    *guesses = at;
    for (int b = 0; b < BOUNDS; b++) found[b] = (struct bound){at[b], (size)reached[b]};
}

/* The entries of x [n], and their places, of ranks first to first + count - 1: first entries are above the one bound
   and first + count above the other, but for equal ones at them, of which those count that stand first. */
static void collect(const float *x, const int32_t *places, size n, size first, size count, struct bound upper,
                    struct bound lower, struct group *group) {
    group->n = 0;
    if (upper.reached == first && lower.reached == first + count) {
        for (size i = 0; i < n; i += W) {
            vec some = load(x + i);
            uint32_t bits = reach(some, all(lower.at)) & ~reach(some, all(upper.at));
            group->n += keep(some, *(const ivec *)(places + i), bits, group->x + group->n, group->at + group->n);
        }
        return;
    }
    size at_upper = first, at_lower = first + count;
    for (size i = 0; i < n; i++) at_upper -= x[i] > upper.at, at_lower -= x[i] > lower.at;
    for (size i = 0; i < n; i++) {
        int is_above = x[i] > upper.at || (x[i] == upper.at && at_upper-- > 0);
        int is_within = x[i] > lower.at || (x[i] == lower.at && at_lower-- > 0);
        if (is_above || !is_within) continue;
        group->x[group->n] = x[i];
        group->at[group->n++] = places[i];
    }
}

/* A sum of 2^x over 2^top. */
struct sum {
    float over_top, top;
};

/* Values become 2^x over the sum of these. */
INLINE struct sum softmax(struct group *group) {
    size end = padded(group->n);
    for (size i = group->n; i < end; i++) group->x[i] = -INFINITY;
    vec high = load(group->x), sum = (vec){0};
    for (size i = W; i < end; i += W) high = larger(high, load(group->x + i));
    float top = largest_of(high);
    for (size i = 0; i < end; i += W) {
        vec x = load(group->x + i) - top;
        vec y = (vec)((ivec)power_of_2(x) & (x > all(-126)));
        store(group->x + i, y);
        sum += y;
    }
    float norm = sum_of(sum);
    for (size i = 0; i < end; i += W) store(group->x + i, load(group->x + i) * (1 / norm));
    return (struct sum){norm, top};
}

/* The row's score with every key of a group grows with it, at this rate. */
static void add_gradients(const struct contrast *of, const struct group *group, float rate, const float *q,
                          const float *k, float *grad_q, float *grad_k) {
    size c = of->c;
    for (size j = 0; j < c; j += W) {
        vec sum = load(grad_q + j), query = load(q + j) * LN_2;
        for (size e = 0; e < group->n; e++) {
            size at = group->at[e] * c + j;
            float weight = rate * group->x[e];
            sum += weight * load(k + at);
            store(grad_k + at, load(grad_k + at) + weight * query);
        }
        store(grad_q + j, sum);
    }
}

/* Bounds of the row before, less its mean, over its deviation: rows of an image are alike. */
struct guesses {
    float lowest;
    four others;
};

/* One row: its scores x [n], whose padding is overwritten; gives its loss. */
static float rank_row(const struct contrast *of, float *x, const float *q, const float *k, float *grad_q,
                      float *grad_k, float *spare, struct guesses *guesses) {
    size n = of->positions, c = of->c, end = of->n;
    float *found = spare;
    int32_t *places = (int32_t *)(spare + end + W);
    struct group groups[2];
    for (int g = 0; g < 2; g++) {
        groups[g].x = spare + 2 * (end + W) + 2 * g * (padded(of->count) + W);
        groups[g].at = (int32_t *)(groups[g].x + padded(of->count) + W);
    }
    if (of->needs_grad)
        for (size j = 0; j < c; j += W) store(grad_q + j, (vec){0});
    /* Padding is 0, which sums do not see and the range may have. */
    vec high = load(x), low = high, sum = high, squares = high * high, high_2 = high, low_2 = low;
    vec sum_2 = (vec){0}, squares_2 = sum_2;
    size i = W;
    for (; i + 2 * W <= end; i += 2 * W) {
        vec one = load(x + i), two = load(x + i + W);
        high = larger(high, one), low = -larger(-low, -one), sum += one, squares += one * one;
        high_2 = larger(high_2, two), low_2 = -larger(-low_2, -two), sum_2 += two, squares_2 += two * two;
    }
    if (i < end) {
        vec one = load(x + i);
        high = larger(high, one), low = -larger(-low, -one), sum += one, squares += one * one;
    }
    float most = largest_of(larger(high, high_2)), least = -largest_of(larger(-low, -low_2));
    float mean = sum_of(sum + sum_2) / n, deviation = sqrtf(sum_of(squares + squares_2) / n - mean * mean);
    if (!(mean - mean == 0)) { /* some are no numbers */
        if (of->needs_grad)
            for (size j = 0; j < c; j += W) store(grad_q + j, all(NAN));
        for (i = 0; of->needs_grad && i < n * c; i += W) store(grad_k + i, all(NAN));
        return NAN;
    }
    for (i = n; i < end; i++) x[i] = -INFINITY;
    size wanted = of->start + of->count, kept = 0;
    float top = most + fabsf(most) * 1e-6f + 1e-30f; /* above all, and no denormal */
    float guess = mean + guesses->lowest * deviation;
    struct bound lowest = find_bound(x, end, wanted, wanted / 4 + W, (struct bound){least, n}, top, &guess);
    guesses->lowest = (guess - mean) / deviation;
    ivec here = first_places();
    for (i = 0; i < end; i += W, here += W) {
        vec some = load(x + i);
        kept += keep(some, here, reach(some, all(lowest.at)), found + kept, places + kept);
    }
    for (i = kept; i < padded(kept); i++) found[i] = -INFINITY;
    kept = padded(kept);
    struct bound bounds[BOUNDS];
    four ranks = {(float)of->count, (float)wanted, (float)of->start, 0};
    four others = mean + guesses->others * deviation;
    find_bounds(found, kept, ranks, lowest, top, &others, bounds);
    guesses->others = (others - mean) / deviation;
    collect(found, places, kept, 0, of->count, (struct bound){top, 0}, bounds[FIRST], &groups[0]);
    collect(found, places, kept, of->start, of->count, bounds[BEGIN], bounds[SECOND], &groups[1]);
    struct sum first = softmax(&groups[0]), second = softmax(&groups[1]);
    float loss = (log2f(second.over_top / first.over_top) + second.top - first.top) * LN_2 + of->margin;
    if (of->hinge && loss <= 0) return 0;
    if (of->needs_grad) {
        add_gradients(of, &groups[0], -1, q, k, grad_q, grad_k);
        add_gradients(of, &groups[1], 1, q, k, grad_q, grad_k);
    }
    return loss;
}

/* Embeddings [count][width] of a length, times scale, become rows [count][c]. */
static void normalise(const struct contrast *of, const float *given, size count, float scale, float *rows,
                      float *factors) {
    for (size i = 0; i < count; i++, given += of->width, rows += of->c) {
        float norm = sqrtf(dot(given, given, of->width)), factor;
        int is_short = norm < of->min_norm;
        factor = of->length / (is_short ? of->min_norm : norm);
        factors[i] = is_short ? -factor : factor;
        for (size j = 0; j < of->width; j++) rows[j] = given[j] * (factor * scale);
        for (size j = of->width; j < of->c; j++) rows[j] = 0;
    }
}

static void prepare_tile(const void *job, size tile, size worker, float *memory) {
    const struct contrast *of = job;
    size image, first, count = positions_of(tile, of->positions, of->rows, &image, &first);
    size at = image * of->positions + first;
    float *columns = of->columns + image * of->c * of->n + first, *k = of->k + at * of->c;
    (void)worker, (void)memory;
    for (size w = 0; of->needs_grad && w < of->workers; w++)
        for (size i = 0; i < count * of->c; i += W)
            store(of->grad_k + (w * of->images * of->positions + at) * of->c + i, (vec){0});
    normalise(of, of->given_q + at * of->width, count, LOG2_E, of->q + at * of->c, of->factor_q + at);
    normalise(of, of->given_k + at * of->width, count, 1, k, of->factor_k + at);
    transpose(k, of->c, count, of->width, columns, of->n);
    if (first + count == of->positions)
        for (size j = 0; j < of->width; j++)
            for (size i = count; i < of->n - first; i++) columns[j * of->n + i] = 0;
}

static void rank_tile(const void *job, size tile, size worker, float *memory) {
    const struct contrast *of = job;
    size n = of->positions, c = of->c, image, first, count = positions_of(tile, n, of->rows, &image, &first);
    size at = image * n + first;
    float *grad_q = of->grad_q + at * c, *grad_k = of->grad_k + (worker * of->images + image) * n * c;
    const float *q = of->q + at * c, *columns = of->columns + image * c * of->n;
    struct guesses guesses = {NAN, {NAN, NAN, NAN, NAN}};
    wide_product(q, c, 1, columns, of->n, memory, of->n, count, of->width, of->n, 0);
    for (size i = 0; i < count; i++)
        of->losses[at + i] = rank_row(of, memory + i * of->n, q + i * c, of->k + image * n * c, grad_q + i * c, grad_k,
                                      memory + of->rows * of->n, &guesses);
}

/* Gradients of normalised rows become those of the embeddings: only what is orthogonal to a row counts. */
static void finish(const struct contrast *of, const float *rows, float unit, const float *grads, float factor,
                   float *to) {
    float along = factor < 0 ? 0 : dot(rows, grads, of->c) / (unit * unit);
    factor = (factor < 0 ? -factor : factor) * of->scale;
    for (size j = 0; j < of->width; j++) to[j] = (grads[j] - along * rows[j]) * factor;
}

static void finish_tile(const void *job, size tile, size worker, float *memory) {
    const struct contrast *of = job;
    size image, first, count = positions_of(tile, of->positions, of->rows, &image, &first);
    size at = image * of->positions + first, c = of->c;
    size all_rows = of->images * of->positions;
    (void)worker, (void)memory;
    for (size i = at; i < at + count; i++) {
        float *sum = of->grad_k + i * c;
        for (size other = 1; other < of->workers; other++)
            for (size j = 0; j < c; j += W)
                store(sum + j, load(sum + j) + load(sum + other * all_rows * c + j));
        finish(of, of->k + i * c, of->length, sum, of->factor_k[i], of->to_k + i * of->width);
        finish(of, of->q + i * c, of->length * LOG2_E, of->grad_q + i * c, of->factor_q[i], of->to_q + i * of->width);
    }
}

/* Every row's loss and, if needed, scale times the gradients of their sum. Workspace for each worker:
   contrast_workspace. */
void contrast_rank(const struct contrast *of, float *workspace) {
    size tiles = of->images * ((of->positions + of->rows - 1) / of->rows);
    share_tiles(prepare_tile, of, tiles, of->workers, 0, workspace, 0);
    share_tiles(rank_tile, of, tiles, of->workers, 1, workspace, contrast_workspace(of->n, of->rows, of->count));
    if (of->needs_grad) share_tiles(finish_tile, of, tiles, of->workers, 0, workspace, 0);
}
