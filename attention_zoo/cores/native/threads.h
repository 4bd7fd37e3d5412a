/* Threads that share the tiles of a job. */
#include "vectors.h"

/* Does one tile of a job; the memory is its worker's. */
typedef void (*tile_function)(const void *job, size tile, size worker, float *memory);

/* Do all tiles by so many workers, of which the caller is the first, and return when all are done.
   A free worker takes the next tile. If fixed, worker w does tiles w, w + workers, … in this order.
   memory: by_worker floats for each worker. */
void share_tiles(tile_function function, const void *job, size tiles, size workers, int fixed, float *memory,
                 size by_worker);

/* Of a tile of rows positions, tiles of one image standing together: its image, its first position in it, and how many
   positions it has. */
INLINE size positions_of(size tile, size positions, size rows, size *image, size *first) {
    size tiles = (positions + rows - 1) / rows, left;
    *image = tile / tiles;
    *first = tile % tiles * rows;
    left = positions - *first;
    return left < rows ? left : rows;
}
