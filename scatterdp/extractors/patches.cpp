// Responses of image patches to filters, thresholded and pooled, on a CPU. The mathematics is told in patch_kernel.py, which also
// compiles this file: C, H, W (image), P (patch side) are macros. Images are HWC while they are in work.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__AMX_BF16__) && defined(__linux__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#define TILES 1
#endif

constexpr int VALUES = C * P * P;                  // of a patch
constexpr int DEPTH = (VALUES + 31) / 32 * 32;     // padded with zeros
constexpr int ROWS = H - P + 1, COLUMNS = W - P + 1;
constexpr int BLOCK = 32;                          // filters in a product
#ifdef TILES
constexpr int POSITIONS = 32;                      // in a product
#else
constexpr int POSITIONS = 48, AT_ONCE = 6;         // and so many times two vectors of filters: their sums stay in registers
#endif
constexpr int GROUP = 128;                         // positions of several cells, when cells are small, whose patches are held at once

// No longer than the processor's own vectors: a compiler keeps longer ones in memory.
#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PARTS = BLOCK / LANES;
typedef float vec __attribute__((vector_size(LANES * 4), aligned(LANES * 4)));
typedef float loose __attribute__((vector_size(LANES * 4), aligned(4)));  // of arrays that others have allocated
static inline vec ramp(vec x) {
    const vec zero = {};
    return x > zero ? x : zero;
}

struct Constants {
    const uint16_t *tiles;      // (filters / 16, DEPTH / 32, 16, 16, 2) bfloat16: pairs of a filter's values side by side
    const float *columns;       // (filters / 16, DEPTH, 16), the same numbers
    const float *bias;          // (filters)
    const int32_t *order;       // positions, cell after cell
    const int32_t *first;       // (cells + 1): where a cell's positions begin
    const int32_t *mirrored;    // (cells): the cell at the mirrored place
    int32_t filters, outputs;   // filters beyond `outputs` are mirror images: they count for filter - outputs, mirrored cell
    int32_t cells, two_sided;   // two_sided: positive and negative part apart; else the absolute value
    int32_t centred;            // whether a patch's mean is taken from it
    float threshold, contrast;  // contrast: added to a patch's variance
};

static inline uint16_t rounded(float value) {  // to bfloat16, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

#ifdef TILES
typedef uint16_t number;  // of a patch that waits to be multiplied: bfloat16 as it is
static inline number kept(float value) { return rounded(value); }
#else
typedef float number;  // the same number, ready for vector instructions
static inline number kept(float value) {
    const uint32_t bits = uint32_t(rounded(value)) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}
#endif

struct Work {
    alignas(64) float products[POSITIONS][BLOCK];
    std::vector<float> image;
    std::vector<number> patches;  // (positions in work at once, padded to POSITIONS; DEPTH), 64-byte aligned from `aligned`
    number *aligned;
    explicit Work(int positions) : image(size_t(H) * W * C), patches(size_t(positions) * DEPTH + 64 / sizeof(number)) {
        const auto address = reinterpret_cast<uintptr_t>(patches.data());
        aligned = patches.data() + (64 - address % 64) % 64 / sizeof(number);
    }
};

// One patch to mean 0 (or around 0, where its mean stays) and variance below 1 (variance / (variance + contrast)).
static void read_patch(const float *image, int position, const Constants &c, number *out) {
    const float *corner = image + (position / COLUMNS * W + position % COLUMNS) * C;
    float values[VALUES];
    for (int y = 0; y < P; ++y) std::memcpy(values + y * P * C, corner + y * W * C, P * C * sizeof(float));
    float sum = 0, squares = 0;
    for (int k = 0; k < VALUES; ++k) sum += values[k];
    const float mean = c.centred ? sum / VALUES : 0;
    for (int k = 0; k < VALUES; ++k) values[k] -= mean, squares += values[k] * values[k];
    const float scale = 1 / std::sqrt(squares / (VALUES - 1) + c.contrast);
    for (int k = 0; k < VALUES; ++k) out[k] = kept(values[k] * scale);
    for (int k = VALUES; k < DEPTH; ++k) out[k] = 0;
}

#ifdef TILES
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static void begin_tiles() {
    const TileConfig config;
    _tile_loadconfig(&config);
}
static void end_tiles() { _tile_release(); }
// `rows` of POSITIONS, or all, × BLOCK filters.
static void multiply(const number *patches, const Constants &c, int filter, int, float (*products)[BLOCK]) {
    const uint16_t *left = c.tiles + size_t(filter / 16) * DEPTH * 16, *right = left + DEPTH * 16;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int k = 0; k < DEPTH; k += 32) {
        _tile_loadd(4, patches + k, DEPTH * 2);
        _tile_loadd(5, patches + 16 * DEPTH + k, DEPTH * 2);
        _tile_loadd(6, left + k * 16, 64);
        _tile_loadd(7, right + k * 16, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, &products[0][0], BLOCK * 4);
    _tile_stored(1, &products[0][16], BLOCK * 4);
    _tile_stored(2, &products[16][0], BLOCK * 4);
    _tile_stored(3, &products[16][16], BLOCK * 4);
}
static bool can_start() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) == 0; }
#else
static void begin_tiles() {}
static void end_tiles() {}
static void multiply(const number *patches, const Constants &c, int filter, int rows, float (*products)[BLOCK]) {
    const auto values = [&](int part) { return c.columns + size_t((filter + part * LANES) / 16) * DEPTH * 16 + part * LANES % 16; };
    for (int part = 0; part < PARTS; part += 2) {
        const float *left = values(part), *right = values(part + 1);
        for (int row = 0; row < rows; row += AT_ONCE) {
            const number *patch = patches + size_t(row) * DEPTH;
            vec sums[AT_ONCE][2] = {};
            for (int k = 0; k < VALUES; ++k)
                for (int i = 0; i < AT_ONCE; ++i) {
                    sums[i][0] += patch[i * DEPTH + k] * *reinterpret_cast<const loose *>(left + k * 16);
                    sums[i][1] += patch[i * DEPTH + k] * *reinterpret_cast<const loose *>(right + k * 16);
                }
            for (int i = 0; i < AT_ONCE; ++i) std::memcpy(products[row + i] + part * LANES, sums[i], sizeof sums[i]);
        }
    }
}
static bool can_start() { return true; }
#endif

