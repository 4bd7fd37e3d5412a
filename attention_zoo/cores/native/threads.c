/* The threads are started once. Between jobs they look for the next one for some tens of microseconds, then sleep: jobs
   that follow one another need not wait for a thread to wake up, and on another core than the caller's. */
#include "threads.h"

#include <pthread.h>

enum { MOST_THREADS = 255, LOOKS = 1000 };

struct job {
    tile_function function;
    const void *of;
    size tiles, workers, by_worker;
    int fixed;
    float *memory;
    size next; /* tile that nobody has taken */
};

static pthread_mutex_t in_use = PTHREAD_MUTEX_INITIALIZER, lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t begin = PTHREAD_COND_INITIALIZER, end = PTHREAD_COND_INITIALIZER;
static struct job job;
static size threads, running; /* threads that were started; those that are at work on the job */
static size turn;             /* number of the job */

static void pause_briefly(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Until x is no longer this, or for a while. */
static void look(const size *x, size this) {
    for (int i = 0; i < LOOKS && __atomic_load_n(x, __ATOMIC_ACQUIRE) == this; i++) pause_briefly();
}

static void work(struct job *of, size worker) {
    float *memory = of->memory + worker * of->by_worker;
    if (of->fixed)
        for (size tile = worker; tile < of->tiles; tile += of->workers) of->function(of->of, tile, worker, memory);
    else
        for (size tile; (tile = __atomic_fetch_add(&of->next, 1, __ATOMIC_RELAXED)) < of->tiles;)
            of->function(of->of, tile, worker, memory);
}

static void *wait_for_work(void *number) {
    size worker = (size)(intptr_t)number, seen;
    pthread_mutex_lock(&lock);
    for (seen = turn - 1;; seen = turn) {
        if (seen == turn) {
            pthread_mutex_unlock(&lock);
            look(&turn, seen);
            pthread_mutex_lock(&lock);
        }
        while (seen == turn || worker >= job.workers) {
            seen = turn;
            pthread_cond_wait(&begin, &lock);
        }
        pthread_mutex_unlock(&lock);
        work(&job, worker);
        pthread_mutex_lock(&lock);
        if (__atomic_sub_fetch(&running, 1, __ATOMIC_ACQ_REL) == 0) pthread_cond_signal(&end);
    }
    return NULL;
}

/* A forked child has the memory, but not the threads. */
static void forget_threads(void) {
    threads = running = 0;
    pthread_mutex_init(&in_use, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&begin, NULL);
    pthread_cond_init(&end, NULL);
}

__attribute__((constructor)) static void remember_to_forget(void) { pthread_atfork(NULL, NULL, forget_threads); }

/* Start threads until there are so many; gives how many there are. */
static size start_threads(size wanted) {
    pthread_attr_t detached;
    if (threads >= wanted) return threads;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    for (; threads < wanted; threads++) {
        pthread_t thread;
        if (pthread_create(&thread, &detached, wait_for_work, (void *)(intptr_t)(threads + 1))) break;
    }
    pthread_attr_destroy(&detached);
    return threads;
}

void share_tiles(tile_function function, const void *of, size tiles, size workers, int fixed, float *memory,
                 size by_worker) {
    struct job now = {function, of, tiles, workers, by_worker, fixed, memory, 0};
    if (workers > tiles) now.workers = tiles;
    if (now.workers > MOST_THREADS) now.workers = MOST_THREADS;
    if (now.workers < 2 || pthread_mutex_trylock(&in_use)) { /* alone, or another thread's job is under way */
        for (size worker = 0; worker < (fixed ? now.workers : 1); worker++) work(&now, worker);
        return;
    }
    pthread_mutex_lock(&lock);
    job = now;
    size helpers = start_threads(now.workers - 1);
    if (helpers > now.workers - 1) helpers = now.workers - 1;
    __atomic_store_n(&running, helpers, __ATOMIC_RELEASE);
    __atomic_store_n(&turn, turn + 1, __ATOMIC_RELEASE);
    if (helpers) pthread_cond_broadcast(&begin);
    pthread_mutex_unlock(&lock);
    work(&job, 0);
    if (fixed)
        for (size worker = helpers + 1; worker < now.workers; worker++) work(&job, worker);
    for (size left; (left = __atomic_load_n(&running, __ATOMIC_ACQUIRE)) > 0;) {
        look(&running, left);
        if (__atomic_load_n(&running, __ATOMIC_ACQUIRE) == left) break;
    }
    pthread_mutex_lock(&lock);
    while (running) pthread_cond_wait(&end, &lock);
    job.workers = 0;
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&in_use);
}
