// The scattering transform of image planes on a CPU, one image a vector lane. The mathematics is told in
// scattering_kernel.py, which also compiles this file: M, N (padded size), H, W (input size), OUT_H, OUT_W (output size), J, L, ORDER
// are macros.
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif

typedef float vf __attribute__((vector_size(4 * LANES), aligned(4 * LANES)));
struct cv {
    vf re, im;
};
static inline cv operator+(cv a, cv b) { return {a.re + b.re, a.im + b.im}; }
static inline cv operator-(cv a, cv b) { return {a.re - b.re, a.im - b.im}; }
static inline cv operator*(float s, cv a) { return {s * a.re, s * a.im}; }
static inline cv minus_i(cv a) { return {a.im, -a.re}; }  // -i·a
static inline cv turned(cv a, float c, float s) { return {a.re * c - a.im * s, a.re * s + a.im * c}; }

static inline vf square_root(vf x) {
#if defined(__AVX512F__)
    // 14 bits and one Newton step: 27 bits, a third of the time of the exact instruction. 0 stays 0.
    const __m512 clamped = _mm512_max_ps((__m512)x, _mm512_set1_ps(1e-36f));
    const vf y = (vf)_mm512_rsqrt14_ps(clamped);
    const vf r = x * y;
    return r + 0.5f * y * (x - r * r);
#else
    vf r;
    for (int i = 0; i < LANES; ++i) r[i] = std::sqrt(x[i]);
    return r;
#endif
}
static inline vf modulus(cv a) { return square_root(a.re * a.re + a.im * a.im); }

// ---------------------------------------------------------------- Fourier transforms of compile-time length

// e^(-2πi k/n), k < n
template <int n> struct Twiddles {
    float re[n], im[n];
    Twiddles() {
        for (int k = 0; k < n; ++k) re[k] = std::cos(2 * M_PI * k / n), im[k] = -std::sin(2 * M_PI * k / n);
    }
};
template <int n> static const Twiddles<n> twiddles;

static constexpr bool is_leaf(int n) { return n <= 5 || n == 8; }
static constexpr int smallest_factor(int n) {
    for (int p = 2; p * p <= n; ++p)
        if (n % p == 0) return p;
    return n;
}
static constexpr int radix(int n) {
    return is_leaf(n) ? n : n % 5 == 0 ? 5 : n % 8 == 0 ? 8 : n % 4 == 0 ? 4 : n % 3 == 0 ? 3 : smallest_factor(n);
}

// In place: a[k] <- sum_j a[j] e^(-2πi jk/n)
template <int n> static inline __attribute__((always_inline)) void butterfly(cv* a) {
    if constexpr (n == 2) {
        const cv s = a[0] + a[1];
        a[1] = a[0] - a[1], a[0] = s;
    } else if constexpr (n == 3) {
        const cv t = a[1] + a[2], u = a[0] - 0.5f * t, v = minus_i(0.86602540378443865f * (a[1] - a[2]));
        a[0] = a[0] + t, a[1] = u + v, a[2] = u - v;
    } else if constexpr (n == 4) {
        const cv s0 = a[0] + a[2], d0 = a[0] - a[2], s1 = a[1] + a[3], d1 = minus_i(a[1] - a[3]);
        a[0] = s0 + s1, a[1] = d0 + d1, a[2] = s0 - s1, a[3] = d0 - d1;
    } else if constexpr (n == 5) {
        constexpr float c1 = 0.30901699437494742f, c2 = -0.80901699437494742f;
        constexpr float s1 = 0.95105651629515357f, s2 = 0.58778525229247313f;
        const cv t1 = a[1] + a[4], t2 = a[2] + a[3], d1 = a[1] - a[4], d2 = a[2] - a[3];
        const cv m1 = a[0] + (c1 * t1 + c2 * t2), m2 = a[0] + (c2 * t1 + c1 * t2);
        const cv n1 = minus_i(s1 * d1 + s2 * d2), n2 = minus_i(s2 * d1 - s1 * d2);
        a[0] = a[0] + (t1 + t2), a[1] = m1 + n1, a[4] = m1 - n1, a[2] = m2 + n2, a[3] = m2 - n2;
    } else if constexpr (n == 8) {
        constexpr float h = 0.70710678118654752f;
        cv e[4] = {a[0], a[2], a[4], a[6]}, o[4] = {a[1], a[3], a[5], a[7]};
        butterfly<4>(e), butterfly<4>(o);
        const cv o1 = h * cv{o[1].re + o[1].im, o[1].im - o[1].re}, o2 = minus_i(o[2]);
        const cv o3 = h * cv{o[3].im - o[3].re, -(o[3].re + o[3].im)};
        a[0] = e[0] + o[0], a[4] = e[0] - o[0], a[1] = e[1] + o1, a[5] = e[1] - o1;
        a[2] = e[2] + o2, a[6] = e[2] - o2, a[3] = e[3] + o3, a[7] = e[3] - o3;
    } else if constexpr (n > 1) {
        cv b[n];
        for (int k = 0; k < n; ++k) {
            b[k] = a[0];
            for (int j = 1; j < n; ++j)
                b[k] = b[k] + turned(a[j], twiddles<n>.re[j * k % n], twiddles<n>.im[j * k % n]);
        }
        std::memcpy(a, b, sizeof b);
    }
}

