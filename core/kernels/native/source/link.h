// The DNC's temporal links of one row and one write head (core/addressing.py: link, directional_weights).
// An update acts on each element alone, L[i,j] = (1 - w[i] - w[j]) L[i,j] + w[i] p[j]. So the matrix is stored only every
// few steps, and the updates since then are applied again in registers wherever it is needed: that costs less than
// writing it to memory and reading it back.
#pragma once
#include "content.h"

namespace native {

// Rows of the matrix that are worked on together. With AVX2 some of them leave the registers, which costs less than to
// pass over the vectors that all rows need once more.
constexpr int LINK_ROWS = 4;
// Updates since the matrix was stored, at most: keep_every (sequence.py) is no more.
constexpr int MOST_UPDATES = 8;

// Write weights of a step and the precedence before it.
template <class T> struct LinkUpdate {
    const T *weights, *precedence;
};

// Updates of ROWS rows of the matrix from row i on, with what is the same in all of their columns.
template <class T, int ROWS> struct RowUpdates {
    const T *weights[MOST_UPDATES], *precedence[MOST_UPDATES];
    Vec<T> row[MOST_UPDATES][ROWS], rest[MOST_UPDATES][ROWS];  // w[i] and 1 - w[i]

    RowUpdates(const LinkUpdate<T>* updates, int count, int i) {
        for (int u = 0; u < count; u++) {
            weights[u] = updates[u].weights;
            precedence[u] = updates[u].precedence;
            for (int r = 0; r < ROWS; r++) {
                row[u][r] = splat(weights[u][i + r]);
                rest[u][r] = 1 - row[u][r];
            }
        }
    }
};

// ROWS vectors of the matrix, from a row and column j on, after the first `count` updates; the diagonal is not yet zero.
template <class T, int ROWS>
ALWAYS_INLINE void load_links(const T* rows, int N, int j, const RowUpdates<T, ROWS>& updates, int count, Vec<T>* x) {
    for (int r = 0; r < ROWS; r++) {
        const T* here = rows + (size_t)r * N + j;
        x[r] = load(here);
        __builtin_prefetch(here + (size_t)ROWS * N);
    }
    for (int u = 0; u < count; u++) {
        const Vec<T> w = load(updates.weights[u] + j), p = load(updates.precedence[u] + j);
        for (int r = 0; r < ROWS; r++) x[r] = (updates.rest[u][r] - w) * x[r] + updates.row[u][r] * p;
    }
}
template <class T, int ROWS> inline void zero_diagonal(int i, int j, Vec<T>* x) {
    if (i + ROWS <= j || i >= j + LANES<T>) return;
    // By comparison: an index that is no constant would force the vectors into memory.
    const Vec<T> lanes = lane_numbers<T>();
    for (int r = 0; r < ROWS; r++) x[r] = lanes == T(i + r - j) ? Vec<T>{} : x[r];
}
// Calls body(row, head, sum over the lanes). Through memory, so that the loop before keeps its registers.
template <class T, int ROWS, int K, class F> ALWAYS_INLINE void reduce(const Vec<T> (&x)[ROWS][K], F&& body) {
    T vectors[ROWS * K * LANES<T>], sums[ROWS * K];
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < K; h++) store(vectors + (r * K + h) * LANES<T>, x[r][h]);
    lane_sums<T>(vectors, ROWS * K, sums);
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < K; h++) body(r, h, sums[r * K + h]);
}

