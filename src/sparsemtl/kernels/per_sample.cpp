// Sums over samples of |gradient|^power of a convolution's weight, without any gradient in memory.
//
// Sample n's gradient at (tap, input i, output o) is the sum over the tap's positions p of
// x[n, i, read[p]] * dy[n, o, written[p]]. A tile of R inputs and W vectors of outputs stays in registers over the
// positions of one sample, is squared, and is added to sums that stay in the first-level cache over the samples.
// Each weight is summed by one thread in one order, so that the result does not depend on the number of threads.

#include <cstdint>

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 4;
#else
constexpr int BYTES = 16, ROWS = 4;
#endif
constexpr int VECTORS = 2;     // vectors of outputs per tile
constexpr int CACHE = 1 << 15; // bytes of inputs and output gradients that one pass over the samples reads
constexpr int PRODUCTS = 9;    // tiles that read the same output gradients before the next ones are read
constexpr int SUMMED = 32;     // positions summed on their own, which keeps rounding small

template <typename T> struct Vector {
    typedef T type __attribute__((vector_size(BYTES), aligned(sizeof(T))));
    static constexpr int lanes = BYTES / sizeof(T), width = VECTORS * lanes;
};

struct Positions { // of one tap
    const int32_t *read, *written;
    int64_t count;
};

template <typename T> struct Samples {
    int64_t count;
    const T *x, *dy; // of the first sample; dy packed as (positions, width)
    int64_t x_sample, x_channel, dy_sample;
};

// Add to total (R, outputs) with `stride` between its rows.
template <typename T, int R, bool SQUARE>
static void tile(T *total, int64_t stride, int64_t outputs, const Samples<T> &samples, const Positions &at) {
    using V = typename Vector<T>::type;
    V sum[R][VECTORS] = {};
    for (int64_t n = 0; n < samples.count; n++) {
        const T *x = samples.x + n * samples.x_sample, *dy = samples.dy + n * samples.dy_sample;
        V gradient[R][VECTORS] = {};
        for (int64_t start = 0; start < at.count; start += SUMMED) {
            const int64_t end = start + SUMMED < at.count ? start + SUMMED : at.count;
            V part[R][VECTORS] = {};
            for (int64_t p = start; p < end; p++) {
                const T *read = x + at.read[p];
                const V *written = reinterpret_cast<const V *>(dy + int64_t(at.written[p]) * Vector<T>::width);
                V right[VECTORS];
                for (int v = 0; v < VECTORS; v++) right[v] = written[v];
                for (int r = 0; r < R; r++)
                    for (int v = 0; v < VECTORS; v++) part[r][v] += read[r * samples.x_channel] * right[v];
            }
            for (int r = 0; r < R; r++)
                for (int v = 0; v < VECTORS; v++) gradient[r][v] += part[r][v];
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++) {
                V g = gradient[r][v];
                sum[r][v] += SQUARE ? g * g : (g < 0 ? -g : g);
            }
    }
    for (int r = 0; r < R; r++) {
        const T *row = reinterpret_cast<const T *>(sum[r]);
        for (int64_t o = 0; o < outputs; o++) total[r * stride + o] += row[o];
    }
}

template <typename T, bool SQUARE>
static void tiles(int64_t rows, T *total, int64_t stride, int64_t outputs, Samples<T> samples, const Positions &at) {
    while (rows > 0) {
        int64_t done;
        if (rows >= ROWS) tile<T, ROWS, SQUARE>(total, stride, outputs, samples, at), done = ROWS;
        else if (rows >= 4) tile<T, 4, SQUARE>(total, stride, outputs, samples, at), done = 4;
        else if (rows == 3) tile<T, 3, SQUARE>(total, stride, outputs, samples, at), done = 3;
        else if (rows == 2) tile<T, 2, SQUARE>(total, stride, outputs, samples, at), done = 2;
        else tile<T, 1, SQUARE>(total, stride, outputs, samples, at), done = 1;
        rows -= done, total += done * stride, samples.x += done * samples.x_channel;
    }
}

