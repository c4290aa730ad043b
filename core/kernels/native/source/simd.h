// Vectors of the widest kind that this file is compiled for, and the functions of them that the equations need.
// The same source is compiled once per instruction set; the choice is made when the library is loaded.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// The compiler would call them, and pass every constant through memory.
#define ALWAYS_INLINE inline __attribute__((always_inline))

namespace native {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr int TILE_ROWS = 8, TILE_VECTORS = 3;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
constexpr int TILE_ROWS = 4, TILE_VECTORS = 3;
#else
constexpr int VECTOR_BYTES = 16;
constexpr int TILE_ROWS = 4, TILE_VECTORS = 2;
#endif

template <class T> struct Traits;
template <> struct Traits<float> {
    typedef float Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
    typedef float Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t Integers __attribute__((vector_size(VECTOR_BYTES), may_alias));
};
template <> struct Traits<double> {
    typedef double Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
    typedef double Unaligned __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t Integers __attribute__((vector_size(VECTOR_BYTES), may_alias));
};
template <class T> using Vec = typename Traits<T>::Vector;
template <class T> constexpr int LANES = VECTOR_BYTES / sizeof(T);

template <class T> inline Vec<T> load(const T* p) { return *(const typename Traits<T>::Unaligned*)p; }
template <class T> inline void store(T* p, Vec<T> v) { *(typename Traits<T>::Unaligned*)p = v; }
template <class T> inline Vec<T> splat(T x) { return Vec<T>{} + x; }
// NaN in the first argument stays.
template <class V> inline V at_least(V x, V low) { return x < low ? low : x; }
template <class V> inline V at_most(V x, V high) { return x > high ? high : x; }

// Room for values that begins where a line of the cache does: a vector that lies across two lines takes twice the time.
// Not by aligned new: what glibc gives aligned it does not find again for the next call, and enters fresh pages.
template <class T> class Space {
    static constexpr uintptr_t LINE = 64;
    std::unique_ptr<char[]> room;
    T* first;

  public:
    explicit Space(size_t count = 0)
        : room(new char[count * sizeof(T) + LINE]), first((T*)(((uintptr_t)room.get() + LINE - 1) / LINE * LINE)) {}
    T* get() const { return first; }
    T& operator[](size_t i) const { return first[i]; }
};
template <class T> Space<T> zeros(size_t count) {
    Space<T> made(count);
    std::fill_n(made.get(), count, T(0));
    return made;
}

template <class T> inline int round_up(int n) { return (n + LANES<T> - 1) / LANES<T> * LANES<T>; }

template <class T> inline Vec<T> lane_numbers() {
    Vec<T> v;
    for (int i = 0; i < LANES<T>; i++) v[i] = T(i);
    return v;
}

// Asks for what will soon be needed, unless it would push what is needed now out of the cache.
template <bool TO_WRITE, class T> inline void prefetch(const T* start, int64_t count) {
    if (count * (int64_t)sizeof(T) > 16384) return;
    asm volatile("");  // GCC drops calls of functions that do nothing but prefetch
    for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(start + i, TO_WRITE);
}

// A loop of LANES rounds at most: what GCC leaves as a loop keeps its vectors in memory.
#define UNROLLED _Pragma("GCC unroll 16")

// ---- a sweep over n values that need not fill the last vector ----
template <class T> struct Whole {
    Vec<T> load(const T* p) const { return native::load(p); }
    void store(T* p, Vec<T> v) const { native::store(p, v); }
};
template <class T> struct Part {
    int count;
    Vec<T> load(const T* p) const {
        Vec<T> v{};
        std::memcpy(&v, p, count * sizeof(T));
        return v;
    }
    void store(T* p, Vec<T> v) const { std::memcpy(p, &v, count * sizeof(T)); }
};
#if defined(__AVX512F__)
template <> inline Vec<float> Part<float>::load(const float* p) const {
    return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << count) - 1), p);
}
template <> inline void Part<float>::store(float* p, Vec<float> v) const {
    _mm512_mask_storeu_ps(p, __mmask16((1u << count) - 1), (__m512)v);
}
#elif defined(__AVX2__)
// The mask of the first `count` lanes: that many ones before zeros.
inline __m256i first_lanes(int count) {
    static const int32_t ones_and_zeros[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const __m256i*)(ones_and_zeros + 8 - count));
}
template <> inline Vec<float> Part<float>::load(const float* p) const {
    return (Vec<float>)_mm256_maskload_ps(p, first_lanes(count));
}
template <> inline void Part<float>::store(float* p, Vec<float> v) const {
    _mm256_maskstore_ps(p, first_lanes(count), (__m256)v);
}
#endif
template <class T, class F> inline void sweep(int n, F&& body) {
    int i = 0;
    for (; i + LANES<T> <= n; i += LANES<T>) body(i, Whole<T>{});
    if (i < n) body(i, Part<T>{n - i});
}