// follow_links for ROWS rows from row i on and K heads. A function of its own, whose arguments are its own: what is known
// by reference would be loaded again after every vector that is stored.
template <class T, int K, int ROWS>
void follow_rows(int N, int i, const T* stored, T* out, const LinkUpdate<T>* all_updates, int count, const T* reading,
                 T* ahead, T* behind) {
    const RowUpdates<T, ROWS> updates(all_updates, count, i);
    const T* reading_rows = reading + i;
    const size_t first = (size_t)i * N;
    Vec<T> sums[ROWS][K] = {};
    for (int j = 0; j < N; j += LANES<T>) {
        Vec<T> x[ROWS];
        load_links<T, ROWS>(stored + first, N, j, updates, count, x);
        zero_diagonal<T, ROWS>(i, j, x);
        if (out)
            for (int r = 0; r < ROWS; r++) store(out + first + (size_t)r * N + j, x[r]);
        for (int h = 0; h < K; h++) {
            const size_t at = (size_t)h * N;
            const Vec<T> w = load(reading + at + j);
            Vec<T> sum = load(behind + at + j);
            for (int r = 0; r < ROWS; r++) {
                sums[r][h] += x[r] * w;
                sum += reading_rows[at + r] * x[r];
            }
            store(behind + at + j, sum);
        }
    }
    reduce<T, ROWS, K>(sums, [&](int r, int h, T sum) { ahead[(size_t)h * N + i + r] = sum; });
}
// The matrix after all updates: forward[h,i] = Σ_j L[i,j] read[h,j], backward[h,j] = Σ_i L[i,j] read[h,i]; stored in
// `out` unless null, which may be `stored`.
template <class T>
void follow_links(const Slots<T>& slots, const T* stored, T* out, const LinkUpdate<T>* updates, int count, int reads,
                  const T* read_weights, T* forward, T* backward) {
    const int N = slots.padded;
    std::memset(backward, 0, sizeof(T) * reads * N);
    head_groups(reads, [&](auto group, int first) {
        constexpr int K = group;
        const T* reading = read_weights + (size_t)first * N;
        T *ahead = forward + (size_t)first * N, *behind = backward + (size_t)first * N;
        T* store_to = first + K == reads ? out : nullptr;  // in the last group, since out may be stored
        row_groups<LINK_ROWS>(slots.count, [&](auto rows, int i) {
            follow_rows<T, K, rows>(N, i, stored, store_to, updates, count, reading, ahead, behind);
        });
        for (int h = 0; h < K; h++)
            for (int n = slots.count; n < N; n++) ahead[(size_t)h * N + n] = 0;
    });
}

// follow_links_backward for ROWS rows from row i on and K heads; the last of all heads undo the last update as well.
template <class T, int K, int ROWS, bool LAST>
void follow_rows_backward(int N, int i, const T* stored, const LinkUpdate<T>* all_updates, int count, const T* reading,
                          const T* d_ahead, const T* d_behind, T* d_links, T* d_weights, T* d_precedence, T* d_reading) {
    const RowUpdates<T, ROWS> updates(all_updates, count, i);
    const int last = count - 1;
    const T *weights = all_updates[last].weights, *precedence = all_updates[last].precedence;
    const T *reading_rows = reading + i, *d_ahead_rows = d_ahead + i;
    const size_t first = (size_t)i * N;
    Vec<T> for_reading[ROWS][K] = {}, for_weights[ROWS] = {};
    for (int j = 0; j < N; j += LANES<T>) {
        Vec<T> before[ROWS], after[ROWS], d[ROWS], factor[ROWS];
        load_links<T, ROWS>(stored + first, N, j, updates, last, before);
        zero_diagonal<T, ROWS>(i, j, before);
        const Vec<T> w = load(weights + j), p = load(precedence + j);
        for (int r = 0; r < ROWS; r++) {
            factor[r] = updates.rest[last][r] - w;
            after[r] = factor[r] * before[r] + updates.row[last][r] * p;
            const T* here = d_links + first + (size_t)r * N + j;
            d[r] = load(here);
            __builtin_prefetch(here + (size_t)ROWS * N, 1);
        }
        zero_diagonal<T, ROWS>(i, j, after);
        for (int h = 0; h < K; h++) {
            const size_t at = (size_t)h * N;
            const Vec<T> reads_here = load(reading + at + j), d_b = load(d_behind + at + j);
            Vec<T> sum = load(d_reading + at + j);
            for (int r = 0; r < ROWS; r++) {
                d[r] += d_ahead_rows[at + r] * reads_here;
                d[r] += reading_rows[at + r] * d_b;
                sum += d_ahead_rows[at + r] * after[r];
                for_reading[r][h] += d_b * after[r];
            }
            store(d_reading + at + j, sum);
        }
        zero_diagonal<T, ROWS>(i, j, d);
        if constexpr (LAST) {
            Vec<T> d_w = load(d_weights + j), d_p = load(d_precedence + j);
            for (int r = 0; r < ROWS; r++) {
                const Vec<T> product = d[r] * before[r];
                d_w -= product;
                for_weights[r] += d[r] * p - product;
                d_p += updates.row[last][r] * d[r];
                d[r] *= factor[r];
            }
            store(d_weights + j, d_w);
            store(d_precedence + j, d_p);
        }
        for (int r = 0; r < ROWS; r++) store(d_links + first + (size_t)r * N + j, d[r]);
    }
    reduce<T, ROWS, K>(for_reading, [&](int r, int h, T sum) { d_reading[(size_t)h * N + i + r] += sum; });
    if constexpr (LAST)
        for (int r = 0; r < ROWS; r++) d_weights[i + r] += lane_sum<T>(for_weights[r]);
}
// Backward of follow_links and of the last update. d_links: in, gradient of the matrix after it; out, before it.
// Adds to d_weights [N], d_precedence [N] and d_read_weights [reads, N].
template <class T>
void follow_links_backward(const Slots<T>& slots, const T* stored, const LinkUpdate<T>* updates, int count, int reads,
                           const T* read_weights, const T* d_forward, const T* d_backward, T* d_links, T* d_weights,
                           T* d_precedence, T* d_read_weights) {
    const int N = slots.padded;
    head_groups(reads, [&](auto group, int first) {
        constexpr int K = group;
        const size_t offset = (size_t)first * N;
        auto rows_of = [&](auto last_group) {
            row_groups<LINK_ROWS>(slots.count, [&](auto rows, int i) {
                follow_rows_backward<T, K, rows, last_group>(
                    N, i, stored, updates, count, read_weights + offset, d_forward + offset, d_backward + offset, d_links,
                    d_weights, d_precedence, d_read_weights + offset);
            });
        };
        if (first + K == reads)
            rows_of(std::true_type{});
        else
            rows_of(std::false_type{});
    });
}

