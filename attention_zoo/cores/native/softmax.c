/* Softmax attention of rows, tile by tile with online softmax: the counterpart of attention_zoo/cores/softmax.py, with
   the same names and numerics. Scores stand in columns: keys by queries. */
#include "threads.h"

/* Queries of a tile, the distance of its rows, which is no power of 2, and keys: scores stay in the cache. */
enum { QUERIES = 144, LINE = QUERIES + 16, KEYS = 144 };
static const float LOG2_E = 1.44269504088896340736f;
/* How far, in units of log 2, later scores may exceed the first keys' maximum before it is raised. */
static const float MOST_ABOVE = 40;
static const float LEFT_OUT = -1.2e38f;

/* Floats of memory for each worker. */
size softmax_workspace(size c, size d) {
    return (2 * c + d + 2 * KEYS + 2) * LINE + (KEYS + QUERIES) * (pitch(c) + pitch(d));
}

/* The score of row i and column i + first becomes LEFT_OUT, before high is taken. */
INLINE void leave_out_diagonal(float *scores, size first, size rows, size columns) {
    for (size i = 0; i < rows; i++)
        if (i + first >= 0 && i + first < columns) scores[i * LINE + i + first] = LEFT_OUT;
}

/* Scores [keys][vectors W], no larger than highest, become weights 2^(score - top), which are added to norm; sums have
   d rows. */
INLINE void weigh_of(const int vectors, float *scores, size keys, const float *highest, float *top, float *norm,
                     float *sums, size d, int first) {
    vec high[MOST_VECTORS], total[MOST_VECTORS];
    UNROLL for (int j = 0; j < vectors; j++) {
        high[j] = load(highest + j * W);
        total[j] = (vec){0};
        if (!first) {
            vec before = load(top + j * W), above = high[j] - before;
            float most = above[0];
            for (int l = 1; l < W; l++) most = above[l] > most ? above[l] : most;
            total[j] = load(norm + j * W);
            if (most > MOST_ABOVE) {
                high[j] = larger(high[j], before);
                vec shrink = power_of_2(before - high[j]);
                total[j] *= shrink;
                for (size e = 0; e < d; e++)
                    store(sums + e * LINE + j * W, load(sums + e * LINE + j * W) * shrink);
            } else
                high[j] = before;
        }
        store(top + j * W, high[j]);
    }
    for (size i = 0; i < keys; i++) {
        UNROLL for (int j = 0; j < vectors; j++) {
            vec weight = power_of_2(load(scores + i * LINE + j * W) - high[j]);
            store(scores + i * LINE + j * W, weight);
            total[j] += weight;
        }
    }
    UNROLL for (int j = 0; j < vectors; j++) store(norm + j * W, total[j]);
}

static void weigh(int vectors, float *scores, size keys, const float *high, float *top, float *norm, float *sums,
                  size d, int first) {
    if (vectors == 3) weigh_of(3, scores, keys, high, top, norm, sums, d, first);
    if (vectors == 2) weigh_of(2, scores, keys, high, top, norm, sums, d, first);
    if (vectors == 1) weigh_of(1, scores, keys, high, top, norm, sums, d, first);
}

/* In every line from first_line on, n queries from first on attend to m keys. q and k are c wide, v and out d, top and
   norm 1.
   before: out, top and norm hold the sums, largest scores and norms after earlier keys.
   finish: out receives the output, and top log2 of the whole norm; else all three hold such sums again.
   leave_out: query i leaves out key i. */
