// The delta rule over a whole sequence, forward and backward: core/accessors/delta.py. Each head of each row of the batch
// has a matrix of its own, which stays in cache for all steps.
#pragma once
#include "simd.h"
#include "threads.h"

namespace native {

// Sizes, where parts of the interface vector begin, and the largest write gate. The way back starts from memories that
// are stored every `every` steps, and computes those between again.
struct Delta {
    int64_t steps, batch, heads, rules, key, value, interface, keys, values, gates, queries, threads, every;
    double largest_gate, shortest;
};

template <class T> class DeltaHead {
    const Delta& p;
    const int key_size, value_size, rows, width, size;  // of a memory, with whole vectors
    const int64_t head, job;

    // What a rule does: its key, the key's length before, what it adds to what the key finds, and its gate.
    struct Rule {
        T *key, *change, length, gate;
    };

  public:
    DeltaHead(const Delta& problem, int64_t index)
        : p(problem), key_size(int(p.key)), value_size(int(p.value)), rows(round_up<T>(key_size)),
          width(round_up<T>(value_size)), size(rows * width), head(index % p.heads), job(index) {}

    void forward(const T* vectors, const T* log_decay, const T* first, T* reads, T* saved, T* last) const {
        Space<T> memory = zeros<T>(size), word = zeros<T>(width), query = zeros<T>(rows), key = zeros<T>(rows);
        spread(first, memory.get());
        Rule rule{key.get(), word.get(), 0, 0};
        for (int64_t t = 0; t < p.steps; t++) {
            if (saved && t % p.every == 0) gather(memory.get(), kept(saved, t / p.every));
            if (log_decay) scale(memory.get(), decay_of(log_decay, t));
            for (int64_t r = 0; r < p.rules; r++) {
                find(vectors, t, r, memory.get(), rule);
                add(memory.get(), rule.key, rule.change, rule.gate);
            }
            unit(vector_at(vectors, t) + p.queries + head * p.key, query.get());
            look_up(memory.get(), query.get(), word.get());
            std::copy_n(word.get(), value_size, reads + at(t) * p.value);
        }
        gather(memory.get(), last + job * p.key * p.value);
    }

    void backward(const T* vectors, const T* log_decay, const T* saved, const T* d_reads, const T* d_last, T* d_vectors,
                  T* d_log_decay, T* d_first) const {
        const int64_t every = std::min(p.every, p.steps), per_step = p.rules + 1;
        Space<T> before = zeros<T>(size_t(every * per_step * size)), room = zeros<T>(size_t(every * p.rules * (rows + width)));
        Space<T> d_memory = zeros<T>(size), word = zeros<T>(width), along = zeros<T>(rows), other = zeros<T>(rows);
        Space<T> query = zeros<T>(rows);
        Space<Rule> rules(size_t(every * p.rules));
        for (int64_t i = 0; i < every * p.rules; i++) rules[i] = {&room[i * (rows + width)], &room[i * (rows + width) + rows], 0, 0};
        spread(d_last + job * p.key * p.value, d_memory.get());
        for (int64_t chunk = (p.steps - 1) / p.every; chunk >= 0; chunk--) {
            const int64_t begin = chunk * p.every, end = std::min(begin + p.every, p.steps);
            // Memories before each rule and after the last, of all steps.
            const auto memory_at = [&](int64_t t, int64_t r) { return &before[((t - begin) * per_step + r) * size]; };
            for (int64_t t = begin; t < end; t++) {
                if (t == begin) spread(kept(saved, chunk), memory_at(t, 0));
                else std::copy_n(memory_at(t - 1, p.rules), size, memory_at(t, 0));
                if (log_decay) scale(memory_at(t, 0), decay_of(log_decay, t));
                for (int64_t r = 0; r < p.rules; r++) {
                    Rule& rule = rules[(t - begin) * p.rules + r];
                    find(vectors, t, r, memory_at(t, r), rule);
                    std::copy_n(memory_at(t, r), size, memory_at(t, r + 1));
                    add(memory_at(t, r + 1), rule.key, rule.change, rule.gate);
                }
            }
            for (int64_t t = end - 1; t >= begin; t--) {
                T* d_vector = d_vectors + (t * p.batch + job / p.heads) * p.interface;
                const T length = unit(vector_at(vectors, t) + p.queries + head * p.key, query.get());
                std::copy_n(d_reads + at(t) * p.value, value_size, word.get());
                products(memory_at(t, p.rules), word.get(), along.get());
                to_raw(query.get(), length, along.get(), d_vector + p.queries + head * p.key);
                add(d_memory.get(), query.get(), word.get(), T(1));
                for (int64_t r = p.rules - 1; r >= 0; r--) {
                    const Rule& rule = rules[(t - begin) * p.rules + r];
                    const int64_t place = r * p.heads + head;
                    look_up(d_memory.get(), rule.key, word.get());
                    T d_gate = 0;
                    for (int v = 0; v < value_size; v++) d_gate += word[v] * rule.change[v];
                    d_vector[p.gates + place] = d_gate * rule.gate * (1 - rule.gate / T(p.largest_gate));
                    for (int v = 0; v < value_size; v++) word[v] *= rule.gate;
                    std::copy_n(word.get(), value_size, d_vector + p.values + place * p.value);
                    products(d_memory.get(), rule.change, along.get());
                    products(memory_at(t, r), word.get(), other.get());
                    for (int k = 0; k < key_size; k++) along[k] = rule.gate * along[k] - other[k];
                    to_raw(rule.key, rule.length, along.get(), d_vector + p.keys + place * p.key);
                    add(d_memory.get(), rule.key, word.get(), T(-1));
                }
                if (log_decay) {
                    d_log_decay[at(t)] = inner(d_memory.get(), memory_at(t, 0), size);
                    scale(d_memory.get(), decay_of(log_decay, t));
                }
            }
        }
        gather(d_memory.get(), d_first + job * p.key * p.value);
    }

  private:
    int64_t at(int64_t t) const { return t * p.batch * p.heads + job; }
    const T* vector_at(const T* vectors, int64_t t) const { return vectors + (t * p.batch + job / p.heads) * p.interface; }
    T decay_of(const T* log_decay, int64_t t) const { return std::exp(log_decay[at(t)]); }
    T* kept(T* saved, int64_t chunk) const { return saved + (chunk * p.batch * p.heads + job) * p.key * p.value; }
    const T* kept(const T* saved, int64_t chunk) const { return kept(const_cast<T*>(saved), chunk); }

    // A matrix [key, value] to whole vectors and back; beyond it there are zeros.
    void spread(const T* from, T* memory) const {
        for (int k = 0; k < key_size; k++) std::copy_n(from + k * value_size, value_size, memory + k * width);
    }
    void gather(const T* memory, T* to) const {
        for (int k = 0; k < key_size; k++) std::copy_n(memory + k * width, value_size, to + k * value_size);
    }

    void find(const T* vectors, int64_t t, int64_t r, const T* memory, Rule& rule) const {
        const T* vector = vector_at(vectors, t);
        const int64_t place = r * p.heads + head;
        rule.length = unit(vector + p.keys + place * p.key, rule.key);
        rule.gate = T(p.largest_gate) / (1 + std::exp(-vector[p.gates + place]));
        look_up(memory, rule.key, rule.change);
        const T* wanted = vector + p.values + place * p.value;
        for (int v = 0; v < value_size; v++) rule.change[v] = wanted[v] - rule.change[v];
    }

    // A vector brought to length 1, and what its length was, or the shortest that counts.
    T unit(const T* raw, T* out) const {
        std::copy_n(raw, key_size, out);
        const T length = std::max(std::sqrt(inner(out, out, rows)), T(p.shortest));
        for (int k = 0; k < key_size; k++) out[k] /= length;
        return length;
    }
    // The gradient of what was brought to length 1, from that of the result, whose elements beyond are any.
    void to_raw(const T* units, T length, const T* gradient, T* out) const {
        T along = 0;
        if (length > T(p.shortest))
            for (int k = 0; k < key_size; k++) along += units[k] * gradient[k];
        for (int k = 0; k < key_size; k++) out[k] = (gradient[k] - along * units[k]) / length;
    }

    static T inner(const T* a, const T* b, int count) {
        Vec<T> sum{};
        for (int i = 0; i < count; i += LANES<T>) sum += load(a + i) * load(b + i);
        return lane_sum<T>(sum);
    }
    void scale(T* memory, T factor) const {
        for (int i = 0; i < size; i += LANES<T>) store(memory + i, factor * load(memory + i));
    }
    // memory += factor key wordᵀ
    void add(T* memory, const T* key, const T* word, T factor) const {
        for (int v = 0; v < width; v += LANES<T>) {
            const Vec<T> scaled = factor * load(word + v);
            T* column = memory + v;
            for (int k = 0; k < key_size; k++, column += width) store(column, load(column) + key[k] * scaled);
        }
    }
    // word = memoryᵀ key; four sums at a time, for each has to wait for itself
    void look_up(const T* memory, const T* key, T* word) const {
        for (int v = 0; v < width; v += LANES<T>) {
            Vec<T> sums[4] = {};
            const T* column = memory + v;
            for (int k = 0; k < rows; k += 4, column += 4 * width)
                for (int i = 0; i < 4; i++) sums[i] += key[k + i] * load(column + i * width);
            store(word + v, (sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
    }
    // key = memory word
    void products(const T* memory, const T* word, T* key) const {
        for (int k = 0; k < rows; k += LANES<T>) {
            Vec<T> sums[LANES<T>] = {};
            for (int v = 0; v < width; v += LANES<T>) {
                const Vec<T> w = load(word + v);
                for (int lane = 0; lane < LANES<T>; lane++) sums[lane] += w * load(memory + (k + lane) * width + v);
            }
            store(key + k, lane_sums<T>(sums));
        }
    }
};

// vectors [T, B, interface], log_decay [T, B, H] or null, first and last [B, H, K, V], reads [T, B, H, V]; saved, for the
// way back, [memories, B, H, K, V] or null.
template <class T>
void delta_forward(const Delta& p, const T* vectors, const T* log_decay, const T* first, T* reads, T* saved, T* last) {
    for_ranges(p.threads, p.batch * p.heads, piece_of(p.threads, p.batch * p.heads), [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; job++)
            DeltaHead<T>(p, job).forward(vectors, log_decay, first + job * p.key * p.value, reads, saved, last);
    });
}

// Gradients: d_vectors everywhere but where the interface has something else than keys, values, gates and queries.
template <class T>
void delta_backward(const Delta& p, const T* vectors, const T* log_decay, const T* saved, const T* d_reads,
                    const T* d_last, T* d_vectors, T* d_log_decay, T* d_first) {
    for_ranges(p.threads, p.batch * p.heads, piece_of(p.threads, p.batch * p.heads), [&](int64_t begin, int64_t end) {
        for (int64_t job = begin; job < end; job++)
            DeltaHead<T>(p, job).backward(vectors, log_decay, saved, d_reads, d_last, d_vectors, d_log_decay, d_first);
    });
}

}  // namespace native