template <int n> static inline __attribute__((always_inline)) void leaf(const cv* in, int is, cv* out, int os) {
    cv a[n];
    for (int j = 0; j < n; ++j) a[j] = in[j * is];
    butterfly<n>(a);
    for (int k = 0; k < n; ++k) out[k * os] = a[k];
}

// out[k·os] = sum_j in[j·is] e^(-2πi jk/n), by decimation in time; in and out may be the same.
// Not inlined: GCC 12 at -O3 inlines the recursion wrongly (it drops stores to `out`).
template <int n> static __attribute__((noinline)) void fft(const cv* in, int is, cv* out, int os) {
    constexpr int r = radix(n), m = n / r;
    if constexpr (m == 1) {
        leaf<n>(in, is, out, os);
    } else {
        cv parts[n];
        for (int j = 0; j < r; ++j) {
            if constexpr (radix(m) == m)
                leaf<m>(in + j * is, is * r, parts + j * m, 1);
            else
                fft<m>(in + j * is, is * r, parts + j * m, 1);
        }
        for (int k = 0; k < m; ++k) {
            cv a[r];
            a[0] = parts[k];
            for (int j = 1; j < r; ++j) a[j] = turned(parts[j * m + k], twiddles<n>.re[j * k], twiddles<n>.im[j * k]);
            butterfly<r>(a);
            for (int q = 0; q < r; ++q) out[(k + q * m) * os] = a[q];
        }
    }
}

// ---------------------------------------------------------------- one group of LANES planes

static constexpr int PATHS2 = L * L * J * (J - 1) / 2;
static constexpr int CHANNELS = 1 + J * L + (ORDER == 2 ? PATHS2 : 0);

struct Constants {
    const float* psi[J][J];      // psi[j][res]: L filters of (M>>res, N>>res), scaled by 1/((M>>res)(N>>res))
    const int* band[J][J];       // band[j][res]: for each filter and row the columns [first, last) that are not negligible
    const float* low_rows[J];    // (OUT_H, M>>res): low-pass, subsample, crop
    const float* low_columns[J]; // (OUT_W, N>>res)
    const int* pad_rows;         // (M): input row of each padded row
    const int* pad_columns;      // (N)
};

struct Scratch {
    vf plane[M * N];          // the padded image
    cv spectrum[2][M * N];    // conjugate spectra of the image and of a first-order map
    cv rows[M * N];           // a path after its row transforms
    cv half[(M / 2 + 1) * N]; // a real map after its column transforms
    vf low[OUT_H * N];        // a map after its column low-pass
    vf out[CHANNELS * OUT_H * OUT_W];
};

// Columns v and v+1 of a real map (in re and im): low-pass both, and transform them where a spectrum is wanted.
template <int res, bool keep> static inline void finish_columns(const cv* z, int v, const Constants& c, Scratch& s) {
    constexpr int m = M >> res, n = N >> res;
    for (int a = 0; a < OUT_H; ++a) {
        const float* weight = c.low_rows[res] + a * m;
        cv sum = weight[0] * z[0];
        for (int u = 1; u < m; ++u) sum = sum + weight[u] * z[u];
        s.low[a * n + v] = sum.re, s.low[a * n + v + 1] = sum.im;
    }
    if constexpr (keep) {
        cv Z[m];
        fft<m>(z, 1, Z, 1);
        for (int k = 0; k <= m / 2; ++k) { // two real columns from one complex transform
            const cv p = Z[k], q = Z[(m - k) % m];
            s.half[k * n + v] = 0.5f * cv{p.re + q.re, p.im - q.im};
            s.half[k * n + v + 1] = 0.5f * cv{p.im + q.im, q.re - p.re};
        }
    }
}

template <int res> static void finish_low(vf* out, const Constants& c, const Scratch& s) {
    constexpr int n = N >> res;
    for (int a = 0; a < OUT_H; ++a)
        for (int b = 0; b < OUT_W; ++b) {
            const float* weight = c.low_columns[res] + b * n;
            vf sum = weight[0] * s.low[a * n];
            for (int v = 1; v < n; ++v) sum += weight[v] * s.low[a * n + v];
            out[a * OUT_W + b] = sum;
        }
}

// The conjugate spectrum from half of the column transforms; the other half is its mirror image.
template <int res> static void finish_spectrum(cv* spectrum, const Scratch& s) {
    constexpr int m = M >> res, n = N >> res;
    for (int k = 0; k <= m / 2; ++k) {
        cv row[n];
        fft<n>(s.half + k * n, 1, row, 1);
        const int mirror = (m - k) % m;
        for (int v = 0; v < n; ++v) {
            spectrum[k * n + v] = {row[v].re, -row[v].im};
            if (mirror != k) spectrum[mirror * n + (n - v) % n] = row[v];
        }
    }
}

