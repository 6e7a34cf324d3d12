// Proximal maps of group lasso, plain and in the metric of Adam, and the pull against the latter; see optim/proximal.py.
//
// Groups lie as x[l][a][g * outer + b], with strides slab, row and 1. A block of neighbouring groups is worked on while it
// is in the processor's cache: one pass computes shifts and moments, Newton's method takes one pass per step, a last
// pass shrinks. Sums run over lanes of g * outer + b, in double precision from time to time, and then over b.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

const int64_t CACHED = 1 << 17;  // entries per block
const int64_t ROWS = 64;         // rows that are summed in the precision of the entries
const int MOST_STEPS = 100;

struct Sizes {
    int64_t slabs, inner, groups, outer, slab, row;
};

// Sums over rows and b of N terms per lane, in double precision: term(n, row, lane) of T.
template <typename T, int N, typename Rows>
void sums(int64_t inner, int64_t width, int64_t outer, std::vector<T>& part, std::vector<double>& total, double* out, Rows rows) {
    std::fill(total.begin(), total.begin() + N * width, 0.0);
    for (int64_t first = 0; first < inner; first += ROWS) {
        std::fill(part.begin(), part.begin() + N * width, T(0));
        for (int64_t a = first; a < std::min(inner, first + ROWS); a++) rows(a, part.data());
        for (int64_t i = 0; i < N * width; i++) total[i] += part[i];
    }
    const int64_t groups = width / outer;
    for (int n = 0; n < N; n++)
        for (int64_t g = 0; g < groups; g++) {
            double sum = 0;
            const double* own = total.data() + n * width + g * outer;
#pragma omp simd reduction(+ : sum)
            for (int64_t b = 0; b < outer; b++) sum += own[b];
            out[n * groups + g] = sum;
        }
}

// Start of Newton's method: right of the root by a fraction of the cube of shift / radius where the shifts are small,
// else left of it. `left` becomes a bound on the left.
double start(double square, double first, double second, double nearest, double& left) {
    const double reach = std::sqrt(square), mean = first / square;
    left = 0;
    if (nearest > left) left = nearest;
    if (reach - mean > left) left = reach - mean;
    if (!(mean < 0.2 * reach && second < 0.2 * square * square)) return left;
    double r = left;
    for (int i = 0; i < 4; i++) {
        const double gap = ((r * r - square) * r + 2 * first) * r - 3 * second;
        r -= gap / ((4 * r * r - 2 * square) * r + 2 * first);
    }
    return r > left ? r : left;
}

template <typename T>
void shrink_block(T* x, const T* v, const Sizes& s, int64_t groups, T tau, T eps, bool* alive) {
    const int64_t outer = s.outer, width = groups * outer, inner = s.inner;
    static thread_local std::vector<T> memory;  // kept: fresh pages take longer than the computation in them
    if (int64_t(memory.size()) < inner * width) memory.resize(inner * width);
    std::vector<T> part(4 * width), nearest(width, T(0)), radius(width);
    std::vector<double> total(4 * width), out(4 * groups), left(groups), r(groups);
    std::vector<char> moving(groups);
    T *const shifts = memory.data(), *const near = nearest.data();
    const T per_tau = T(1) / tau;
    sums<T, 4>(inner, width, outer, part, total, out.data(), [&](int64_t a, T* sum) {
        const T *own = x + a * s.row, *moment = v + a * s.row;
        T* shift = shifts + a * width;
#pragma omp simd
        for (int64_t w = 0; w < width; w++) {
            const T d = std::sqrt(moment[w]) + eps, pull = own[w] * (d * per_tau), square = own[w] * own[w];
            const T step = tau / d;
            shift[w] = step;
            sum[w] += pull * pull;
            sum[width + w] += square;
            sum[2 * width + w] += square * step;
            sum[3 * width + w] += square * step * step;
            const T distance = std::fabs(own[w]) - step;
            near[w] = distance > near[w] ? distance : near[w];
        }
    });
    bool any = false;
    for (int64_t g = 0; g < groups; g++) {
        const bool zero = out[g] <= 1;
        r[g] = 0;
        left[g] = 0;
        if (!zero) {
            const double most = *std::max_element(near + g * outer, near + (g + 1) * outer);
            r[g] = start(out[groups + g], out[2 * groups + g], out[3 * groups + g], most, left[g]);
        }
        moving[g] = !zero;
        any |= moving[g];
    }
    const double rounding = 4 * (sizeof(T) == 4 ? 1.1920929e-07 : 2.220446049250313e-16);
    for (int step = 0; any && step < MOST_STEPS; step++) {
        for (int64_t g = 0; g < groups; g++)
            std::fill(radius.begin() + g * outer, radius.begin() + (g + 1) * outer, T(r[g]));
        sums<T, 2>(inner, width, outer, part, total, out.data(), [&](int64_t a, T* sum) {
            const T *own = x + a * s.row, *shift = shifts + a * width, *root = radius.data();
#pragma omp simd
            for (int64_t w = 0; w < width; w++) {
                const T inverse = T(1) / (root[w] + shift[w]), u = own[w] * inverse, square = u * u;
                sum[w] += square;
                sum[width + w] += square * inverse;
            }
        });
        any = false;
        for (int64_t g = 0; g < groups; g++) {
            if (!moving[g]) continue;
            const double square = out[g], size = std::sqrt(square), gap = std::fabs(1 - 1 / size);
            double next = r[g] + (size - 1) * square / out[groups + g];
            if (next < left[g]) next = left[g];
            const double moved = std::fabs(next - r[g]), least = std::min(next, r[g]);
            moving[g] = gap > rounding && 1.5 * gap * moved > rounding * least;
            r[g] = next;
            any |= moving[g];
        }
    }
    for (int64_t g = 0; g < groups; g++) {
        alive[g] = !(r[g] <= 0);
        std::fill(radius.begin() + g * outer, radius.begin() + (g + 1) * outer, T(r[g]));
    }
    for (int64_t a = 0; a < inner; a++) {
        T* own = x + a * s.row;
        const T *shift = shifts + a * width, *root = radius.data();
#pragma omp simd
        for (int64_t w = 0; w < width; w++) own[w] *= root[w] / (root[w] + shift[w]);
    }
}

