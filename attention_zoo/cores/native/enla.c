/* The passes of ENLA over positions: see attention_zoo/cores/enla.py, whose names it shares. Features stand in columns:
   features by positions. Embeddings are normalised, and nothing is subtracted from exponents. */
#include "threads.h"

/* Positions of a tile, and the distance of its rows, in no power of 2. */
enum { POSITIONS = 144, LINE = POSITIONS + 16 };
static const float LOG2_OF_ZERO = -1e30f;

/* Floats of memory that each of the passes takes; d is the wider of values and output. */
size enla_workspace(size m, size c, size d) {
    return (2 * m + 2 * c + 2 * d + 3) * LINE + POSITIONS * d + m * W;
}

struct feature_map {
    const float *projection; /* F times the length of an embedding and, as exponents are in units of log 2, log2(e) */
    size m, c;
    float half_square; /* of an embedding of full length, in those units */
    float min_norm, max_norm;
};

/* Embeddings x of count positions, in columns: u over its length; the norm that x was divided by, and what a short one
   has less than half its square. Positions up to the next vector have features of 0. */
static void embed(const struct feature_map *map, const float *x, size count, float *u, float *norm, float *less) {
    size c = map->c, end = (count + W - 1) / W * W;
    transpose_padded(x, c, count, c, u, LINE);
    for (size i = 0; i < end; i += W) {
        vec even = (vec){0}, odd = (vec){0};
        size j = 0;
        for (; j + 2 <= c; j += 2) {
            vec a = load(u + j * LINE + i), b = load(u + (j + 1) * LINE + i);
            even += a * a, odd += b * b;
        }
        if (j < c) even += load(u + j * LINE + i) * load(u + j * LINE + i);
        store(norm + i, even + odd);
    }
    for (size i = 0; i < end; i++) {
        float length = sqrtf(norm[i]), share = length / map->min_norm;
        less[i] = share < 1 ? (share * share - 1) * map->half_square : 0;
        length = length < map->min_norm ? map->min_norm : length;
        norm[i] = length > map->max_norm ? map->max_norm : length;
    }
    for (size i = count; i < end; i++) less[i] = -LOG2_OF_ZERO;
    for (size i = 0; i < end; i += W) {
        vec inverse = 1 / load(norm + i);
        for (size j = 0; j < c; j++) store(u + j * LINE + i, load(u + j * LINE + i) * inverse);
    }
}

/* Features [m][vectors W] of embedded positions; totals[i][W] grow by row i times the factors of the positions, and
   weighted by row i times weight i: either may be NULL. */
INLINE void features_of(const int vectors, const struct feature_map *map, const float *u, const float *less,
                        const float *factors, float *totals, const float *weights, float *weighted, float *features) {
    product(map->projection, map->c, 1, u, LINE, features, LINE, map->m, map->c, vectors, 0);
    vec sum[MOST_VECTORS], lower[MOST_VECTORS], factor[MOST_VECTORS];
    UNROLL for (int j = 0; j < vectors; j++) {
        lower[j] = load(less + j * W);
        factor[j] = factors ? load(factors + j * W) : all(1);
        sum[j] = (vec){0};
    }
    for (size i = 0; i < map->m; i++) {
        vec total = totals ? load(totals + i * W) : (vec){0};
        UNROLL for (int j = 0; j < vectors; j++) {
            vec feature = power_of_2(load(features + i * LINE + j * W) - lower[j]);
            store(features + i * LINE + j * W, feature);
            total += feature * factor[j];
            if (weights) sum[j] += feature * weights[i];
        }
        if (totals) store(totals + i * W, total);
    }
    UNROLL for (int j = 0; j < vectors; j++) {
        if (weights) store(weighted + j * W, sum[j]);
    }
}

static void feature(int vectors, const struct feature_map *map, const float *u, const float *less, const float *factors,
                    float *totals, const float *weights, float *weighted, float *features) {
    if (vectors == 3) features_of(3, map, u, less, factors, totals, weights, weighted, features);
    if (vectors == 2) features_of(2, map, u, less, factors, totals, weights, weighted, features);
    if (vectors == 1) features_of(1, map, u, less, factors, totals, weights, weighted, features);
}

/* Of n keys k [n][c] and values v [n][d]: sums of features times values [m][d], of features [m], of values [d].
   d is a multiple of W. */
