// Products of weights and bool masks in one pass over memory; see networks/masked_product.py.

#include <algorithm>
#include <cstdint>

namespace {

const int64_t BLOCK = 1 << 14;  // entries per piece of work of a thread

template <typename T>
void multiply(const T* weight, const uint8_t* mask, T* product, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads)
    for (int64_t first = 0; first < count; first += BLOCK) {
        const int64_t end = std::min(count, first + BLOCK);
#pragma omp simd
        for (int64_t i = first; i < end; i++) product[i] = weight[i] * T(mask[i]);
    }
}

}  // namespace

extern "C" {
void multiply_float(const float* weight, const uint8_t* mask, float* product, int64_t count, int threads) {
    multiply<float>(weight, mask, product, count, threads);
}
void multiply_double(const double* weight, const uint8_t* mask, double* product, int64_t count, int threads) {
    multiply<double>(weight, mask, product, count, threads);
}
}
