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
constexpr int PRODUCTS = 36;   // tiles that read the same output gradients before the next ones are read
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

template <bool SQUARE, typename V> static inline V powered(V gradient) {
    return SQUARE ? gradient * gradient : (gradient < 0 ? -gradient : gradient);
}

// Set part to the products of one sample, summed over positions from start to end.
template <typename T, int R, typename V>
static inline __attribute__((always_inline)) void multiply(V (&part)[R][VECTORS], const T *x, int64_t x_channel, const T *dy,
                                                           const Positions &at, int64_t start, int64_t end) {
    for (int r = 0; r < R; r++)
        for (int v = 0; v < VECTORS; v++) part[r][v] = V{};
    for (int64_t p = start; p < end; p++) {
        const T *read = x + at.read[p];
        const V *written = reinterpret_cast<const V *>(dy + int64_t(at.written[p]) * Vector<T>::width);
        V right[VECTORS];
        for (int v = 0; v < VECTORS; v++) right[v] = written[v];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++) part[r][v] += read[r * x_channel] * right[v];
    }
}

// Add to total (R, outputs) with `stride` between its rows.
template <typename T, int R, bool SQUARE>
static void tile(T *total, int64_t stride, int64_t outputs, const Samples<T> &samples, const Positions &at) {
    using V = typename Vector<T>::type;
    V sum[R][VECTORS] = {};
    for (int64_t n = 0; n < samples.count; n++) {
        const T *x = samples.x + n * samples.x_sample, *dy = samples.dy + n * samples.dy_sample;
        V part[R][VECTORS];
        if (at.count <= SUMMED) {
            multiply<T, R>(part, x, samples.x_channel, dy, at, 0, at.count);
            for (int r = 0; r < R; r++)
                for (int v = 0; v < VECTORS; v++) sum[r][v] += powered<SQUARE>(part[r][v]);
            continue;
        }
        V gradient[R][VECTORS] = {};
        for (int64_t start = 0; start < at.count; start += SUMMED) {
            multiply<T, R>(part, x, samples.x_channel, dy, at, start, start + SUMMED < at.count ? start + SUMMED : at.count);
            for (int r = 0; r < R; r++)
                for (int v = 0; v < VECTORS; v++) gradient[r][v] += part[r][v];
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < VECTORS; v++) sum[r][v] += powered<SQUARE>(gradient[r][v]);
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

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif

// Transpose 4 outputs at 4 positions; `positions` and `width` are the distances of rows in memory.
template <typename T> static inline void transpose(T *to, int64_t width, const T *from, int64_t positions) {
#ifdef SHUFFLES
    typedef T V __attribute__((vector_size(4 * sizeof(T)), aligned(sizeof(T))));
    V a = *(const V *)from, b = *(const V *)(from + positions);
    V c = *(const V *)(from + 2 * positions), d = *(const V *)(from + 3 * positions);
    V ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
    *(V *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(V *)(to + width) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
    ab = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd = __builtin_shufflevector(c, d, 2, 6, 3, 7);
    *(V *)(to + 2 * width) = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
    *(V *)(to + 3 * width) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#else
    for (int o = 0; o < 4; o++)
        for (int p = 0; p < 4; p++) to[p * width + o] = from[o * positions + p];
#endif
}

// Copy dy (N, groups * outputs, positions) to (blocks of all groups, N, positions, width); zeros follow a group's end.
template <typename T>
static void pack(T *packed, const T *dy, int64_t N, int64_t groups, int64_t outputs, int64_t positions, int threads) {
    constexpr int64_t width = Vector<T>::width;
    const int64_t blocks = (outputs + width - 1) / width;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads)
    for (int64_t block = 0; block < groups * blocks; block++)
        for (int64_t n = 0; n < N; n++) {
            const int64_t group = block / blocks, first = block % blocks * width;
            const int64_t count = outputs - first < width ? outputs - first : width;
            const T *from = dy + (n * groups * outputs + group * outputs + first) * positions;
            T *to = packed + (block * N + n) * positions * width;
            int64_t p = 0;
            for (; p + 4 <= positions && count == width; p += 4)
                for (int64_t o = 0; o < width; o += 4) transpose(to + p * width + o, width, from + o * positions + p, positions);
            for (; p < positions; p++) {
                for (int64_t o = 0; o < count; o++) to[p * width + o] = from[o * positions + p];
                for (int64_t o = count; o < width; o++) to[p * width + o] = 0;
            }
        }
}

template <typename T, bool SQUARE>
static void add(T *total, const T *x, const T *dy, T *packed, const int32_t *const *read, const int32_t *const *written,
                const int64_t *counts, const int64_t *sizes, int threads) {
    const int64_t groups = sizes[1], inputs = sizes[2], outputs = sizes[3], taps = sizes[4];
    const int64_t in = sizes[5], out = sizes[6]; // positions
    constexpr int64_t width = Vector<T>::width;
    const int64_t blocks = (outputs + width - 1) / width, channels = groups * inputs;
    int64_t unit = (PRODUCTS + taps - 1) / taps * ROWS;
    while (unit > ROWS && groups * blocks * ((inputs + unit - 1) / unit) < 2 * threads) unit -= ROWS;
    const int64_t units = (inputs + unit - 1) / unit;
    const int64_t fitting = CACHE / int64_t(sizeof(T)) / (out * width + in * ROWS);
    const int64_t step = fitting > 1 ? fitting : 1;
    for (int64_t start = 0; start < sizes[0]; start += sizes[7]) {
        const int64_t N = sizes[0] - start < sizes[7] ? sizes[0] - start : sizes[7];
        pack(packed, dy + start * groups * outputs * out, N, groups, outputs, out, threads);
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
                            const Samples<T> samples{N - n < step ? N - n : step,
                                                     x + ((start + n) * channels + group * inputs + i) * in,
                                                     packed + (block * N + n) * out * width,
                                                     channels * in, in, out * width};
                            T *sum = total + (tap * inputs + i) * groups * outputs + group * outputs + first;
                            tiles<T, SQUARE>(end - i < ROWS ? end - i : ROWS, sum, groups * outputs, count, samples,
                                             Positions{read[tap], written[tap], counts[tap]});
                        }
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
