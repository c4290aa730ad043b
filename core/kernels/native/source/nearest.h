// The words of a large memory that are most similar to a key, in one pass over the memory (Rae et al. 2016, 3.1).
#pragma once
#include "sequence.h"

namespace native {

// Rows that a thread is worth starting for, and groups of rows that are fetched ahead: their order is not one that the
// processor foresees, and the words come from far away.
constexpr int64_t ROWS_PER_THREAD = 1 << 16, GROUPS_AHEAD = 4;

template <class T> struct Found {
    T value;
    int64_t slot;
};

// The largest values met so far; of equal values those offered first stay.
template <class T> struct Best {
    Found<T>* found;
    int64_t count, filled, smallest;

    void offer(T value, int64_t slot) {
        if (filled < count) {
            found[filled++] = {value, slot};
            if (filled == count) find_smallest();
        } else if (value > found[smallest].value) {
            found[smallest] = {value, slot};
            find_smallest();
        }
    }
    bool takes(T value) const { return filled < count || value > found[smallest].value; }
    void sort_by_slot() {
        std::sort(found, found + filled, [](const Found<T>& a, const Found<T>& b) { return a.slot < b.slot; });
    }

  private:
    // The one that leaves first: of equal values the last.
    void find_smallest() {
        smallest = 0;
        for (int64_t k = 1; k < count; k++) {
            const Found<T>&a = found[k], &b = found[smallest];
            if (a.value < b.value || (a.value == b.value && a.slot > b.slot)) smallest = k;
        }
    }
};

// The products of the words of LANES rows with one key, a row in each lane.
template <class T> ALWAYS_INLINE Vec<T> products(const T* rows, const T* key, int word) {
    Vec<T> sums[LANES<T>];
    for (Vec<T>& sum : sums) sum = Vec<T>{};
    sweep<T>(word, [&](int w, auto io) {
        const Vec<T> k = io.load(key + w);
        const T* row = rows + w;
        for (int lane = 0; lane < LANES<T>; lane++, row += word) sums[lane] += io.load(row) * k;
    });
    return lane_sums<T>(sums);
}

// Similarities key · word / (|key| |word| + epsilon) of the rows from begin to end, offered to each key's best.
template <class T>
void offer_rows(const T* memory, const T* norms, const T* keys, const T* key_norms, int word, int64_t reads, T epsilon,
                int64_t begin, int64_t end, Best<T>* best) {
    std::vector<T> last;  // of fewer rows than lanes
    for (int64_t first = begin; first < end; first += LANES<T>) {
        const int here = int(std::min<int64_t>(LANES<T>, end - first));
        const char* ahead = (const char*)(memory + (first + GROUPS_AHEAD * LANES<T>) * word);
        for (int64_t byte = 0; byte < LANES<T> * word * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(ahead + byte);
        const T* rows = memory + first * word;
        if (here < LANES<T>) {
            last.assign(LANES<T> * word, 0);
            std::copy_n(rows, here * word, last.begin());
            rows = last.data();
        }
        const Vec<T> row_norms = here == LANES<T> ? load(norms + first) : Part<T>{here}.load(norms + first);
        for (int64_t r = 0; r < reads; r++) {
            Vec<T> similarity = products<T>(rows, keys + r * word, word) / (row_norms * key_norms[r] + epsilon);
            // What is no number counts as the smallest.
            similarity = similarity == similarity ? similarity : splat(-std::numeric_limits<T>::infinity());
            if (here == LANES<T> && !best[r].takes(lane_max<T>(similarity))) continue;
            for (int lane = 0; lane < here; lane++) best[r].offer(similarity[lane], first + lane);
        }
    }
}

// Sizes of a search; `stride` and `norm_stride` are the distances between the memories, and norms, of the batch.
struct Search {
    int64_t batch, rows, word, reads, count, threads, stride, norm_stride;
    double epsilon;
};

// slots [batch, reads, count], in ascending order, of the most similar of `rows` words to each key.
template <class T>
void nearest(const Search& p, const T* memory, const T* norms, const T* keys, const T* key_norms, int64_t* slots) {
    const int64_t parts = std::max<int64_t>(1, std::min(p.threads, p.rows / std::max(ROWS_PER_THREAD, p.count)));
    const int64_t jobs = p.batch * parts;
    std::vector<Found<T>> found(size_t(jobs * p.reads * p.count));
    std::vector<Best<T>> best;
    for (int64_t i = 0; i < jobs * p.reads; i++) best.push_back({&found[size_t(i * p.count)], p.count, 0, 0});
    for_ranges(p.threads, jobs, piece_of(p.threads, jobs), [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; job++) {
            const int64_t b = job / parts, part = job % parts;
            offer_rows<T>(memory + b * p.stride, norms + b * p.norm_stride, keys + b * p.reads * p.word,
                          key_norms + b * p.reads, int(p.word), p.reads, T(p.epsilon), p.rows * part / parts,
                          p.rows * (part + 1) / parts, &best[size_t(job * p.reads)]);
        }
    });
    for (int64_t b = 0; b < p.batch; b++) {
        for (int64_t r = 0; r < p.reads; r++) {
            Best<T>& all = best[size_t(b * parts * p.reads + r)];
            for (int64_t part = 1; part < parts; part++) {
                Best<T>& other = best[size_t((b * parts + part) * p.reads + r)];
                other.sort_by_slot();
                for (int64_t k = 0; k < p.count; k++) all.offer(other.found[k].value, other.found[k].slot);
            }
            all.sort_by_slot();
            for (int64_t k = 0; k < p.count; k++) slots[(b * p.reads + r) * p.count + k] = all.found[k].slot;
        }
    }
}

}  // namespace native