static void sum_keys(const struct feature_map *map, const float *k, const float *v, size n, size d, float *sums,
                     float *norm, float *total, float *workspace) {
    size m = map->m, c = map->c;
    float *features = workspace, *u = features + m * LINE, *lengths = u + c * LINE, *less = lengths + LINE;
    float *norms = less + LINE;
    for (size i = 0; i < m * W; i++) norms[i] = 0;
    for (size e = 0; e < d; e++) total[e] = 0;
    for (size g = 0; g < n; g += POSITIONS) {
        size count = n - g < POSITIONS ? n - g : POSITIONS, vectors = (count + W - 1) / W;
        int now;
        embed(map, k + g * c, count, u, lengths, less);
        for (size x = 0; x < vectors; x += now) {
            now = next_vectors(vectors - x);
            feature(now, map, u + x * W, less + x * W, NULL, norms, NULL, NULL, features + x * W);
        }
        wide_product(features, LINE, 1, v + g * d, d, sums, d, m, count, d, g > 0);
        for (size i = 0; i < count; i++)
            for (size e = 0; e < d; e++) total[e] += v[(g + i) * d + e];
    }
    for (size i = 0; i < m; i++) norm[i] = sum_of(load(norms + i * W));
}

/* Output [n][d] and its normaliser [n] of n queries q [n][c], given sums over keys [m][d], by their norm [m], and what
   eps adds to both. */
static void attend(const struct feature_map *map, const float *q, size n, size d, const float *sums, const float *norm,
                 const float *eps_sums, float eps_norm, float *out, float *normaliser, float *workspace) {
    size m = map->m, c = map->c;
    float *features = workspace, *u = features + m * LINE, *columns = u + c * LINE, *lengths = columns + d * LINE;
    float *less = lengths + LINE, *norms = less + LINE;
    for (size g = 0; g < n; g += POSITIONS) {
        size count = n - g < POSITIONS ? n - g : POSITIONS, vectors = (count + W - 1) / W;
        int now;
        embed(map, q + g * c, count, u, lengths, less);
        for (size x = 0; x < vectors; x += now) {
            now = next_vectors(vectors - x);
            feature(now, map, u + x * W, less + x * W, NULL, NULL, norm, norms + x * W, features + x * W);
            product(sums, 1, d, features + x * W, LINE, columns + x * W, LINE, d, m, now, 0);
        }
        float *to = out + g * d;
        transpose(columns, LINE, d, count, to, d);
        for (size i = 0; i < count; i++) {
            float whole = norms[i] + eps_norm;
            normaliser[g + i] = whole;
            for (size e = 0; e < d; e++) to[i * d + e] = (to[i * d + e] + eps_sums[e]) / whole;
        }
    }
}

/* Gradients of exponents [m][count], in columns, become those of embeddings [count][c]. */
static void embedding_gradients(const struct feature_map *map, const float *grad_features, const float *u,
                                const float *norm, size count, float *grad_u, float *to) {
    const float ln_2 = 0.69314718055994531f; /* of a projection in units of log 2 */
    size m = map->m, c = map->c, vectors = (count + W - 1) / W;
    int now;
    for (size x = 0; x < vectors; x += now) {
        now = next_vectors(vectors - x);
        product(map->projection, 1, c, grad_features + x * W, LINE, grad_u + x * W, LINE, c, m, now, 0);
    }
    for (size x = 0; x < vectors * W; x += W) {
        /* Of a normalised vector only what is orthogonal to it counts. */
        vec along = (vec){0}, inverse = 1 / load(norm + x);
        for (size j = 0; j < c; j++) along += load(grad_u + j * LINE + x) * load(u + j * LINE + x);
        along *= ln_2;
        for (size i = x; i < x + W && i < count; i++) {
            if (norm[i] > map->min_norm) continue;
            float sum = 0; /* a short one has its own square instead */
            for (size j = 0; j < m; j++) sum += grad_features[j * LINE + i];
            along[i - x] = sum * 2 * map->half_square * ln_2;
        }
        for (size j = 0; j < c; j++) {
            float *at = grad_u + j * LINE + x;
            store(at, (load(at) * ln_2 - along * load(u + j * LINE + x)) * inverse);
        }
    }
    transpose(grad_u, LINE, c, count, to, c);
}

