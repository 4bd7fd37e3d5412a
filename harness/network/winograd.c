/* 3x3 convolution with zero padding by Winograd's F(2x2, 3x3), 16 products for 4 outputs instead of 36: Lavin and
   Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016. Maps are [B][H][W][channels]; channels are
   multiples of W. vectors.h is that of attention_zoo/cores/native. */
#include "vectors.h"

/* Tiles of 2x2 outputs that are done together, and outputs' channels. */
enum { TILES = 24, MOST_OUTPUTS = 64 };

/* Floats of memory that the passes need. */
size winograd_workspace(size inputs, size outputs) {
    size most = outputs < MOST_OUTPUTS ? outputs : MOST_OUTPUTS;
    return 16 * TILES * (inputs + most) + (inputs > outputs ? inputs : outputs);
}

struct map {
    float *at;
    size height, width, channels;
};

/* Addresses of a tile's side x side pixels, the first one above and left of its outputs by from; pixels beyond the map
   are at outside. */
static void pixels(const struct map *map, size tile, int side, int from, float *outside, float **at) {
    size across = (map->width + 1) / 2, down = (map->height + 1) / 2;
    size image = tile / (across * down), top = tile / across % down * 2 - from, left = tile % across * 2 - from;
    for (int i = 0; i < side; i++)
        for (int j = 0; j < side; j++) {
            size y = top + i, x = left + j;
            int inside = y >= 0 && y < map->height && x >= 0 && x < map->width;
            at[i * side + j] =
                inside ? map->at + ((image * map->height + y) * map->width + x) * map->channels : outside;
        }
}

/* to[16][TILES][channels] is B^T d B of the 4x4 inputs d of every tile. */
static void transform_inputs(const struct map *map, size first, size tiles, float *zeros, float *to) {
    size channels = map->channels, by = TILES * channels;
    for (size t = 0; t < tiles; t++) {
        float *from[16];
        pixels(map, first + t, 4, 1, zeros, from);
        for (size c = 0; c < channels; c += W) {
            vec d[4][4];
            UNROLL for (int j = 0; j < 4; j++) {
                vec a = load(from[j] + c), b = load(from[4 + j] + c), e = load(from[8 + j] + c);
                d[0][j] = a - e;
                d[1][j] = b + e;
                d[2][j] = e - b;
                d[3][j] = b - load(from[12 + j] + c);
            }
            float *at = to + t * channels + c;
            UNROLL for (int i = 0; i < 4; i++) {
                store(at + (4 * i) * by, d[i][0] - d[i][2]);
                store(at + (4 * i + 1) * by, d[i][1] + d[i][2]);
                store(at + (4 * i + 2) * by, d[i][2] - d[i][1]);
                store(at + (4 * i + 3) * by, d[i][1] - d[i][3]);
            }
        }
    }
}

/* 2x2 outputs A^T m A of m[16][TILES][count], plus the bias unless that is NULL, from channel first_output on. */
static void transform_outputs(const float *m, size first, size tiles, size first_output, size count, const float *bias,
                              const struct map *map, float *outside) {
    size by = TILES * count;
    for (size t = 0; t < tiles; t++) {
        float *to[4];
        pixels(map, first + t, 2, 0, outside, to);
        for (size c = 0; c < count; c += W) {
            const float *at = m + t * count + c;
            vec s[2][4], add = bias ? load(bias + first_output + c) : (vec){0};
            UNROLL for (int j = 0; j < 4; j++) {
                vec a = load(at + j * by), b = load(at + (4 + j) * by), e = load(at + (8 + j) * by);
                s[0][j] = a + b + e;
                s[1][j] = b - e - load(at + (12 + j) * by);
            }
            UNROLL for (int i = 0; i < 2; i++) {
                store(to[2 * i] + first_output + c, s[i][0] + s[i][1] + s[i][2] + add);
                store(to[2 * i + 1] + first_output + c, s[i][1] - s[i][2] - s[i][3] + add);
            }
        }
    }
}

/* to[16][TILES][count] is A g A^T of the gradients g of every tile's 2x2 outputs. */
static void transform_gradients(const struct map *map, size first, size tiles, size first_output, size count,
                                float *zeros, float *to) {
    size by = TILES * count;
    for (size t = 0; t < tiles; t++) {
        float *from[4];
        pixels(map, first + t, 2, 0, zeros, from);
        for (size c = 0; c < count; c += W) {
            vec g[4][2];
            UNROLL for (int j = 0; j < 2; j++) {
                vec a = load(from[j] + first_output + c), b = load(from[2 + j] + first_output + c);
                g[0][j] = a;
                g[1][j] = a + b;
                g[2][j] = a - b;
                g[3][j] = -b;
            }
            float *at = to + t * count + c;
            UNROLL for (int i = 0; i < 4; i++) {
                store(at + (4 * i) * by, g[i][0]);
                store(at + (4 * i + 1) * by, g[i][0] + g[i][1]);
                store(at + (4 * i + 2) * by, g[i][0] - g[i][1]);
                store(at + (4 * i + 3) * by, -g[i][1]);
            }
        }
    }
}

/* Outputs of count tiles from first on. Weights [16][inputs][outputs] are G g G^T of each kernel g. */
void winograd_convolve(const struct map *x, const float *weights, const float *bias, const struct map *y, size first,
                       size count, float *workspace) {
    size inputs = x->channels, outputs = y->channels, most = outputs < MOST_OUTPUTS ? outputs : MOST_OUTPUTS;
    float *v = workspace, *m = v + 16 * TILES * inputs, *outside = m + 16 * TILES * most;
    for (size t = first; t < first + count; t += TILES) {
        size tiles = first + count - t < TILES ? first + count - t : TILES;
        for (size c = 0; c < inputs; c++) outside[c] = 0; /* outputs outside of the map are written there */
        transform_inputs(x, t, tiles, outside, v);
        for (size o = 0; o < outputs; o += most) {
            size some = outputs - o < most ? outputs - o : most;
            for (int i = 0; i < 16; i++)
                wide_product(v + i * TILES * inputs, inputs, 1, weights + i * inputs * outputs + o, outputs,
                             m + i * TILES * some, some, tiles, inputs, some, 0);
            transform_outputs(m, t, tiles, o, some, bias, y, outside);
        }
    }
}

/* Gradients [16][inputs][outputs] of the weights of winograd_convolve, from count tiles, first and following. */
void winograd_grad_weights(const struct map *x, const struct map *grad, float *grad_weights, size first, size count,
                         float *workspace) {
    size inputs = x->channels, outputs = grad->channels, most = outputs < MOST_OUTPUTS ? outputs : MOST_OUTPUTS;
    float *v = workspace, *m = v + 16 * TILES * inputs, *zeros = m + 16 * TILES * most;
    size widest = inputs > outputs ? inputs : outputs;
    for (size c = 0; c < widest; c++) zeros[c] = 0;
    for (size t = first; t < first + count; t += TILES) {
        size tiles = first + count - t < TILES ? first + count - t : TILES;
        transform_inputs(x, t, tiles, zeros, v);
        for (size o = 0; o < outputs; o += most) {
            size some = outputs - o < most ? outputs - o : most;
            transform_gradients(grad, t, tiles, o, some, zeros, m);
            for (int i = 0; i < 16; i++)
                wide_product(v + i * TILES * inputs, 1, inputs, m + i * TILES * some, some,
                             grad_weights + i * inputs * outputs + o, outputs, inputs, tiles, some, t > first);
        }
    }
}