// Calls body(std::integral_constant<int, rows>, first row).
template <int MOST, class F> inline void row_groups(int count, F&& body) {
    int i = 0;
    for (; i + MOST <= count; i += MOST) body(std::integral_constant<int, MOST>{}, i);
    for (; i < count; i++) body(std::integral_constant<int, 1>{}, i);
}

// ---- reductions over the lanes; what they make of lanes that are no numbers is any of them or no number ----
#if defined(__AVX512F__)
// With a mask of all lanes: GCC 12 warns of what its plain intrinsics leave open.
template <int PART> inline __m256 half_of(Vec<float> v) {
    return (__m256)_mm512_maskz_extractf64x4_pd(0xf, (__m512d)v, PART);
}
#endif
template <class T> inline T lane_sum(Vec<T> v) {
    T sum = 0;
    for (int i = 0; i < LANES<T>; i++) sum += v[i];
    return sum;
}
template <class T> inline T lane_max(Vec<T> v) {
    T best = v[0];
    for (int i = 1; i < LANES<T>; i++) best = v[i] > best ? v[i] : best;
    return best;
}
#if defined(__AVX2__)
template <> inline float lane_sum<float>(Vec<float> v) {
#if defined(__AVX512F__)
    const __m256 half = _mm256_add_ps(half_of<0>(v), half_of<1>(v));
#else
    const __m256 half = (__m256)v;
#endif
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
template <> inline float lane_max<float>(Vec<float> v) {
#if defined(__AVX512F__)
    const __m256 half = _mm256_max_ps(half_of<0>(v), half_of<1>(v));
#else
    const __m256 half = (__m256)v;
#endif
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
#endif

// ---- the sums over the lanes of several vectors at once: vector i's in lane i ----
// Merges two vectors whose lanes are partial sums of HALF vectors each, in turn, into one of 2 * HALF.
template <class T, int HALF> ALWAYS_INLINE Vec<T> fold(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
    Vec<T> sum;
    for (int i = 0; i < LANES<T>; i++) {
        sum[i] = i & HALF ? b[i] + b[i - HALF] : a[i] + a[i + HALF];
    }
    return sum;
#else
    // What stays in its lane costs less than what moves.
    typename Traits<T>::Integers staying, moving;
    for (int i = 0; i < LANES<T>; i++) {
        staying[i] = i & HALF ? LANES<T> + i : i;
        moving[i] = i & HALF ? LANES<T> + i - HALF : i + HALF;
    }
    return __builtin_shuffle(a, b, staying) + __builtin_shuffle(a, b, moving);
#endif
}
// GROUP vectors from x[first] on, those from count on taken as any.
template <class T, int GROUP> ALWAYS_INLINE Vec<T> folded(const Vec<T>* x, int first, int count) {
    if constexpr (GROUP == 1) {
        return x[first];
    } else {
        const Vec<T> a = folded<T, GROUP / 2>(x, first, count);
        return fold<T, GROUP / 2>(a, first + GROUP / 2 < count ? folded<T, GROUP / 2>(x, first + GROUP / 2, count) : a);
    }
}
template <class T, int COUNT> ALWAYS_INLINE Vec<T> lane_sums(const Vec<T> (&x)[COUNT]) {
    static_assert(COUNT <= LANES<T>);
    return folded<T, LANES<T>>(x, 0, COUNT);
}
// Of `count` vectors in memory; out may be where they lie. Arrays of such vectors are best summed up in the order in
// which they are met: some power of two apart, they would get into each other's way.
template <class T> __attribute__((noinline)) void lane_sums(const T* vectors, int count, T* out) {
    sweep<T>(count, [&](int i, auto io) {
        const int here = std::min(LANES<T>, count - i);
        Vec<T> x[LANES<T>];
        for (int k = 0; k < LANES<T>; k++) x[k] = load(vectors + (size_t)(i + std::min(k, here - 1)) * LANES<T>);
        io.store(out + i, folded<T, LANES<T>>(x, 0, LANES<T>));
    });
}

// ---- a square of LANES vectors: element i of vector j and element j of vector i change places ----
// Lanes of a and b: a's where the bit HALF is not set, and there SHIFT further on; else b's, HALF - SHIFT further back.
template <class T, int HALF, int SHIFT> ALWAYS_INLINE Vec<T> exchange(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
    Vec<T> mixed;
    for (int i = 0; i < LANES<T>; i++) mixed[i] = i & HALF ? b[i - HALF + SHIFT] : a[i + SHIFT];
    return mixed;
#else
    typename Traits<T>::Integers from;
    for (int i = 0; i < LANES<T>; i++) from[i] = i & HALF ? LANES<T> + i - HALF + SHIFT : i + SHIFT;
    return __builtin_shuffle(a, b, from);
#endif
}
template <class T, int HALF = LANES<T> / 2> ALWAYS_INLINE void transpose(Vec<T> (&square)[LANES<T>]) {
    UNROLLED for (int i = 0; i < LANES<T>; i++) {
        if (i & HALF) continue;
        const Vec<T> a = square[i], b = square[i + HALF];
        square[i] = exchange<T, HALF, 0>(a, b);
        square[i + HALF] = exchange<T, HALF, HALF>(a, b);
    }
    if constexpr (HALF > 1) transpose<T, HALF / 2>(square);
}
// to[j][i] = from[i][j] of so many rows and columns.
template <class T>
void transpose(int rows, int columns, const T* from, int64_t from_stride, T* to, int64_t to_stride) {
    if (rows < LANES<T> || columns < LANES<T>) {
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < columns; j++) to[j * to_stride + i] = from[i * from_stride + j];
        return;
    }
    // The last squares lie over those before them where the sides are no whole vectors.
    for (int i = 0; i < rows; i += LANES<T>) {
        const int row = std::min(i, rows - LANES<T>);
        for (int j = 0; j < columns; j += LANES<T>) {
            const int column = std::min(j, columns - LANES<T>);
            Vec<T> square[LANES<T>];
            UNROLLED for (int lane = 0; lane < LANES<T>; lane++) square[lane] = load(from + (row + lane) * from_stride + column);
            transpose<T>(square);
            UNROLLED for (int lane = 0; lane < LANES<T>; lane++) store(to + (column + lane) * to_stride + row, square[lane]);
        }
    }
}

// ---- elementary functions; float after Cephes (1 to 2 ulp, branch free, NaN stays NaN), double lane by lane ----
template <class F> inline Vec<double> each_lane(Vec<double> x, F&& function) {
    for (int i = 0; i < LANES<double>; i++) x[i] = function(x[i]);
    return x;
}
inline Vec<double> square_root(Vec<double> x) { return each_lane(x, [](double v) { return std::sqrt(v); }); }
inline Vec<double> exponential(Vec<double> x) { return each_lane(x, [](double v) { return std::exp(v); }); }
inline Vec<double> logarithm(Vec<double> x) { return each_lane(x, [](double v) { return std::log(v); }); }
inline Vec<double> hyperbolic(Vec<double> x) { return each_lane(x, [](double v) { return std::tanh(v); }); }
inline Vec<double> softplus(Vec<double> x) {
    return each_lane(x, [](double v) { return std::max(v, 0.0) + std::log1p(std::exp(-std::abs(v))); });
}
// Derivative of softplus, from its value.
inline Vec<double> softplus_slope(Vec<double> s) { return each_lane(s, [](double v) { return -std::expm1(-v); }); }

using Floats = Vec<float>;
using Bits = Traits<float>::Integers;

inline Floats square_root(Floats x) {
#if defined(__AVX512F__)
    return (Floats)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX2__)
    return (Floats)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE2__)
    return (Floats)_mm_sqrt_ps((__m128)x);