/* Features times what is in grad_features, plus weight i times the factors (1 if NULL) of the positions, in row i. */
static void times_features(const float *features, size m, size columns, const float *weights, const float *factors,
                           float *grad_features) {
    for (size i = 0; i < m; i++)
        for (size x = 0; x < columns; x += W) {
            float *at = grad_features + i * LINE + x;
            vec factor = factors ? load(factors + x) : all(1);
            store(at, (load(at) + factor * weights[i]) * load(features + i * LINE + x));
        }
}

/* Gradients of n queries [n][c], of the sums [m][d] and norm [m] over keys, and of what eps adds to the sums and norm
   [d + 1], given that of the output [n][d]. d is a multiple of W. */
static void query_gradients(const struct feature_map *map, const float *q, size n, size d, const float *sums,
                          const float *norm, const float *out, const float *normaliser, const float *grad,
                          float *grad_q, float *grad_sums, float *grad_norm, float *grad_eps, float *workspace) {
    size m = map->m, c = map->c;
    float *features = workspace, *grad_features = features + m * LINE, *u = grad_features + m * LINE;
    float *grad_u = u + c * LINE;
    float *grads = grad_u + c * LINE, *lengths = grads + d * LINE, *less = lengths + LINE;
    float *grad_normaliser = less + LINE, *grad_rows = grad_normaliser + LINE;
    float *norms = grad_rows + POSITIONS * d;
    for (size i = 0; i < m * W; i++) norms[i] = 0;
    for (size e = 0; e <= d; e++) grad_eps[e] = 0;
    for (size g = 0; g < n; g += POSITIONS) {
        size count = n - g < POSITIONS ? n - g : POSITIONS, vectors = (count + W - 1) / W;
        int now;
        embed(map, q + g * c, count, u, lengths, less);
        store(grad_normaliser + (vectors - 1) * W, (vec){0});
        for (size i = 0; i < count; i++) {
            const float *from = grad + (g + i) * d, *o = out + (g + i) * d;
            float *one = grad_rows + i * d, inverse = 1 / normaliser[g + i];
            for (size e = 0; e < d; e++) {
                one[e] = from[e] * inverse;
                grad_eps[e] += one[e];
            }
            float along = dot(one, o, d);
            grad_normaliser[i] = -along;
            grad_eps[d] -= along;
        }
        transpose_padded(grad_rows, d, count, d, grads, LINE);
        for (size x = 0; x < vectors; x += now) {
            now = next_vectors(vectors - x);
            feature(now, map, u + x * W, less + x * W, grad_normaliser + x * W, norms, NULL, NULL, features + x * W);
            product(sums, d, 1, grads + x * W, LINE, grad_features + x * W, LINE, m, d, now, 0);
        }
        wide_product(features, LINE, 1, grad_rows, d, grad_sums, d, m, count, d, g > 0);
        times_features(features, m, vectors * W, norm, grad_normaliser, grad_features);
        embedding_gradients(map, grad_features, u, lengths, count, grad_u, grad_q + g * c);
    }
    for (size i = 0; i < m; i++) grad_norm[i] = sum_of(load(norms + i * W));
}

/* Gradients of n keys [n][c] and values [n][d], given those of the sums [m][d] and norm [m] over them and of the sum of
   values [d]. */
static void key_gradients(const struct feature_map *map, const float *k, const float *v, size n, size d,
                        const float *grad_sums, const float *grad_norm, const float *grad_total, float *grad_k,
                        float *grad_v, float *workspace) {
    size m = map->m, c = map->c;
    float *features = workspace, *grad_features = features + m * LINE, *u = grad_features + m * LINE;
    float *grad_u = u + c * LINE;
    float *values = grad_u + c * LINE, *grad_values = values + d * LINE, *lengths = grad_values + d * LINE;
    float *less = lengths + LINE;
    for (size g = 0; g < n; g += POSITIONS) {
        size count = n - g < POSITIONS ? n - g : POSITIONS, vectors = (count + W - 1) / W;
        int now;
        embed(map, k + g * c, count, u, lengths, less);
        transpose_padded(v + g * d, d, count, d, values, LINE);
        for (size x = 0; x < vectors; x += now) {
            now = next_vectors(vectors - x);
            feature(now, map, u + x * W, less + x * W, NULL, NULL, NULL, NULL, features + x * W);
            product(grad_sums, 1, d, features + x * W, LINE, grad_values + x * W, LINE, d, m, now, 0);
            product(grad_sums, d, 1, values + x * W, LINE, grad_features + x * W, LINE, m, d, now, 0);
        }
        times_features(features, m, vectors * W, grad_norm, NULL, grad_features);
        embedding_gradients(map, grad_features, u, lengths, count, grad_u, grad_k + g * c);
        float *to = grad_v + g * d;
        transpose(grad_values, LINE, d, count, to, d);
        for (size i = 0; i < count; i++)
            for (size e = 0; e < d; e++) to[i * d + e] += grad_total[e];
    }
}

