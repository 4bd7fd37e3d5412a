/* Hash codes of NLSA: see hash_codes in attention_zoo/nlsa.py. */
#include "threads.h"

/* Positions of a tile, and the distance of its rows, which is no power of 2. */
enum { POSITIONS = 144, LINE = POSITIONS + 16 };

/* Floats of memory for each worker of nlsa_hash; half is half the number of buckets. */
size nlsa_workspace(size c, size half) { return (c + half) * LINE + POSITIONS; }

/* Codes [rounds], by_round apart, of n embeddings x [n][c]: the first of the largest of [xR, -xR]; rotations are
   [rounds][half][c]. */
static void hash(const float *x, const float *rotations, size n, size c, size rounds, size half, int64_t *codes,
               size by_round, float *workspace) {
    float *columns = workspace, *rotated = columns + c * LINE, *code = rotated + half * LINE;
    for (size g = 0; g < n; g += POSITIONS) {
        size count = n - g < POSITIONS ? n - g : POSITIONS, vectors = (count + W - 1) / W;
        transpose_padded(x + g * c, c, count, c, columns, LINE);
        for (size r = 0; r < rounds; r++) {
            int now;
            for (size j = 0; j < vectors; j += now) {
                now = next_vectors(vectors - j);
                product(rotations + r * half * c, c, 1, columns + j * W, LINE, rotated + j * W, LINE, half, c, now, 0);
            }
            for (size j = 0; j < vectors * W; j += W) {
                vec best = load(rotated + j);
                ivec at = (ivec){0};
                for (size i = 1; i < 2 * half; i++) {
                    vec one = i < half ? load(rotated + i * LINE + j) : -load(rotated + (i - half) * LINE + j);
                    ivec higher = one > best, place = (ivec){0} + (int32_t)i;
                    best = larger(best, one);
                    at = (higher & place) | (~higher & at);
                }
                for (size i = 0; i < W; i++) code[j + i] = (float)at[i];
            }
            for (size i = 0; i < count; i++) codes[r * by_round + g + i] = (int64_t)code[i];
        }
    }
}

struct hashing {
    const float *x, *rotations; /* embeddings [B][N][c], rotations [rounds][half][c] */
    int64_t *codes;             /* [B][rounds][N] */
    size images, positions, c, rounds, half, rows, workers;
};

static void hash_tile(const void *job, size tile, size worker, float *memory) {
    const struct hashing *of = job;
    size n = of->positions, image, first, count = positions_of(tile, n, of->rows, &image, &first);
    (void)worker;
    hash(of->x + (image * n + first) * of->c, of->rotations, count, of->c, of->rounds, of->half,
         of->codes + image * of->rounds * n + first, n, memory);
}

void nlsa_hash(const struct hashing *of, float *workspace) {
    size tiles = of->images * ((of->positions + of->rows - 1) / of->rows);
    share_tiles(hash_tile, of, tiles, of->workers, 0, workspace, nlsa_workspace(of->c, of->half));
}

struct gathering {
    const float *from;     /* [B][slots][w] */
    const int64_t *places; /* [B][N][rounds], of slots */
    float *to;             /* [B][N][w] */
    size images, positions, slots, width, rounds, rows, workers;
};

static void gather_tile(const void *job, size tile, size worker, float *memory) {
    const struct gathering *of = job;
    size n = of->positions, w = of->width, image, first, count = positions_of(tile, n, of->rows, &image, &first);
    (void)worker, (void)memory;
    for (size i = image * n + first; i < image * n + first + count; i++)
        for (size r = 0; r < of->rounds; r++) {
            const float *from = of->from + (image * of->slots + of->places[i * of->rounds + r]) * w;
            float *to = of->to + i * w;
            for (size j = 0; j < w; j++) to[j] = r ? to[j] + from[j] : from[j];
        }
}

/* Every position's sum over rounds. */
void nlsa_gather(const struct gathering *of) {
    size tiles = of->images * ((of->positions + of->rows - 1) / of->rows);
    share_tiles(gather_tile, of, tiles, of->workers, 0, NULL, 0);
}