static void attend(const struct lines *q, const struct lines *k, const struct lines *v, const struct lines *out,
                    const struct lines *top_of, const struct lines *norm_of, size m, size c, size d, int before,
                    int finish, int leave_out, size first_line, size lines, size first, size n, float *workspace) {
    float *queries = workspace, *sums = queries + c * LINE, *scores = sums + d * LINE, *top = scores + KEYS * LINE;
    float *norm = top + LINE, *rows_k = norm + LINE, *rows_v = rows_k + KEYS * pitch(c);
    float *rows = rows_v + KEYS * pitch(d);
    size by_c = pitch(c), by_d = pitch(d);
    float high[MOST_VECTORS * W];
    for (size line = first_line; line < first_line + lines; line++)
        for (size g = first; g < first + n; g += QUERIES) {
            size count = first + n - g < QUERIES ? first + n - g : QUERIES, vectors = (count + W - 1) / W;
            transpose_padded(in_one_piece(q, line, g, count, c, rows), by_c, count, c, queries, LINE);
            for (size i = 0; i < c; i++)
                for (size x = 0; x < vectors; x++)
                    store(queries + i * LINE + x * W, load(queries + i * LINE + x * W) * LOG2_E);
            for (size j = 0; j < m; j += KEYS) {
                size keys = m - j < KEYS ? m - j : KEYS;
                const float *key = in_one_piece(k, line, j, keys, c, rows_k);
                const float *value = in_one_piece(v, line, j, keys, d, rows_v);
                int now;
                for (size x = 0; x < vectors; x += now) {
                    now = next_vectors(vectors - x);
                    float *s = scores + x * W, *o = sums + x * W;
                    for (int l = 0; l < now; l++) store(high + l * W, all(LEFT_OUT));
                    product_and_top(key, by_c, 1, queries + x * W, LINE, s, LINE, keys, c, now, high);
                    if (leave_out) leave_out_diagonal(s, j - g - x * W, keys, now * W);
                    weigh(now, s, keys, high, top + x * W, norm + x * W, o, d, j == 0);
                    product(value, 1, by_d, s, LINE, o, LINE, d, keys, now, j > 0);
                }
            }
            transpose(sums, LINE, d, count, rows, by_d);
            for (size i = 0; i < count; i++) {
                float *to = row(out, line, g + i), *to_top = row(top_of, line, g + i);
                float *to_norm = row(norm_of, line, g + i), all_top = top[i], all_norm = norm[i];
                float own = 1, of_before = 0;
                if (before) {
                    all_top = *to_top > top[i] ? *to_top : top[i];
                    own = exp2f(top[i] - all_top), of_before = exp2f(*to_top - all_top);
                    all_norm = norm[i] * own + *to_norm * of_before;
                }
                if (finish) own /= all_norm, of_before /= all_norm;
                if (before)
                    for (size e = 0; e < d; e++) to[e] = rows[i * by_d + e] * own + to[e] * of_before;
                else
                    for (size e = 0; e < d; e++) to[e] = rows[i * by_d + e] * own;
                *to_top = finish ? log2f(all_norm) + all_top : all_top;
                if (!finish) *to_norm = all_norm;
            }
        }
}

/* Scores become weights. grad_scores holds products of gradients and values, which become gradients of the scores. */
INLINE void weigh_gradients_of(const int vectors, float *scores, float *grad_scores, size keys, const float *lse,
                               const float *delta) {
    vec high[MOST_VECTORS], less[MOST_VECTORS];
    UNROLL for (int j = 0; j < vectors; j++) {
        high[j] = load(lse + j * W);
        less[j] = load(delta + j * W);
    }
    for (size i = 0; i < keys; i++) {
        UNROLL for (int j = 0; j < vectors; j++) {
            float *s = scores + i * LINE + j * W, *g = grad_scores + i * LINE + j * W;
            /* Rounding of a huge score must not lift it above the sum that holds it. */
            vec weight = power_of_2(-larger((vec){0}, high[j] - load(s)));
            store(s, weight);
            store(g, weight * (load(g) - less[j]));
        }
    }
}

static void weigh_gradients(int vectors, float *scores, float *grad_scores, size keys, const float *lse,
                            const float *delta) {
    if (vectors == 3) weigh_gradients_of(3, scores, grad_scores, keys, lse, delta);
    if (vectors == 2) weigh_gradients_of(2, scores, grad_scores, keys, lse, delta);
    if (vectors == 1) weigh_gradients_of(1, scores, grad_scores, keys, lse, delta);
}

/* Gradients of the queries, keys and values of such lines, given those of out; lse is what attend left in top.
   c and d are multiples of W.
   add_q, add_kv: add to the content of grad_q, of grad_k and grad_v. */