// What sharpening adds: to a weight before its logarithm, and to the sum of the weights.
template <class T> struct Sharpening {
    T weight_epsilon, sum_epsilon;
};
// Softmax over slots of power * log(weight), the weight kept from falling below zero; returns the sum of those weights.
template <class T>
T power_shares(const Slots<T>& slots, const Sharpening<T>& adds, const T* weights, T power, T* shares) {
    Vec<T> total{};
    softmax(slots, shares, [&](int n) {
        const Vec<T> w = at_least(load(weights + n), Vec<T>{});
        total += w;
        return power * logarithm(w + adds.weight_epsilon);
    });
    return lane_sum<T>(total);
}
// Directional weights raised to a power and renormalised (improved DNC; core/addressing.py: sharpen_links).
template <class T>
void sharpen_links(const Slots<T>& slots, const Sharpening<T>& adds, const T* weights, T power, T* out) {
    const T total = power_shares(slots, adds, weights, power, out), scale = total / (total + adds.sum_epsilon);
    for (int n = 0; n < slots.padded; n += LANES<T>) store(out + n, scale * load(out + n));
}
// d: in, gradient of the result; out, of the weights. Returns the gradient of the power.
template <class T>
T sharpen_links_backward(const Slots<T>& slots, const Sharpening<T>& adds, const T* weights, T power, T* d, T* shares) {
    const T total = power_shares(slots, adds, weights, power, shares), bounded = total + adds.sum_epsilon;
    const T scale = total / bounded;
    Vec<T> sum{}, for_power{};
    for (int n = 0; n < slots.padded; n += LANES<T>) sum += load(d + n) * load(shares + n);
    const T mean = lane_sum<T>(sum), d_total = mean * adds.sum_epsilon / (bounded * bounded);
    for (int n = 0; n < slots.padded; n += LANES<T>) {
        const Vec<T> w = load(weights + n), x = at_least(w, Vec<T>{}) + adds.weight_epsilon;
        const Vec<T> d_log = scale * load(shares + n) * (load(d + n) - mean);
        for_power += slots.masked(n, d_log * logarithm(x));
        store(d + n, slots.masked(n, w < T(0) ? Vec<T>{} : power * d_log / x + d_total));
    }
    return lane_sum<T>(for_power);
}

}  // namespace native
