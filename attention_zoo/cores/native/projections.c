/* Up to three 1x1 convolutions of one map, which is read once, and their gradients. */
#include "threads.h"

enum { LAYERS = 3, TILES_OF_A_SUM = 8 };

struct projections {
    const float *x;                         /* [N][c] */
    const float *weights, *turned, *bias;   /* of all layers, one behind the other: [w][c], [c][w], [w] */
    const float *grads[LAYERS];             /* of the outputs */
    float *outs[LAYERS];                    /* [N][width] */
    float *grad_x;                          /* or NULL */
    float *grad_weights, *grad_bias;        /* of each worker's last tiles, and of those before: [2][w][c], [2][w] */
    size positions, c, w;                   /* c and w are multiples of W; w is at least all widths */
    size widths[LAYERS];                    /* 0 where there is no layer */
    size rows, workers;                     /* of a tile; how many share the tiles */
};

/* Floats of memory for each worker. */
size projections_workspace(size rows, size w) { return rows * w; }

static void project_tile(const void *job, size tile, size worker, float *memory) {
    const struct projections *of = job;
    size image, first, count = positions_of(tile, of->positions, of->rows, &image, &first), from = 0;
    (void)worker;
    wide_product(of->x + first * of->c, of->c, 1, of->turned, of->w, memory, of->w, count, of->c, of->w, 0);
    for (int l = 0; l < LAYERS; from += of->widths[l++]) {
        float *out = of->outs[l] + first * of->widths[l];
        for (size i = 0; i < count; i++, out += of->widths[l])
            for (size j = 0; j < of->widths[l]; j++) out[j] = memory[i * of->w + from + j] + of->bias[from + j];
    }
}

/* The first n numbers go to the next n, of which they become part. */
static void flush(float *x, size n) {
    for (size i = 0; i < n; i += W) {
        store(x + n + i, load(x + n + i) + load(x + i));
        store(x + i, (vec){0});
    }
}

static void gradients_of_tile(const void *job, size tile, size worker, float *memory) {
    const struct projections *of = job;
    size image, first, count = positions_of(tile, of->positions, of->rows, &image, &first), c = of->c, w = of->w;
    const float *x = of->x + first * c;
    float *sums = of->grad_bias + worker * 2 * w, *products = of->grad_weights + worker * 2 * w * c;
    size from = 0;
    for (int l = 0; l < LAYERS; from += of->widths[l++]) {
        const float *grad = of->grads[l] + first * of->widths[l];
        for (size i = 0; i < count; i++, grad += of->widths[l])
            for (size j = 0; j < of->widths[l]; j++) memory[i * w + from + j] = grad[j];
    }
    for (size i = 0; i < count; i++)
        for (size j = from; j < w; j++) memory[i * w + j] = 0;
    for (size j = 0; j < w; j += W) {
        vec sum = (vec){0};
        for (size i = 0; i < count; i++) sum += load(memory + i * w + j);
        store(sums + j, load(sums + j) + sum);
    }
    if (of->grad_x) wide_product(memory, w, 1, of->weights, c, of->grad_x + first * c, c, count, w, c, 0);
    wide_product(memory, 1, w, x, c, products, c, w, count, c, 1);
    if (tile / of->workers % TILES_OF_A_SUM == TILES_OF_A_SUM - 1) {
        flush(products, w * c);
        flush(sums, w);
    }
}

static void share(tile_function function, const struct projections *of, float *workspace) {
    size tiles = (of->positions + of->rows - 1) / of->rows;
    share_tiles(function, of, tiles, of->workers, 1, workspace, projections_workspace(of->rows, of->w));
}

void projections_forward(const struct projections *of, float *workspace) { share(project_tile, of, workspace); }

void projections_backward(const struct projections *of, float *workspace) { share(gradients_of_tile, of, workspace); }