static void gradients(const struct lines *q, const struct lines *k, const struct lines *v, const struct lines *out,
                       const struct lines *lse_of, const struct lines *grad,
                       const struct lines *grad_q, const struct lines *grad_k, const struct lines *grad_v, size m,
                       size c, size d, int add_q, int add_kv, int leave_out, size first_line, size lines, size first,
                       size n, float *workspace) {
    float *queries = workspace, *grad_queries = queries + c * LINE, *grads = grad_queries + c * LINE;
    float *scores = grads + d * LINE, *grad_scores = scores + KEYS * LINE, *lse = grad_scores + KEYS * LINE;
    float *delta = lse + LINE, *rows_k = delta + LINE, *rows_v = rows_k + KEYS * pitch(c);
    float *rows_q = rows_v + KEYS * pitch(d), *rows_grad = rows_q + QUERIES * pitch(c);
    size by_c = pitch(c), by_d = pitch(d);
    for (size line = first_line; line < first_line + lines; line++)
        for (size g = first; g < first + n; g += QUERIES) {
            size count = first + n - g < QUERIES ? first + n - g : QUERIES, vectors = (count + W - 1) / W;
            const float *query = in_one_piece(q, line, g, count, c, rows_q);
            const float *grad_out = in_one_piece(grad, line, g, count, d, rows_grad);
            transpose_padded(query, by_c, count, c, queries, LINE);
            for (size i = 0; i < c; i++)
                for (size x = 0; x < vectors; x++)
                    store(queries + i * LINE + x * W, load(queries + i * LINE + x * W) * LOG2_E);
            transpose_padded(grad_out, by_d, count, d, grads, LINE);
            store(lse + (vectors - 1) * W, (vec){0});
            store(delta + (vectors - 1) * W, (vec){0});
            for (size i = 0; i < count; i++) {
                delta[i] = dot(row(out, line, g + i), grad_out + i * by_d, d);
                lse[i] = *row(lse_of, line, g + i);
            }
            for (size j = 0; j < m; j += KEYS) {
                size keys = m - j < KEYS ? m - j : KEYS;
                const float *key = in_one_piece(k, line, j, keys, c, rows_k);
                const float *value = in_one_piece(v, line, j, keys, d, rows_v);
                int add = g > first || add_kv, now;
                for (size x = 0; x < vectors; x += now) {
                    now = next_vectors(vectors - x);
                    float *s = scores + x * W, *b = grad_scores + x * W;
                    product(key, by_c, 1, queries + x * W, LINE, s, LINE, keys, c, now, 0);
                    product(value, by_d, 1, grads + x * W, LINE, b, LINE, keys, d, now, 0);
                    if (leave_out) leave_out_diagonal(s, j - g - x * W, keys, now * W);
                    weigh_gradients(now, s, b, keys, lse + x * W, delta + x * W);
                    product(key, 1, by_c, b, LINE, grad_queries + x * W, LINE, c, keys, now, j > 0);
                }
                float *to_v = row(grad_v, line, j), *to_k = row(grad_k, line, j);
                wide_product(scores, LINE, 1, grad_out, by_d, to_v, grad_v->by_row, keys, count, d, add);
                wide_product(grad_scores, LINE, 1, query, by_c, to_k, grad_k->by_row, keys, count, c, add);
            }
            transpose(grad_queries, LINE, c, count, queries, c);
            for (size i = 0; i < count; i++) {
                float *to = row(grad_q, line, g + i);
                if (add_q)
                    for (size j = 0; j < c; j++) to[j] += queries[i * c + j];
                else
                    for (size j = 0; j < c; j++) to[j] = queries[i * c + j];
            }
        }
}

/* Attention of all lines of all images, or its gradients, tile by tile. Lines of an image are by_image further than
   those of the one before. What tiles of an image, or workers, must not share is by_tile, by_worker further for the
   next. */
struct softmax {
    struct lines rows[9]; /* what attend, or gradients, takes */
    size images, lines, queries, last_queries; /* of each line; of the last line of an image */
    size lines_of_tile, queries_of_tile, workers;
    size m, c, d;
    int flags[3]; /* before, finish and leave_out; or add_q, add_kv and leave_out */
    int gradients;
    int fixed; /* a worker's tiles depend on their number alone, so that its sums do */
};

static void tile_of(const struct softmax *of, size image, size group, size worker, size first_line, size lines,
                    size first, size n, float *memory) {
    struct lines x[9];
    if (lines <= 0) return;
    for (int i = 0; i < 9; i++) {
        x[i] = of->rows[i];
        x[i].at += image * x[i].by_image + group * x[i].by_tile + worker * x[i].by_worker;
        if (x[i].which) x[i].which += image * x[i].which_by_image;
    }
    if (of->gradients)
        gradients(x, x + 1, x + 2, x + 3, x + 4, x + 5, x + 6, x + 7, x + 8, of->m, of->c, of->d, of->flags[0],
                  of->flags[1], of->flags[2], first_line, lines, first, n, memory);
    else
        attend(x, x + 1, x + 2, x + 3, x + 4, x + 5, of->m, of->c, of->d, of->flags[0], of->flags[1], of->flags[2],
               first_line, lines, first, n, memory);
}

static size pieces(size all, size of_piece) { return (all + of_piece - 1) / of_piece; }

static void softmax_tile(const void *job, size tile, size worker, float *memory) {
    const struct softmax *of = job;
    size by_queries = pieces(of->queries, of->queries_of_tile), by_lines = pieces(of->lines, of->lines_of_tile);
    size first = tile % by_queries * of->queries_of_tile, group = tile / by_queries % by_lines;
    size first_line = group * of->lines_of_tile, lines = of->lines - first_line, n = of->queries - first;
    size image = tile / by_queries / by_lines;
    if (lines > of->lines_of_tile) lines = of->lines_of_tile;
    if (n > of->queries_of_tile) n = of->queries_of_tile;
    if (of->last_queries < of->queries && first_line + lines == of->lines) {
        lines--;
        tile_of(of, image, group, worker, of->lines - 1, 1, first, of->last_queries - first, memory);
    }
    tile_of(of, image, group, worker, first_line, lines, first, n, memory);
}

void share_softmax(const struct softmax *of, float *workspace) {
    size tiles = of->images * pieces(of->lines, of->lines_of_tile) * pieces(of->queries, of->queries_of_tile);
    share_tiles(softmax_tile, of, tiles, of->workers, of->fixed, workspace, softmax_workspace(of->c, of->d));
}