// |x ⋆ ψ| from x's conjugate spectrum at resolution `from`: multiply, fold (= subsample), transform back, modulus.
// A forward transform of the conjugate is the conjugate of the inverse transform; the modulus does not see it.
template <int from, int to, bool keep>
static void path(const cv* spectrum, const float* psi, const int* band, vf* out, cv* next, const Constants& c, Scratch& s) {
    constexpr int n_from = N >> from, m = M >> to, n = N >> to, fold = 1 << (to - from);
    for (int u = 0; u < m; ++u) {
        cv row[n];
        std::memset((void*)row, 0, sizeof row);
        for (int a = 0; a < fold; ++a) {
            const int r = u + a * m;
            const cv* line = spectrum + r * n_from;
            const float* weight = psi + r * n_from;
            for (int v = band[2 * r]; v < band[2 * r + 1]; ++v) {
                cv& target = row[fold == 1 ? v : v % n];
                target = target + weight[v] * line[v];
            }
        }
        fft<n>(row, 1, s.rows + u * n, 1);
    }
    for (int v = 0; v < n; v += 2) {
        cv first[m], second[m], z[m];
        fft<m>(s.rows + v, n, first, 1);
        fft<m>(s.rows + v + 1, n, second, 1);
        for (int u = 0; u < m; ++u) z[u] = {modulus(first[u]), modulus(second[u])};
        finish_columns<to, keep>(z, v, c, s);
    }
    finish_low<to>(out, c, s);
    if constexpr (keep) finish_spectrum<to>(next, s);
}

template <int j1, int j2> static void second_order(vf* out, const Constants& c, Scratch& s) {
    if constexpr (j2 < J) {
        constexpr int size = (M >> j1) * (N >> j1), rows = 2 * (M >> j1);
        for (int t = 0; t < L; ++t, out += OUT_H * OUT_W)
            path<j1, j2, false>(s.spectrum[1], c.psi[j2][j1] + t * size, c.band[j2][j1] + t * rows, out, nullptr, c, s);
        second_order<j1, j2 + 1>(out, c, s);
    }
}

template <int j1> static void first_order(const Constants& c, Scratch& s, vf*& second) {
    if constexpr (j1 < J) {
        constexpr bool keep = ORDER == 2 && j1 + 1 < J;
        for (int t = 0; t < L; ++t) {
            vf* out = s.out + (1 + j1 * L + t) * OUT_H * OUT_W;
            path<0, j1, keep>(s.spectrum[0], c.psi[j1][0] + t * M * N, c.band[j1][0] + t * 2 * M, out, s.spectrum[1], c, s);
            if constexpr (keep) {
                second_order<j1, j1 + 1>(second, c, s);
                second += (J - 1 - j1) * L * OUT_H * OUT_W;
            }
        }
        first_order<j1 + 1>(c, s, second);
    }
}

static void scatter_group(const Constants& c, Scratch& s) {
    for (int v = 0; v < N; v += 2) {
        cv z[M];
        for (int u = 0; u < M; ++u) z[u] = {s.plane[u * N + v], s.plane[u * N + v + 1]};
        finish_columns<0, true>(z, v, c, s);
    }
    finish_low<0>(s.out, c, s);
    finish_spectrum<0>(s.spectrum[0], s);
    vf* second = s.out + (1 + J * L) * OUT_H * OUT_W;
    first_order<0>(c, s, second);
}

// x: (planes, H, W); out: (planes, CHANNELS, OUT_H, OUT_W). Returns 0, or 1 when memory ran out.
extern "C" int scatter(const float* x, float* out, long planes, int threads, const Constants* constants) {
    const long groups = (planes + LANES - 1) / LANES;
    std::atomic<long> next{0};
    std::atomic<int> failed{0};
    auto work = [&] {
        Scratch* s = static_cast<Scratch*>(std::aligned_alloc(64, (sizeof(Scratch) + 63) / 64 * 64));
        if (!s) {
            failed = 1;
            return;
        }
        for (long g; (g = next++) < groups;) {
            const int lanes = static_cast<int>(planes - g * LANES < LANES ? planes - g * LANES : LANES);
            for (int u = 0; u < M; ++u)
                for (int v = 0; v < N; ++v) {
                    const float* pixel = x + g * LANES * H * W + constants->pad_rows[u] * W + constants->pad_columns[v];
                    vf value = {};
                    for (int l = 0; l < lanes; ++l) value[l] = pixel[(long)l * H * W];
                    s->plane[u * N + v] = value;
                }
            scatter_group(*constants, *s);
            constexpr long size = (long)CHANNELS * OUT_H * OUT_W;
            for (int l = 0; l < lanes; ++l) {
                float* target = out + (g * LANES + l) * size;
                const float* lane = reinterpret_cast<const float*>(s->out) + l;
                for (long i = 0; i < size; ++i) target[i] = lane[i * LANES];
            }
        }
        std::free(s);
    };
    std::vector<std::thread> pool;
    for (int t = 1; t < threads; ++t) pool.emplace_back(work);
    work();
    for (auto& thread : pool) thread.join();
    return failed;
}