/* Attention of all images, and its gradients. P parts of rows positions make an image. The value projection
   v -> weight v + bias acts on sums over keys; without one weights are NULL, and mapped is context. */
struct enla {
    struct feature_map map;
    size images, positions, rows, workers;
    size d, d_out;                       /* widths of values and output, multiples of W */
    float eps;                           /* over the factor that all features leave out */
    const float *q, *k, *v;              /* [B][N][c], [B][N][c], [B][N][d] */
    const float *weight, *turned, *bias; /* [d_out][d], its transpose, [d_out] */
    float *sums, *norms, *totals;        /* over the keys of each part: [B][P][m][d], [B][P][m], [B][P][d] */
    float *context, *norm, *scale;       /* over all keys with eps, over scale [B]: [B][m][d], [B][m] */
    float *mapped, *eps_sums, *eps_norm; /* [B][m][d_out]; what eps adds to a query's: [B][d_out], [B] */
    float *out, *normaliser;             /* [B][N][d_out], [B][N] */
    const float *grad;                   /* [B][N][d_out]; gradients of the rest: */
    float *grad_parts, *grad_norms, *grad_eps;     /* [B][P][m][d_out], [B][P][m], [B][P][d_out + 1] */
    float *grad_mapped;                            /* [B][m][d_out] */
    float *grad_context, *grad_norm, *grad_total;  /* [B][m][d], [B][m], [B][d] */
    float *grad_q, *grad_k, *grad_v;
};

static size parts_of(const struct enla *of) { return (of->positions + of->rows - 1) / of->rows; }

/* Image, first position of all images, and number of positions of a part. */
static size place(const struct enla *of, size tile, size *image, size *at) {
    size n = positions_of(tile, of->positions, of->rows, image, at);
    *at += *image * of->positions;
    return n;
}

static void sum_tile(const void *job, size tile, size worker, float *memory) {
    const struct enla *of = job;
    size image, at, n = place(of, tile, &image, &at), m = of->map.m, d = of->d;
    (void)worker;
    sum_keys(&of->map, of->k + at * of->map.c, of->v + at * d, n, d, of->sums + tile * m * d, of->norms + tile * m,
             of->totals + tile * d, memory);
}

/* to [n] is the sum of so many parts. */
static void add_up(const float *parts, size count, size n, float *to) {
    for (size i = 0; i < n; i++) to[i] = parts[i];
    for (size part = 1; part < count; part++)
        for (size i = 0; i < n; i++) to[i] += parts[part * n + i];
}

/* An image's sums over keys: of all parts, with what eps adds, over the largest sum of features, which cancels. */
static void join_tile(const void *job, size image, size worker, float *total) {
    const struct enla *of = job;
    size m = of->map.m, d = of->d, d_out = of->d_out, parts = parts_of(of);
    float *context = of->context + image * m * d, *norm = of->norm + image * m, most = 0, eps_norm = 0;
    float *mapped = of->mapped + image * m * d_out, *eps_sums = of->eps_sums + image * d_out;
    (void)worker;
    add_up(of->sums + image * parts * m * d, parts, m * d, context);
    add_up(of->norms + image * parts * m, parts, m, norm);
    add_up(of->totals + image * parts * d, parts, d, total);
    for (size i = 0; i < m; i++) most = norm[i] > most ? norm[i] : most;
    float scale = 1 / most;
    for (size i = 0; i < m; i++) {
        norm[i] = (norm[i] + of->eps * of->positions) * scale;
        eps_norm += norm[i];
        for (size e = 0; e < d; e++) context[i * d + e] = (context[i * d + e] + of->eps * total[e]) * scale;
    }
    if (of->weight) wide_product(context, d, 1, of->turned, d_out, mapped, d_out, m, d, d_out, 0);
    for (size e = 0; e < d_out; e++) eps_sums[e] = 0;
    for (size i = 0; i < m; i++)
        for (size e = 0; e < d_out; e++) {
            if (of->weight) mapped[i * d_out + e] += norm[i] * of->bias[e];
            eps_sums[e] += of->eps * mapped[i * d_out + e];
        }
    of->scale[image] = scale;
    of->eps_norm[image] = of->eps * eps_norm;
}

