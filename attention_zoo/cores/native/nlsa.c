/* Hash codes of NLSA: see hash_codes in attention_zoo/nlsa.py. */
#include "vectors.h"

/* Positions of a tile, and the distance of its rows, which is no power of 2. */
enum { POSITIONS = 144, LINE = POSITIONS + 16 };

/* Floats of memory that nlsa_hash needs; half is half the number of buckets. */
size nlsa_workspace(size c, size half) { return (c + half) * LINE + POSITIONS; }

/* Codes [rounds], by_round apart, of n embeddings x [n][c]: the first of the largest of [xR, -xR]; rotations are
   [rounds][half][c]. */
void nlsa_hash(const float *x, const float *rotations, size n, size c, size rounds, size half, int64_t *codes,
               size by_round, float *workspace) {
    float *columns = workspace, *rotated = columns + c * LINE, *code = rotated + half * LINE;
    for (size g = 0; g < n; g += POSITIONS) {
        size count = n - g < POSITIONS ? n - g : POSITIONS, vectors = (count + W - 1) / W;
        transpose_padded(x + g * c, count, c, columns, LINE);
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
