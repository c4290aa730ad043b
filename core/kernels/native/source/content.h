// Content addressing of one row of the batch, forward and backward (core/addressing.py: cosine_similarity, content_weights).
#pragma once
#include "read_write.h"

namespace native {

template <class T> inline T norm(const T* x, int size, T epsilon) {
    Vec<T> sum{};
    sweep<T>(size, [&](int i, auto io) { const Vec<T> v = io.load(x + i); sum += v * v; });
    return std::sqrt(lane_sum<T>(sum) + epsilon);
}

// dot_products of K heads; the norms are made with MAKE_NORMS alone.
template <class T, int K, bool MAKE_NORMS>
void dot_products_of(const Slots<T>& slots, int word, T epsilon, const T* memory, const T* keys, T* out, T* norms) {
    const int N = slots.padded;
    chunks<T, CHUNK>(N, [&](auto chunk, int n) {
        constexpr int C = chunk;
        Vec<T> dot[K][C] = {}, square[C] = {};
        for (int j = 0; j < word; j++) {
            for (int c = 0; c < C; c++) {
                const Vec<T> x = load(memory + (size_t)j * N + n + c * LANES<T>);
                if constexpr (MAKE_NORMS) square[c] += x * x;
                for (int h = 0; h < K; h++) dot[h][c] += keys[h * word + j] * x;
            }
        }
        for (int c = 0; c < C; c++) {
            const int at = n + c * LANES<T>;
            for (int h = 0; h < K; h++) store(out + (size_t)h * N + at, dot[h][c]);
            if constexpr (MAKE_NORMS) store(norms + at, square_root(square[c] + epsilon));
        }
    });
}
// out[head][slot] = key · memory word; norms[slot] = sqrt(|word|² + epsilon) unless null.
template <class T>
void dot_products(const Slots<T>& slots, int word, T epsilon, const T* memory, int heads, const T* keys, T* out,
                  T* norms) {
    head_groups(heads, [&](auto group, int first) {
        const T* key = keys + first * word;
        T* found = out + (size_t)first * slots.padded;
        if (norms && first == 0)
            dot_products_of<T, group, true>(slots, word, epsilon, memory, key, found, norms);
        else
            dot_products_of<T, group, false>(slots, word, epsilon, memory, key, found, nullptr);
    });
}
// The same of the memory that one head writes, in one pass; for at most 4 heads.
template <class T>
void write_and_dot_products(const Slots<T>& slots, int word, T epsilon, const T* before, T* after, const T* weights,
                            const T* erase, const T* add, int heads, const T* keys, T* out, T* norms) {
    const int N = slots.padded;
    head_groups(heads, [&](auto group, int) {
        constexpr int K = group;
        chunks<T, (K > 1 ? CHUNK / 2 : CHUNK)>(N, [&](auto chunk, int n) {
            constexpr int C = chunk;
            Vec<T> w[C], dot[K][C] = {}, square[C] = {};
            for (int c = 0; c < C; c++) w[c] = load(weights + n + c * LANES<T>);
            const int size = word, stride = N;
            const T *from = before + n, *erased = erase, *added = add, *key = keys;
            T* to = after + n;
            for (int j = 0; j < size; j++, from += stride, to += stride, erased++, added++, key++) {
                const T e = *erased, a = *added;
                T k[K];
                for (int h = 0; h < K; h++) k[h] = key[h * size];
                for (int c = 0; c < C; c++) {
                    const Vec<T> x = load(from + c * LANES<T>) * (1 - e * w[c]) + a * w[c];
                    store(to + c * LANES<T>, x);
                    square[c] += x * x;
                    for (int h = 0; h < K; h++) dot[h][c] += k[h] * x;
                }
            }
            for (int c = 0; c < C; c++) {
                const int at = n + c * LANES<T>;
                for (int h = 0; h < K; h++) store(out + (size_t)h * N + at, dot[h][c]);
                store(norms + at, square_root(square[c] + epsilon));
            }
        });
    });
}

// cosine: in, dot products; out, cosines. weights = softmax(strength * cosine).
template <class T>
void content_weights(const Slots<T>& slots, T epsilon, const T* norms, T key_norm, T strength, T* cosine, T* weights) {
    softmax(slots, weights, [&](int n) {
        const Vec<T> x = load(cosine + n) / (key_norm * load(norms + n) + epsilon);
        store(cosine + n, x);
        return strength * x;
    });
}

// Backward of one head's content_weights. d_weights: in, its gradient; out, the gradient of the dot products.
// Adds to d_norms; returns the gradients of strength and of the key's norm.
template <class T>
void content_weights_backward(const Slots<T>& slots, T epsilon, const T* norms, T key_norm, T strength, const T* cosine,
                              const T* weights, T* d_weights, T* d_norms, T& d_strength, T& d_key_norm) {
    const int N = slots.padded;
    Vec<T> sum{}, for_strength{}, for_key{};
    for (int n = 0; n < N; n += LANES<T>) sum += load(weights + n) * load(d_weights + n);
    const T mean = lane_sum<T>(sum);
    for (int n = 0; n < N; n += LANES<T>) {
        const Vec<T> d_logit = load(weights + n) * (load(d_weights + n) - mean);
        const Vec<T> x = load(cosine + n), size = load(norms + n);
        const Vec<T> d_dot = strength * d_logit / (key_norm * size + epsilon);
        const Vec<T> d_denominator = -d_dot * x;
        for_strength += d_logit * x;
        for_key += d_denominator * size;
        store(d_weights + n, d_dot);
        store(d_norms + n, load(d_norms + n) + d_denominator * key_norm);
    }
    d_strength = lane_sum<T>(for_strength);
    d_key_norm = lane_sum<T>(for_key);
}

// Backward of dot_products: d_memory += …, d_keys[head][word] = …. sums is scratch of 4 * word vectors.
template <class T>
void dot_products_backward(const Slots<T>& slots, int word, const T* memory, const T* norms, const T* d_norms,
                           int heads, const T* keys, const T* d_dots, T* d_memory, T* d_keys, T* sums) {
    const int N = slots.padded;
    head_groups(heads, [&](auto group, int first) {
        constexpr int K = group;
        const T* key = keys + first * word;
        chunks<T, (K > 2 ? CHUNK / 2 : CHUNK)>(N, [&](auto chunk, int n) {
            constexpr int C = chunk;
            Vec<T> d_dot[K][C], d_square[C];
            for (int c = 0; c < C; c++) {
                const int at = n + c * LANES<T>;
                for (int h = 0; h < K; h++) d_dot[h][c] = load(d_dots + (size_t)(first + h) * N + at);
                d_square[c] = first == 0 ? load(d_norms + at) / load(norms + at) : Vec<T>{};
            }
            const int size = word, stride = N;
            const bool begun = n > 0;
            const T *x_at = memory + n, *key_at = key;
            T *d_at = d_memory + n, *total = sums;
            for (int j = 0; j < size; j++, x_at += stride, d_at += stride, key_at++) {
                Vec<T> sum[K] = {};
                for (int c = 0; c < C; c++) {
                    const Vec<T> x = load(x_at + c * LANES<T>);
                    Vec<T> d = load(d_at + c * LANES<T>) + d_square[c] * x;
                    for (int h = 0; h < K; h++) {
                        sum[h] += d_dot[h][c] * x;
                        d += d_dot[h][c] * key_at[h * size];
                    }
                    store(d_at + c * LANES<T>, d);
                }
                for (int h = 0; h < K; h++, total += LANES<T>) store(total, begun ? load(total) + sum[h] : sum[h]);
            }
        });
        lane_sums<T>(sums, K * word, sums);
        for (int h = 0; h < K; h++)
            for (int j = 0; j < word; j++) d_keys[(first + h) * word + j] = sums[j * K + h];
    });
}

// Backward of write_and_dot_products and of reading from that memory. d_memory: in, gradient after; out, before;
// d_weights += …; d_erase, d_add, d_keys = …. The gradient of the read weights, dot products of d_reads with the memory, is
// not made here. sums is scratch of (2 + heads) * word vectors.
template <class T>
void write_and_dot_products_backward(const Slots<T>& slots, int word, const T* before, const T* weights, const T* erase,
                                     const T* add, int heads, const T* norms, const T* d_norms, const T* keys,
                                     const T* d_dots, const T* read_weights, const T* d_reads, T* d_memory,
                                     T* d_weights, T* d_erase, T* d_add, T* d_keys, T* sums) {
    const int N = slots.padded;
    head_groups(heads, [&](auto group, int) {
        constexpr int K = group, SUMS = 2 + K;
        chunks<T, (K > 1 ? CHUNK / 2 : CHUNK)>(N, [&](auto chunk, int n) {
            constexpr int C = chunk;
            Vec<T> w[C], d_w[C], d_square[C], d_dot[K][C], reading[K][C];
            for (int c = 0; c < C; c++) {
                const int at = n + c * LANES<T>;
                w[c] = load(weights + at);
                d_w[c] = load(d_weights + at);
                d_square[c] = load(d_norms + at) / load(norms + at);
                for (int h = 0; h < K; h++) {
                    d_dot[h][c] = load(d_dots + (size_t)h * N + at);
                    reading[h][c] = load(read_weights + (size_t)h * N + at);
                }
            }
            const int size = word, stride = N;
            const bool begun = n > 0;
            const T *m_at = before + n, *key_at = keys, *d_word = d_reads;
            T *d_at = d_memory + n, *total = sums;
            for (int j = 0; j < size; j++, m_at += stride, d_at += stride, key_at++, d_word++, total += SUMS * LANES<T>) {
                const T e = erase[j], a = add[j];
                Vec<T> sum[SUMS] = {};
                for (int c = 0; c < C; c++) {
                    const Vec<T> m = load(m_at + c * LANES<T>), left = 1 - e * w[c], after = m * left + a * w[c];
                    Vec<T> d = load(d_at + c * LANES<T>) + d_square[c] * after;
                    for (int h = 0; h < K; h++) {
                        sum[2 + h] += d_dot[h][c] * after;
                        d += d_dot[h][c] * key_at[h * size];
                        d += reading[h][c] * d_word[h * size];
                    }
                    const Vec<T> d_by_weight = d * w[c];
                    sum[0] -= d_by_weight * m;
                    sum[1] += d_by_weight;
                    d_w[c] += d * (a - m * e);
                    store(d_at + c * LANES<T>, d * left);
                }
                for (int i = 0; i < SUMS; i++)
                    store(total + i * LANES<T>, begun ? load(total + i * LANES<T>) + sum[i] : sum[i]);
            }
            for (int c = 0; c < C; c++) store(d_weights + n + c * LANES<T>, d_w[c]);
        });
        lane_sums<T>(sums, SUMS * word, sums);
        for (int j = 0; j < word; j++) {
            d_erase[j] = sums[j * SUMS], d_add[j] = sums[j * SUMS + 1];
            for (int h = 0; h < K; h++) d_keys[h * word + j] = sums[j * SUMS + 2 + h];
        }
    });
}

// ---- the same with a mask of each head, by which key and words are multiplied first (improved DNC) ----
template <class T> inline T masked_norm(const T* x, const T* mask, int size, T epsilon) {
    Vec<T> sum{};
    sweep<T>(size, [&](int i, auto io) { const Vec<T> v = io.load(x + i) * io.load(mask + i); sum += v * v; });
    return std::sqrt(lane_sum<T>(sum) + epsilon);
}
// norms [head][slot]
template <class T>
void masked_dot_products(const Slots<T>& slots, int word, T epsilon, const T* memory, int heads, const T* keys,
                         const T* masks, T* out, T* norms) {
    const int N = slots.padded;
    for (int h = 0; h < heads; h++) {
        const T *key = keys + h * word, *mask = masks + h * word;
        chunks<T, CHUNK>(N, [&](auto chunk, int n) {
            constexpr int C = chunk;
            Vec<T> dot[C] = {}, square[C] = {};
            for (int j = 0; j < word; j++) {
                const T share = mask[j] * mask[j], weight = key[j] * share;
                for (int c = 0; c < C; c++) {
                    const Vec<T> x = load(memory + (size_t)j * N + n + c * LANES<T>);
                    dot[c] += weight * x;
                    square[c] += share * (x * x);
                }
            }
            for (int c = 0; c < C; c++) {
                const size_t at = (size_t)h * N + n + c * LANES<T>;
                store(out + at, dot[c]);
                store(norms + at, square_root(square[c] + epsilon));
            }
        });
    }
}
// d_memory += …, d_keys = …, d_masks = …, without what comes through the keys' norms. d_norms is lost.
template <class T>
void masked_dot_products_backward(const Slots<T>& slots, int word, const T* memory, const T* norms, T* d_norms,
                                  int heads, const T* keys, const T* masks, const T* d_dots, T* d_memory, T* d_keys,
                                  T* d_masks) {
    const int N = slots.padded;
    for (int h = 0; h < heads; h++) {
        const int64_t head = (int64_t)h * N;
        for (int n = 0; n < N; n += LANES<T>)  // twice the gradient of the square
            store(d_norms + head + n, load(d_norms + head + n) / load(norms + head + n));
        for (int j = 0; j < word; j++) {
            const T key = keys[h * word + j], mask = masks[h * word + j], share = mask * mask;
            Vec<T> for_dot{}, for_square{};
            for (int n = 0; n < N; n += LANES<T>) {
                const size_t at = (size_t)j * N + n;
                const Vec<T> x = load(memory + at), d_dot = load(d_dots + head + n), d = load(d_norms + head + n) * x;
                for_dot += d_dot * x;
                for_square += d * x;
                store(d_memory + at, load(d_memory + at) + share * (key * d_dot + d));
            }
            const T d_weight = lane_sum<T>(for_dot);
            d_keys[h * word + j] = d_weight * share;
            d_masks[h * word + j] = mask * (2 * key * d_weight + lane_sum<T>(for_square));
        }
    }
}
template <class T> void apply_mask(T* x, int n, T least) {
    sweep<T>(n, [&](int i, auto io) { io.store(x + i, least + (1 - least) * logistic(io.load(x + i))); });
}
template <class T> void mask_backward(const T* y, T* d, int n, T least) {
    sweep<T>(n, [&](int i, auto io) {
        const Vec<T> v = io.load(y + i);
        io.store(d + i, io.load(d + i) * (v - least) * (1 - v) / (1 - least));
    });
}

// Lookups of some heads into the same memory; all their parameters are in the interface vector, at these places.
template <class T> struct Lookup {
    Slots<T> slots;
    int word, heads, keys, strengths;
    int masks;         // -1: none
    T least_strength;  // what is added to the strengths of the interface vector
    T epsilon, least_mask;

    bool masked() const { return masks >= 0; }
    // Masked heads have norms of the memory of their own, [head][slot]; else they share them.
    int64_t norms_size() const { return masked() ? (int64_t)heads * slots.padded : slots.padded; }
    const T* norms_of(const T* norms, int h) const { return norms + (masked() ? (int64_t)h * slots.padded : 0); }
    T key_norm(const T* a, int h) const {
        const T* key = a + keys + h * word;
        return masked() ? masked_norm(key, a + masks + h * word, word, epsilon) : norm(key, word, epsilon);
    }
    T strength(const T* a, int h) const { return least_strength + a[strengths + h]; }
    // Those of other heads, whose parameters follow in the same parts after `before` heads.
    Lookup after(int before, int others) const {
        const int further = before * word;
        return {slots, word, others, keys + further, strengths + before, masked() ? masks + further : -1,
                least_strength, epsilon, least_mask};
    }
    // a: activated interface vector. made: where norms go; null: they are there already.
    void forward(const T* a, const T* memory, const T* norms, T* made, T* cosine, T* content) const {
        if (masked())
            masked_dot_products(slots, word, epsilon, memory, heads, a + keys, a + masks, cosine, made);
        else
            dot_products(slots, word, epsilon, memory, heads, a + keys, cosine, made);
        weigh(a, norms, cosine, content);
    }
    // What forward makes of the dot products, which are in cosine.
    void weigh(const T* a, const T* norms, T* cosine, T* content) const {
        for (int h = 0; h < heads; h++) {
            const int64_t head = (int64_t)h * slots.padded;
            content_weights(slots, epsilon, norms_of(norms, h), key_norm(a, h), strength(a, h), cosine + head,
                            content + head);
        }
    }
    // Scratch: norms, a scale per head, and 4 * word vectors.
    int64_t backward_scratch() const { return norms_size() + round_up<T>(heads) + 4 * word * LANES<T>; }
    // d_content is lost; adds to d_memory, sets what d has of these heads: keys, strengths and masks.
    void backward(const T* a, const T* memory, const T* norms, const T* cosine, const T* content, T* d_content,
                  T* d_memory, T* d, T* scratch) const {
        T *d_norms = scratch, *key_scales = d_norms + norms_size(), *sums = key_scales + round_up<T>(heads);
        weigh_backward(a, norms, cosine, content, d_content, d, d_norms, key_scales);
        if (!masked()) {
            dot_products_backward(slots, word, memory, norms, d_norms, heads, a + keys, d_content, d_memory, d + keys,
                                  sums);
            key_norms_backward(a, key_scales, d);
            return;
        }
        masked_dot_products_backward(slots, word, memory, norms, d_norms, heads, a + keys, a + masks, d_content,
                                     d_memory, d + keys, d + masks);
        for (int h = 0; h < heads; h++) {
            for (int j = h * word; j < (h + 1) * word; j++) {
                const T key = a[keys + j], mask = a[masks + j];
                d[keys + j] += key_scales[h] * key * mask * mask;
                d[masks + j] += key_scales[h] * key * key * mask;
            }
        }
        mask_backward(a + masks, d + masks, heads * word, least_mask);
    }
    // d_content: in, its gradient; out, that of the dot products. Sets d_norms, key_scales and what d has of strengths.
    void weigh_backward(const T* a, const T* norms, const T* cosine, const T* content, T* d_content, T* d, T* d_norms,
                        T* key_scales) const {
        std::memset(d_norms, 0, norms_size() * sizeof(T));
        for (int h = 0; h < heads; h++) {
            const int64_t head = (int64_t)h * slots.padded;
            const T size = key_norm(a, h);
            T d_size;
            content_weights_backward(slots, epsilon, norms_of(norms, h), size, strength(a, h), cosine + head, content + head,
                                     d_content + head, d_norms + (norms_of(norms, h) - norms), d[strengths + h], d_size);
            key_scales[h] = d_size / size;
        }
    }
    // What comes to keys without masks through their norms.
    void key_norms_backward(const T* a, const T* key_scales, T* d) const {
        for (int h = 0; h < heads; h++)
            for (int j = h * word; j < (h + 1) * word; j++) d[keys + j] += key_scales[h] * a[keys + j];
    }
};

}  // namespace native