static void attend_tile(const void *job, size tile, size worker, float *memory) {
    const struct enla *of = job;
    size image, at, n = place(of, tile, &image, &at), m = of->map.m, d = of->d_out;
    (void)worker;
    attend(&of->map, of->q + at * of->map.c, n, d, of->mapped + image * m * d, of->norm + image * m,
           of->eps_sums + image * d, of->eps_norm[image], of->out + at * d, of->normaliser + at, memory);
}

static void query_gradients_tile(const void *job, size tile, size worker, float *memory) {
    const struct enla *of = job;
    size image, at, n = place(of, tile, &image, &at), m = of->map.m, c = of->map.c, d = of->d_out;
    (void)worker;
    query_gradients(&of->map, of->q + at * c, n, d, of->mapped + image * m * d, of->norm + image * m, of->out + at * d,
                    of->normaliser + at, of->grad + at * d, of->grad_q + at * c, of->grad_parts + tile * m * d,
                    of->grad_norms + tile * m, of->grad_eps + tile * (d + 1), memory);
}

/* An image's gradients of what attend_tile took become those of what sum_tile gave. */
static void join_gradients_tile(const void *job, size image, size worker, float *of_eps) {
    const struct enla *of = job;
    size m = of->map.m, d = of->d, d_out = of->d_out, parts = parts_of(of);
    float *mapped = of->grad_mapped + image * m * d_out, *norm = of->grad_norm + image * m, scale = of->scale[image];
    float *context = of->grad_context + image * m * d, *total = of->grad_total + image * d;
    (void)worker;
    add_up(of->grad_parts + image * parts * m * d_out, parts, m * d_out, mapped);
    add_up(of->grad_norms + image * parts * m, parts, m, norm);
    add_up(of->grad_eps + image * parts * (d_out + 1), parts, d_out + 1, of_eps);
    for (size i = 0; i < m; i++) {
        for (size e = 0; e < d_out; e++) mapped[i * d_out + e] += of->eps * of_eps[e];
        norm[i] += of->eps * of_eps[d_out];
        if (of->weight) norm[i] += dot(mapped + i * d_out, of->bias, d_out);
        norm[i] *= scale;
    }
    if (of->weight) wide_product(mapped, d_out, 1, of->weight, d, context, d, m, d_out, d, 0);
    for (size e = 0; e < d; e++) total[e] = 0;
    for (size i = 0; i < m; i++)
        for (size e = 0; e < d; e++) {
            context[i * d + e] = (of->weight ? context : mapped)[i * d + e] * scale;
            total[e] += of->eps * context[i * d + e];
        }
}

static void key_gradients_tile(const void *job, size tile, size worker, float *memory) {
    const struct enla *of = job;
    size image, at, n = place(of, tile, &image, &at), m = of->map.m, c = of->map.c, d = of->d;
    (void)worker;
    key_gradients(&of->map, of->k + at * c, of->v + at * d, n, d, of->grad_context + image * m * d,
                  of->grad_norm + image * m, of->grad_total + image * d, of->grad_k + at * c, of->grad_v + at * d,
                  memory);
}

static void share(const struct enla *of, tile_function function, size tiles, float *workspace) {
    size width = of->d > of->d_out ? of->d : of->d_out;
    share_tiles(function, of, tiles, of->workers, 0, workspace, enla_workspace(of->map.m, of->map.c, width));
}

/* The workspace of both is enla_workspace for each worker, of the wider of d and d_out. */
void enla_forward(const struct enla *of, float *workspace) {
    share(of, sum_tile, of->images * parts_of(of), workspace);
    share(of, join_tile, of->images, workspace);
    share(of, attend_tile, of->images * parts_of(of), workspace);
}

void enla_backward(const struct enla *of, float *workspace) {
    share(of, query_gradients_tile, of->images * parts_of(of), workspace);
    share(of, join_gradients_tile, of->images, workspace);
    share(of, key_gradients_tile, of->images * parts_of(of), workspace);
}