struct Sums {
    vec positive[PARTS], negative[PARTS];
};
// A cell's sums for BLOCK filters, as its share of the average.
static void add(const Sums &sums, float *out, const Constants &c, int filter, int cell) {
    const float weight = 1.0f / ((c.first[cell + 1] - c.first[cell]) * (c.filters / c.outputs));
    const bool is_mirror = filter >= c.outputs;
    const int place = is_mirror ? c.mirrored[cell] : cell, base = is_mirror ? filter - c.outputs : filter;
    for (int part = 0; part < PARTS; ++part)
        for (int lane = 0; lane < LANES; ++lane) {
            float *target = out + size_t(base + LANES * part + lane) * c.cells + place;
            *target += weight * sums.positive[part][lane];
            if (c.two_sided) target += size_t(c.outputs) * c.cells;
            *target += weight * sums.negative[part][lane];
        }
}

// out: (outputs, cells), or (2 · outputs, cells) two-sided; zeros before.
static void features(const float *planes, float *out, const Constants &c, Work &work) {
    for (int channel = 0; channel < C; ++channel)
        for (int pixel = 0; pixel < H * W; ++pixel) work.image[pixel * C + channel] = planes[channel * H * W + pixel];
    for (int cell = 0, end; cell < c.cells; cell = end) {
        const int begin = c.first[cell];
        for (end = cell + 1; end < c.cells && c.first[end + 1] - begin <= GROUP;) ++end;
        const int positions = c.first[end] - begin;
        for (int i = 0; i < positions; ++i)
            read_patch(work.image.data(), c.order[begin + i], c, work.aligned + size_t(i) * DEPTH);
        for (int filter = 0; filter < c.filters; filter += BLOCK) {
            Sums sums = {};
            vec above[PARTS], below[PARTS];
            for (int part = 0; part < PARTS; ++part) {
                const vec bias = *reinterpret_cast<const loose *>(c.bias + filter + LANES * part);
                above[part] = bias - c.threshold;
                below[part] = -bias - c.threshold;
            }
            for (int block = 0, of = cell; block < positions; block += POSITIONS) {
                const int rows = std::min(positions - block, POSITIONS);
                multiply(work.aligned + size_t(block) * DEPTH, c, filter, rows, work.products);
                for (int row = 0; row < rows;) {
                    const int until = c.first[of + 1] - begin - block;  // where the cell's rows end, perhaps beyond this block
                    for (; row < rows && row < until; ++row)
                        for (int part = 0; part < PARTS; ++part) {
                            const vec product = *reinterpret_cast<vec *>(&work.products[row][LANES * part]);
                            sums.positive[part] += ramp(above[part] + product);
                            sums.negative[part] += ramp(below[part] - product);
                        }
                    if (row == until) {
                        add(sums, out, c, filter, of++);
                        sums = {};
                    }
                }
            }
        }
    }
}

// images (count, C, H, W) → out (count, channels, cells). Returns 1 when memory or the processor's tiles are not to be had.
extern "C" int patch_features(const float *images, float *out, long count, int threads, const Constants *constants) {
    if (!can_start()) return 1;
    const Constants &c = *constants;
    const size_t size = size_t(c.two_sided ? 2 : 1) * c.outputs * c.cells;
    int most = GROUP;
    for (int cell = 0; cell < c.cells; ++cell) most = std::max(most, c.first[cell + 1] - c.first[cell]);
    std::atomic<long> next{0};
    std::atomic<int> failed{0};
    auto run = [&] {
        try {
            Work work((most + POSITIONS - 1) / POSITIONS * POSITIONS);
            begin_tiles();
            for (long image; (image = next++) < count;) {
                std::memset(out + image * size, 0, size * sizeof(float));
                features(images + image * C * H * W, out + image * size, c, work);
            }
            end_tiles();
        } catch (const std::bad_alloc &) {
            failed = 1;
        }
    };
    std::vector<std::thread> others;
    try {
        others.reserve(threads);
        for (int i = 1; i < threads && i < count; ++i) others.emplace_back(run);
    } catch (const std::system_error &) {  // no more threads to be had: those that there are do it
    } catch (const std::bad_alloc &) {
    }
    run();
    for (auto &other : others) other.join();
    return failed;
}
