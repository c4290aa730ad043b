// The memory of one row of the batch: writing and reading, forward and backward (core/addressing.py).
// The memory is kept transposed, [word][slots], with the slots rounded up to whole vectors; slots beyond the last hold
// zeros and have weight zero.
#pragma once
#include "simd.h"

namespace native {

#if defined(__AVX512F__)
constexpr int CHUNK = 4;  // vectors of slots that are worked on together, as many as the registers hold
#else
constexpr int CHUNK = 2;
#endif

// The extent of the slots, and a mask for the last vector.
template <class T> struct Slots {
    int count, padded;
    typename Traits<T>::Integers inside;
    explicit Slots(int slots)
        : count(slots), padded(round_up<T>(slots)),
          inside(lane_numbers<T>() < splat<T>(T(LANES<T> - (padded - count)))) {}
    Vec<T> masked(int n, Vec<T> x, T outside = 0) const {
        return n + LANES<T> <= count ? x : inside ? x : splat(outside);
    }
};

// Calls body(std::integral_constant<int, heads in the group>, first head) for groups of at most 4 heads.
template <class F> inline void head_groups(int heads, F&& body) {
    for (int first = 0; first < heads; first += 4) {
        switch (std::min(4, heads - first)) {
            case 1: body(std::integral_constant<int, 1>{}, first); break;
            case 2: body(std::integral_constant<int, 2>{}, first); break;
            case 3: body(std::integral_constant<int, 3>{}, first); break;
            default: body(std::integral_constant<int, 4>{}, first);
        }
    }
}
// Calls body(std::integral_constant<int, vectors in the chunk>, first slot).
template <class T, int MOST, class F> inline void chunks(int padded, F&& body) {
    int n = 0;
    for (; n + MOST * LANES<T> <= padded; n += MOST * LANES<T>) body(std::integral_constant<int, MOST>{}, n);
    for (; n < padded; n += LANES<T>) body(std::integral_constant<int, 1>{}, n);
}

// Innermost loops run on copies of what their lambdas hold: to the compiler a vector that is stored might change that.

// after = before ∘ kept ∘ Π_h (1 - w_h e_h) + Σ_h w_h a_h; kept may be null; after may be before.
template <class T>
void write(const Slots<T>& slots, int word, const T* before, T* after, const T* kept, int heads, const T* weights,
           const T* erase, const T* add) {
    const int N = slots.padded;
    for (int j = 0; j < word; j++) {
        const T *from = before + (size_t)j * N;
        T* to = after + (size_t)j * N;
        if (heads == 1 && !kept) {
            const T e = erase[j], a = add[j];
            for (int n = 0; n < N; n += LANES<T>) {
                const Vec<T> w = load(weights + n), m = load(from + n);
                store(to + n, m * (1 - e * w) + a * w);
            }
            continue;
        }
        for (int n = 0; n < N; n += LANES<T>) {
            Vec<T> m = load(from + n);
            if (kept) m *= load(kept + n);
            for (int h = 0; h < heads; h++) m *= 1 - erase[h * word + j] * load(weights + (size_t)h * N + n);
            for (int h = 0; h < heads; h++) m += add[h * word + j] * load(weights + (size_t)h * N + n);
            store(to + n, m);
        }
    }
}

// Backward of write. d_memory: in, gradient after; out, gradient before. d_weights += …; d_erase, d_add = …;
// d_kept += … if kept. sums is scratch of 2 * word vectors.
template <class T>
void write_backward(const Slots<T>& slots, int word, const T* before, const T* kept, int heads, const T* weights,
                    const T* erase, const T* add, T* d_memory, T* d_weights, T* d_erase, T* d_add, T* d_kept, T* sums) {
    const int N = slots.padded;
    if (heads == 1 && !kept) {
        chunks<T, CHUNK>(N, [&](auto chunk, int n) {
            constexpr int C = chunk;
            Vec<T> w[C], d_w[C];
            for (int c = 0; c < C; c++) {
                w[c] = load(weights + n + c * LANES<T>);
                d_w[c] = load(d_weights + n + c * LANES<T>);
            }
            const int size = word, stride = N;
            const bool begun = n > 0;
            const T *m_at = before + n, *erased = erase, *added = add;
            T *d_at = d_memory + n, *sum = sums;
            for (int j = 0; j < size; j++, m_at += stride, d_at += stride, sum += 2 * LANES<T>) {
                const T e = erased[j], a = added[j];
                Vec<T> for_erase{}, for_add{};
                for (int c = 0; c < C; c++) {
                    const Vec<T> m = load(m_at + c * LANES<T>), d = load(d_at + c * LANES<T>), d_by_weight = d * w[c];
                    for_add += d_by_weight;
                    for_erase -= d_by_weight * m;
                    d_w[c] += d * (a - m * e);
                    store(d_at + c * LANES<T>, d - e * d_by_weight);
                }
                store(sum, begun ? load(sum) + for_erase : for_erase);
                store(sum + LANES<T>, begun ? load(sum + LANES<T>) + for_add : for_add);
            }
            for (int c = 0; c < C; c++) store(d_weights + n + c * LANES<T>, d_w[c]);
        });
        lane_sums<T>(sums, 2 * word, sums);
        for (int j = 0; j < word; j++) d_erase[j] = sums[2 * j], d_add[j] = sums[2 * j + 1];
        return;
    }
    for (int j = 0; j < word; j++) {
        for (int h = 0; h < heads; h++) {
            const T e = erase[h * word + j], a = add[h * word + j];
            const T* w = weights + (size_t)h * N;
            Vec<T> for_erase{}, for_add{};
            for (int n = 0; n < N; n += LANES<T>) {
                const size_t at = (size_t)j * N + n;
                Vec<T> m = load(before + at);  // times what the other heads leave
                if (kept) m *= load(kept + n);
                for (int k = 0; k < heads; k++)
                    if (k != h) m *= 1 - erase[k * word + j] * load(weights + (size_t)k * N + n);
                const Vec<T> d = load(d_memory + at), d_by_weight = d * load(w + n);
                for_add += d_by_weight;
                for_erase += d_by_weight * m;
                store(d_weights + (size_t)h * N + n, load(d_weights + (size_t)h * N + n) + d * (a - m * e));
            }
            d_erase[h * word + j] = -lane_sum<T>(for_erase);
            d_add[h * word + j] = lane_sum<T>(for_add);
        }
        for (int n = 0; n < N; n += LANES<T>) {
            const size_t at = (size_t)j * N + n;
            Vec<T> d = load(d_memory + at);
            for (int h = 0; h < heads; h++) d *= 1 - erase[h * word + j] * load(weights + (size_t)h * N + n);
            if (kept) {
                store(d_kept + n, load(d_kept + n) + d * load(before + at));
                d *= load(kept + n);
            }
            store(d_memory + at, d);
        }
    }
}

// reads[head][word] = Σ_slots weights * memory.
template <class T>
void read(const Slots<T>& slots, int word, const T* memory, int heads, const T* weights, T* reads) {
    const int N = slots.padded;
    head_groups(heads, [&](auto group, int first) {
        constexpr int K = group;
        const T* w = weights + (size_t)first * N;
        // Several words at once: the weights are loaded once for them, and their sums over the lanes are cheaper.
        constexpr int MOST = LANES<T> >= 4 * K ? 4 : 1;
        row_groups<MOST>(word, [&](auto group_of_words, int j) {
            constexpr int WORDS = group_of_words;
            if constexpr (LANES<T> < K * WORDS) {
                for (int h = 0; h < K; h++) {
                    Vec<T> sum{};
                    for (int n = 0; n < N; n += LANES<T>)
                        sum += load(memory + (size_t)j * N + n) * load(w + (size_t)h * N + n);
                    reads[(first + h) * word + j] = lane_sum<T>(sum);
                }
            } else {
                Vec<T> sums[K * WORDS] = {};
                for (int n = 0; n < N; n += LANES<T>) {
                    for (int i = 0; i < WORDS; i++) {
                        const Vec<T> m = load(memory + (size_t)(j + i) * N + n);
                        for (int h = 0; h < K; h++) sums[h * WORDS + i] += m * load(w + (size_t)h * N + n);
                    }
                }
                const Vec<T> sum = lane_sums<T>(sums);
                for (int h = 0; h < K; h++)
                    for (int i = 0; i < WORDS; i++) reads[(first + h) * word + j + i] = sum[h * WORDS + i];
            }
        });
    });
}

// Backward of read: d_memory += …, d_weights += ….
template <class T>
void read_backward(const Slots<T>& slots, int word, const T* memory, int heads, const T* weights, const T* d_reads,
                   T* d_memory, T* d_weights) {
    const int N = slots.padded;
    head_groups(heads, [&](auto group, int first) {
        constexpr int K = group;
        const T* d_read = d_reads + first * word;
        chunks<T, (K > 2 ? CHUNK / 2 : CHUNK)>(N, [&](auto chunk, int n) {
            constexpr int C = chunk;
            Vec<T> w[K][C], d_w[K][C];
            for (int h = 0; h < K; h++)
                for (int c = 0; c < C; c++) {
                    w[h][c] = load(weights + (size_t)(first + h) * N + n + c * LANES<T>);
                    d_w[h][c] = load(d_weights + (size_t)(first + h) * N + n + c * LANES<T>);
                }
            const int size = word, stride = N;
            const T *m_at = memory + n, *d_word = d_read;
            T* d_at = d_memory + n;
            for (int j = 0; j < size; j++, m_at += stride, d_at += stride, d_word++)
                for (int c = 0; c < C; c++) {
                    const Vec<T> m = load(m_at + c * LANES<T>);
                    Vec<T> d = load(d_at + c * LANES<T>);
                    for (int h = 0; h < K; h++) {
                        const T x = d_word[h * size];
                        d += x * w[h][c];
                        d_w[h][c] += x * m;
                    }
                    store(d_at + c * LANES<T>, d);
                }
            for (int h = 0; h < K; h++)
                for (int c = 0; c < C; c++)
                    store(d_weights + (size_t)(first + h) * N + n + c * LANES<T>, d_w[h][c]);
        });
    });
}

// Softmax over the slots of what logits(n) gives for the vector of slots from n on. It lies in memory before the largest
// is subtracted: were its last product rounded only after that, the largest would differ from itself.
template <class T, class F> void softmax(const Slots<T>& slots, T* x, F&& logits) {
    constexpr T nothing = -std::numeric_limits<T>::infinity();
    Vec<T> most = splat(nothing), sum{};
    for (int n = 0; n < slots.padded; n += LANES<T>) {
        const Vec<T> logit = slots.masked(n, logits(n), nothing);
        store(x + n, logit);
        most = at_least(most, logit);
    }
    const T top = lane_max<T>(most);
    for (int n = 0; n < slots.padded; n += LANES<T>) {
        const Vec<T> share = exponential(load(x + n) - top);
        store(x + n, share);
        sum += share;
    }
    const T scale = 1 / lane_sum<T>(sum);
    for (int n = 0; n < slots.padded; n += LANES<T>) store(x + n, scale * load(x + n));
}
// Softmax of each of `heads` groups of `size` neighbours, in place, and its backward (d in: of the shares, out: of x).
template <class T> void small_softmax(int heads, int size, T* x) {
    for (int h = 0; h < heads; h++) {
        T* group = x + h * size;
        T top = group[0];
        for (int i = 1; i < size; i++) top = group[i] > top ? group[i] : top;
        for (int i = 0; i < size; i++) group[i] -= top;
    }
    sweep<T>(heads * size, [&](int i, auto io) { io.store(x + i, exponential(io.load(x + i))); });
    for (int h = 0; h < heads; h++) {
        T *group = x + h * size, sum = 0;
        for (int i = 0; i < size; i++) sum += group[i];
        const T scale = 1 / sum;
        for (int i = 0; i < size; i++) group[i] *= scale;
    }
}
template <class T> void small_softmax_backward(int size, const T* share, T* d) {
    T mean = 0;
    for (int i = 0; i < size; i++) mean += share[i] * d[i];
    for (int i = 0; i < size; i++) d[i] = share[i] * (d[i] - mean);
}

template <class T> void apply_logistic(T* x, int n) {
    sweep<T>(n, [&](int i, auto io) { io.store(x + i, logistic(io.load(x + i))); });
}
template <class T> void apply_hyperbolic(T* x, int n) {
    sweep<T>(n, [&](int i, auto io) { io.store(x + i, hyperbolic(io.load(x + i))); });
}
template <class T> void apply_softplus(T* x, int n) {
    sweep<T>(n, [&](int i, auto io) { io.store(x + i, softplus(io.load(x + i))); });
}
// A function of n values in place, of several parts of x at once: of few values each, they fill one vector together.
struct Extent {
    int begin, count;
};
template <class T> void apply_to_parts(void (*function)(T*, int), T* x, std::initializer_list<Extent> parts) {
    constexpr int MOST = 64;
    int count = 0;
    for (const Extent& part : parts) count += part.count;
    if (count > MOST) {
        for (const Extent& part : parts) function(x + part.begin, part.count);
        return;
    }
    T values[MOST], *next = values;
    for (const Extent& part : parts) next = std::copy_n(x + part.begin, part.count, next);
    function(values, count);
    next = values;
    for (const Extent& part : parts) std::copy_n(next, part.count, x + part.begin), next += part.count;
}
// Backward of the three, in place on the gradient, from the function's value y.
template <class T> void logistic_backward(const T* y, T* d, int n) {
    sweep<T>(n, [&](int i, auto io) { const Vec<T> v = io.load(y + i); io.store(d + i, io.load(d + i) * v * (1 - v)); });
}
template <class T> void hyperbolic_backward(const T* y, T* d, int n) {
    sweep<T>(n, [&](int i, auto io) { const Vec<T> v = io.load(y + i); io.store(d + i, io.load(d + i) * (1 - v * v)); });
}
template <class T> void softplus_backward(const T* y, T* d, int n) {
    sweep<T>(n, [&](int i, auto io) { io.store(d + i, io.load(d + i) * softplus_slope(io.load(y + i))); });
}

// [slots][word] <-> [word][padded slots]
template <class T> void to_columns(const Slots<T>& slots, int word, const T* rows, T* columns) {
    transpose(slots.count, word, rows, word, columns, slots.padded);
    for (int j = 0; j < word; j++)
        for (int n = slots.count; n < slots.padded; n++) columns[(size_t)j * slots.padded + n] = 0;
}
template <class T> void to_rows(const Slots<T>& slots, int word, const T* columns, T* rows) {
    transpose(word, slots.count, columns, slots.padded, rows, word);
}
// `heads` rows of `count` values <-> of `padded` values
template <class T> void pad(const Slots<T>& slots, int heads, const T* from, T* to) {
    for (int h = 0; h < heads; h++) {
        std::memcpy(to + (size_t)h * slots.padded, from + (size_t)h * slots.count, slots.count * sizeof(T));
        for (int n = slots.count; n < slots.padded; n++) to[(size_t)h * slots.padded + n] = 0;
    }
}
template <class T> void unpad(const Slots<T>& slots, int heads, const T* from, T* to) {
    for (int h = 0; h < heads; h++)
        std::memcpy(to + (size_t)h * slots.count, from + (size_t)h * slots.padded, slots.count * sizeof(T));
}

}  // namespace native