// Copy dy (N, groups * outputs, positions) to (blocks of all groups, N, positions, width), with zeros after a group's end.
template <typename T>
static void pack(T *packed, const T *dy, int64_t N, int64_t groups, int64_t outputs, int64_t positions, int threads) {
    constexpr int64_t width = Vector<T>::width, step = 64 / sizeof(T);
    const int64_t blocks = (outputs + width - 1) / width;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t block = 0; block < groups * blocks; block++)
        for (int64_t n = 0; n < N; n++) {
            const int64_t group = block / blocks, first = block % blocks * width;
            const int64_t count = outputs - first < width ? outputs - first : width;
            const T *from = dy + (n * groups * outputs + group * outputs + first) * positions;
            T *to = packed + (block * N + n) * positions * width;
            for (int64_t start = 0; start < positions; start += step) { // a cache line of every output
                const int64_t end = start + step < positions ? start + step : positions;
                for (int64_t o = 0; o < count; o++)
                    for (int64_t p = start; p < end; p++) to[p * width + o] = from[o * positions + p];
            }
            for (int64_t p = 0; p < positions && count < width; p++)
                for (int64_t o = count; o < width; o++) to[p * width + o] = 0;
        }
}

template <typename T, bool SQUARE>
static void add(T *total, const T *x, const T *dy, T *packed, const int32_t *const *read, const int32_t *const *written,
                const int64_t *counts, const int64_t *sizes, int threads) {
    const int64_t N = sizes[0], groups = sizes[1], inputs = sizes[2], outputs = sizes[3], taps = sizes[4];
    const int64_t in = sizes[5], out = sizes[6]; // positions
    constexpr int64_t width = Vector<T>::width;
    pack(packed, dy, N, groups, outputs, out, threads);
    const int64_t blocks = (outputs + width - 1) / width;
    const int64_t unit = (PRODUCTS + taps - 1) / taps * ROWS, units = (inputs + unit - 1) / unit;
    const int64_t fitting = CACHE / int64_t(sizeof(T)) / (out * width + in * ROWS);
    const int64_t step = fitting > 1 ? fitting : 1;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t block = 0; block < groups * blocks; block++)
        for (int64_t u = 0; u < units; u++) {
            const int64_t group = block / blocks, first = block % blocks * width;
            const int64_t count = outputs - first < width ? outputs - first : width;
            const int64_t end = (u + 1) * unit < inputs ? (u + 1) * unit : inputs;
            for (int64_t n = 0; n < N; n += step)
                for (int64_t i = u * unit; i < end; i += ROWS)
                    for (int64_t tap = 0; tap < taps; tap++) {
                        if (counts[tap] == 0) continue;
                        const int64_t channels = groups * inputs, rows = end - i < ROWS ? end - i : ROWS;
                        const Samples<T> samples{N - n < step ? N - n : step,
                                                 x + (n * channels + group * inputs + i) * in,
                                                 packed + (block * N + n) * out * width,
                                                 channels * in, in, out * width};
                        T *sum = total + (tap * inputs + i) * groups * outputs + group * outputs + first;
                        tiles<T, SQUARE>(rows, sum, groups * outputs, count, samples,
                                         Positions{read[tap], written[tap], counts[tap]});
                    }
        }
}

extern "C" {
int64_t width_float() { return Vector<float>::width; }
int64_t width_double() { return Vector<double>::width; }

#define ADD(NAME, T, SQUARE)                                                                                            \
    void NAME(T *total, const T *x, const T *dy, T *packed, const int32_t *const *read, const int32_t *const *written, \
              const int64_t *counts, const int64_t *sizes, int threads) {                                               \
        add<T, SQUARE>(total, x, dy, packed, read, written, counts, sizes, threads);                                    \
    }
ADD(add_square_float, float, true)
ADD(add_square_double, double, true)
ADD(add_abs_float, float, false)
ADD(add_abs_double, double, false)
}