template <typename T>
void pull_block(const T* x, const T* v, const Sizes& s, int64_t groups, T tau, T eps, T* pulls) {
    const int64_t width = groups * s.outer;
    std::vector<T> part(width);
    std::vector<double> total(width), out(groups);
    const T per_tau = T(1) / tau;
    sums<T, 1>(s.inner, width, s.outer, part, total, out.data(), [&](int64_t a, T* sum) {
        const T *own = x + a * s.row, *moment = v + a * s.row;
#pragma omp simd
        for (int64_t w = 0; w < width; w++) {
            const T pull = own[w] * ((std::sqrt(moment[w]) + eps) * per_tau);
            sum[w] += pull * pull;
        }
    });
    for (int64_t g = 0; g < groups; g++) pulls[g] = T(std::sqrt(out[g]));
}

template <typename T>
void plain_block(T* x, const Sizes& s, int64_t groups, double tau, bool* alive) {
    const int64_t width = groups * s.outer;
    std::vector<T> part(width), factor(width);
    std::vector<double> total(width), out(groups);
    sums<T, 1>(s.inner, width, s.outer, part, total, out.data(), [&](int64_t a, T* sum) {
        const T* own = x + a * s.row;
#pragma omp simd
        for (int64_t w = 0; w < width; w++) sum[w] += own[w] * own[w];
    });
    for (int64_t g = 0; g < groups; g++) {
        const double size = std::sqrt(out[g]);
        alive[g] = !(size <= tau);
        std::fill(factor.begin() + g * s.outer, factor.begin() + (g + 1) * s.outer, T(alive[g] ? 1 - tau / size : 0));
    }
    const T* const own_factor = factor.data();
    for (int64_t a = 0; a < s.inner; a++) {
        T* own = x + a * s.row;
#pragma omp simd
        for (int64_t w = 0; w < width; w++) own[w] *= own_factor[w];
    }
}

// Calls work(first entry, first group, number of groups) for blocks of groups that fit into the cache.
template <typename Work>
void blocks(const Sizes& s, int threads, Work work) {
    const int64_t wide = std::max<int64_t>({1, CACHED / (s.inner * s.outer), 16 / s.outer});
    const int64_t size = std::min(wide, s.groups), count = (s.groups + size - 1) / size;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (s.slabs * count > 1)
    for (int64_t i = 0; i < s.slabs * count; i++) {
        const int64_t l = i / count, g = i % count * size;
        work(l * s.slab + g * s.outer, l * s.groups + g, std::min(size, s.groups - g));
    }
}

template <typename T>
void shrink(T* x, const T* v, const int64_t* sizes, double tau, double eps, bool* alive, int threads) {
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    blocks(s, threads, [&](int64_t entry, int64_t group, int64_t count) {
        shrink_block<T>(x + entry, v + entry, s, count, T(tau), T(eps), alive + group);
    });
}

template <typename T>
void pull(const T* x, const T* v, const int64_t* sizes, double tau, double eps, T* pulls, int threads) {
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    blocks(s, threads, [&](int64_t entry, int64_t group, int64_t count) {
        pull_block<T>(x + entry, v + entry, s, count, T(tau), T(eps), pulls + group);
    });
}

template <typename T>
void plain(T* x, const int64_t* sizes, double tau, bool* alive, int threads) {
    const Sizes s{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5]};
    blocks(s, threads, [&](int64_t entry, int64_t group, int64_t count) {
        plain_block<T>(x + entry, s, count, tau, alive + group);
    });
}

}  // namespace

extern "C" {
void shrink_float(float* x, const float* v, const int64_t* sizes, double tau, double eps, bool* alive, int threads) {
    shrink<float>(x, v, sizes, tau, eps, alive, threads);
}
void shrink_double(double* x, const double* v, const int64_t* sizes, double tau, double eps, bool* alive, int threads) {
    shrink<double>(x, v, sizes, tau, eps, alive, threads);
}
void plain_float(float* x, const int64_t* sizes, double tau, bool* alive, int threads) {
    plain<float>(x, sizes, tau, alive, threads);
}
void plain_double(double* x, const int64_t* sizes, double tau, bool* alive, int threads) {
    plain<double>(x, sizes, tau, alive, threads);
}
void pull_float(const float* x, const float* v, const int64_t* sizes, double tau, double eps, float* pulls, int threads) {
    pull<float>(x, v, sizes, tau, eps, pulls, threads);
}
void pull_double(const double* x, const double* v, const int64_t* sizes, double tau, double eps, double* pulls, int threads) {
    pull<double>(x, v, sizes, tau, eps, pulls, threads);
}
}
