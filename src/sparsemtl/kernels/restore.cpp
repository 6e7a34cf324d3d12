// Restores the entries of a tensor outside of a mask, bit for bit, in one pass over memory.

#include <cstdint>

template <typename T>
static void restore(T *now, const T *before, const uint8_t *active, int64_t count, int threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
    for (int64_t i = 0; i < count; i++) now[i] = active[i] ? now[i] : before[i];
}

extern "C" {
#define RESTORE(NAME, T)                                                                                 \
    void NAME(T *now, const T *before, const uint8_t *active, int64_t count, int threads) {              \
        restore<T>(now, before, active, count, threads);                                                 \
    }
RESTORE(restore_1, int8_t)
RESTORE(restore_2, int16_t)
RESTORE(restore_4, int32_t)
RESTORE(restore_8, int64_t)
}
