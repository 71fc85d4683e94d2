// The least that an export does: reads bf16 rows, converts them to float32, quantizes them with
// decant's K-quants and writes them. Threads take blocks of rows until none is left.
//
//     floor PLAN GGML KQUANTS ENTRY OUTPUT THREADS
//
// A line of PLAN is one tensor: offset, rows, columns, ggml's number of the type, bytes of a row in
// OUTPUT, offset in OUTPUT, path. Exits with 1 if a file or a library cannot be used.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef size_t quantize_chunk(int type, const float *src, void *dst, int64_t start, int64_t rows,
                              int64_t columns, const float *imatrix);
typedef size_t kquants(quantize_chunk *ggml, int type, const float *src, void *dst, int64_t start,
                       int64_t rows, int64_t columns, const float *imatrix);

struct tensor {
    long long offset, rows, columns, row_nbytes, target;
    int type, file;
};

enum { MOST = 4096, BLOCK = 1 << 20, F32 = 0 };

static struct tensor tensors[MOST];
static long long first_block[MOST + 1]; // the number of each tensor's first block
static int count, output;
static atomic_llong next;
static quantize_chunk *ggml;
static kquants *quantize;

static void fail(const char *what) {
    fprintf(stderr, "floor: %s\n", what);
    exit(1);
}

static long long rows_of_block(const struct tensor *t) {
    return t->columns < BLOCK ? BLOCK / t->columns : 1;
}

static void *work(void *unused) {
    uint16_t *stored = NULL;
    uint32_t *values = NULL;
    char *bytes = NULL;
    for (long long block; (block = atomic_fetch_add(&next, 1)) < first_block[count];) {
        int n = 0;
        while (first_block[n + 1] <= block) n++;
        const struct tensor *t = &tensors[n];
        const long long most = rows_of_block(t), row = (block - first_block[n]) * most;
        const long long rows = t->rows - row < most ? t->rows - row : most;
        const long long size = rows * t->columns;
        stored = realloc(stored, size * 2);
        values = realloc(values, size * 4);
        bytes = realloc(bytes, rows * t->row_nbytes);
        if (pread(t->file, stored, size * 2, t->offset + row * t->columns * 2) != size * 2)
            fail("a base's file is too short");
        for (long long i = 0; i < size; i++) values[i] = (uint32_t)stored[i] << 16;
        if (t->type == F32)
            memcpy(bytes, values, size * 4);
        else
            quantize(ggml, t->type, (const float *)values, bytes, 0, rows, t->columns, NULL);
        const long long nbytes = rows * t->row_nbytes;
        if (pwrite(output, bytes, nbytes, t->target + row * t->row_nbytes) != nbytes)
            fail("the output cannot be written");
    }
    free(stored);
    free(values);
    free(bytes);
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 7) fail("PLAN GGML KQUANTS ENTRY OUTPUT THREADS");
    void *library = dlopen(argv[2], RTLD_NOW), *own = dlopen(argv[3], RTLD_NOW);
    if (!library || !own) fail(dlerror());
    ggml = (quantize_chunk *)dlsym(library, "ggml_quantize_chunk");
    quantize = (kquants *)dlsym(own, argv[4]);
    if (!ggml || !quantize) fail(dlerror());
    FILE *plan = fopen(argv[1], "r");
    if (!plan) fail("the plan cannot be read");
    char path[4096];
    for (struct tensor *t = tensors;
         fscanf(plan, "%lld %lld %lld %d %lld %lld %4095[^\n]", &t->offset, &t->rows, &t->columns,
                &t->type, &t->row_nbytes, &t->target, path) == 7;
         t++) {
        if (count == MOST) fail("the plan has too many tensors");
        if ((t->file = open(path, O_RDONLY)) < 0) fail(path);
        const long long most = rows_of_block(t);
        first_block[count + 1] = first_block[count] + (t->rows + most - 1) / most;
        count++;
    }
    if ((output = open(argv[5], O_RDWR)) < 0) fail(argv[5]);
    pthread_t threads[64];
    const int wanted = atoi(argv[6]) < 64 ? atoi(argv[6]) : 64;
    for (int i = 0; i < wanted; i++)
        if (pthread_create(&threads[i], NULL, work, NULL)) fail("a thread cannot start");
    for (int i = 0; i < wanted; i++) pthread_join(threads[i], NULL);
    return fsync(output) ? 1 : 0;
}
