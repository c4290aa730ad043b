// Dynamic memory allocation of one row of the batch (core/addressing.py: allocation_weights).
#pragma once
#include <vector>

#include "read_write.h"

namespace native {

constexpr int MOST_RANKED = 128;  // up to here counting the smaller ones is faster than sorting

// Slots by usage, ascending; ties by number. keys holds 2 * count values.
inline void sort_slots(int count, const float* used, int32_t* order, uint64_t* keys) {
    uint64_t *from = keys, *to = keys + count;
    for (int i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, used + i, sizeof(bits));
        bits ^= bits >> 31 ? 0xffffffffu : 0x80000000u;
        from[i] = (uint64_t)bits << 32 | (uint32_t)i;
    }
    for (int shift = 32; shift < 64; shift += 8) {
        int start[256] = {0};
        for (int i = 0; i < count; i++) start[from[i] >> shift & 255]++;
        if (start[from[0] >> shift & 255] == count) continue;
        for (int digit = 0, sum = 0; digit < 256; digit++) {
            const int here = start[digit];
            start[digit] = sum;
            sum += here;
        }
        for (int i = 0; i < count; i++) to[start[from[i] >> shift & 255]++] = from[i];
        std::swap(from, to);
    }
    for (int i = 0; i < count; i++) order[i] = (int32_t)(uint32_t)from[i];
}
inline void sort_slots(int count, const double* used, int32_t* order, uint64_t* keys) {
    for (int i = 0; i < count; i++) {
        uint64_t bits;
        std::memcpy(&bits, used + i, sizeof(bits));
        keys[i] = bits ^ (bits >> 63 ? ~uint64_t(0) : uint64_t(1) << 63);
        order[i] = i;
    }
    std::stable_sort(order, order + count, [&](int32_t a, int32_t b) { return keys[a] < keys[b]; });
}
template <class T> void rank_slots(const Slots<T>& slots, const T* used, int32_t* order) {
    using Integers = typename Traits<T>::Integers;
    Integers lanes;
    for (int i = 0; i < LANES<T>; i++) lanes[i] = i;
    for (int n = 0; n < slots.padded; n += LANES<T>) {
        const Vec<T> x = load(used + n);
        Integers rank{};
        const int inside = std::min(n + LANES<T>, slots.count);
        for (int i = 0; i < n; i++) rank -= used[i] <= x;
        for (int i = n; i < inside; i++) rank -= (used[i] < x) | ((used[i] == x) & (lanes > i - n));
        for (int i = inside; i < slots.count; i++) rank -= used[i] < x;
        for (int i = n; i < inside; i++) order[rank[i - n]] = i;
    }
}

// allocation[order[k]] = (1 - used[order[k]]) Π_{i<k} used[order[i]]. What is no number comes last.
template <class T>
void allocate(const Slots<T>& slots, const T* used, int32_t* order, T* allocation) {
    T* keys = allocation;
    for (int n = 0; n < slots.padded; n += LANES<T>) {
        const Vec<T> u = load(used + n);
        store(keys + n, u == u ? u : splat(std::numeric_limits<T>::infinity()));
    }
    if (slots.count <= MOST_RANKED) {
        rank_slots(slots, keys, order);
    } else {
        std::vector<uint64_t> bits(2 * slots.count);
        sort_slots(slots.count, keys, order, bits.data());
    }
    for (int n = slots.count; n < slots.padded; n++) allocation[n] = 0;
    T smaller = 1;
    for (int k = 0; k < slots.count; k++) {
        const int n = order[k];
        allocation[n] = (1 - used[n]) * smaller;
        smaller *= used[n];
    }
}

// Adds the gradient of used.
template <class T>
void allocate_backward(const Slots<T>& slots, const T* used, const int32_t* order, const T* allocation,
                       const T* d_allocation, T* d_used) {
    T later = 0, smaller = 1;
    for (int k = slots.count - 1; k >= 0; k--) {
        const int n = order[k];
        d_used[n] += later / used[n];
        later += d_allocation[n] * allocation[n];
    }
    for (int k = 0; k < slots.count; k++) {
        const int n = order[k];
        d_used[n] -= d_allocation[n] * smaller;
        smaller *= used[n];
    }
}

}  // namespace native