#else
    for (int i = 0; i < LANES<float>; i++) x[i] = std::sqrt(x[i]);
    return x;
#endif
}
ALWAYS_INLINE Floats exponential(Floats x) {
    const Floats lowest = splat(-87.3f), given = x;
    // Beyond 88.4 infinity already: what is divided by it stays below the smallest normal number, as it should.
    x = at_most(at_least(x, lowest), splat(89.f));
    const Floats scaled = x * 1.44269504088896341f;
    const Bits whole = __builtin_convertvector(scaled + (scaled < 0.f ? splat(-0.5f) : splat(0.5f)), Bits);
    const Floats n = __builtin_convertvector(whole, Floats);
    const Floats r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    Floats p = splat(1.9875691500E-4f);
    p = p * r + 1.3981999507E-3f;
    p = p * r + 8.3334519073E-3f;
    p = p * r + 4.1665795894E-2f;
    p = p * r + 1.6666665459E-1f;
    p = p * r + 5.0000001201E-1f;
    p = p * (r * r) + r + 1.f;
    p = p * (Floats)((whole + 127) << 23);
    return given < lowest ? Floats{} : p;
}
// Of x that is not subnormal.
ALWAYS_INLINE Floats logarithm(Floats x) {
    Bits bits = (Bits)x;
    const Bits exponent = (bits >> 23) - 126;
    bits = (bits & 0x007fffff) | 0x3f000000;
    Floats m = (Floats)bits;  // in [0.5, 1)
    const Bits small = m < splat(0.707106781186547524f);
    const Floats e = __builtin_convertvector(exponent + small, Floats);
    m = (small ? m + m : m) - 1.f;
    const Floats z = m * m;
    Floats p = splat(7.0376836292E-2f);
    p = p * m - 1.1514610310E-1f;
    p = p * m + 1.1676998740E-1f;
    p = p * m - 1.2420140846E-1f;
    p = p * m + 1.4249322787E-1f;
    p = p * m - 1.6668057665E-1f;
    p = p * m + 2.0000714765E-1f;
    p = p * m - 2.4999993993E-1f;
    p = p * m + 3.3333331174E-1f;
    p = p * m * z + e * -2.12194440e-4f - 0.5f * z;
    constexpr float infinity = std::numeric_limits<float>::infinity();
    const Floats result = x < infinity ? m + p + e * 0.693359375f : x;
    const Floats of_none = x == 0.f ? splat(-infinity) : splat(std::numeric_limits<float>::quiet_NaN());
    return x > 0.f ? result : of_none;
}
ALWAYS_INLINE Floats hyperbolic(Floats x) {
    const Floats z = x * x;
    Floats p = splat(-5.70498872745E-3f);
    p = p * z + 2.06390887954E-2f;
    p = p * z - 5.37397155531E-2f;
    p = p * z + 1.33314422036E-1f;
    p = p * z - 3.33332819422E-1f;
    const Floats large = 2.f / (1.f + exponential(-2.f * x)) - 1.f;
    return z < 0.390625f ? p * z * x + x : large;
}
ALWAYS_INLINE Floats softplus(Floats x) {
    const Floats e = exponential(x < 0.f ? x : -x), u = 1.f + e;
    return at_least(x, Floats{}) + (u == 1.f ? e : logarithm(u) * (e / (u - 1.f)));
}
ALWAYS_INLINE Floats softplus_slope(Floats s) {
    return s < 0.01f ? s * (1.f - s * (0.5f - s * (1.f / 6))) : 1.f - exponential(-s);
}

template <class V> ALWAYS_INLINE V logistic(V x) { return 1 / (1 + exponential(-x)); }

}  // namespace native
