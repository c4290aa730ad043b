// The delta rule over a whole sequence, forward and backward: core/accessors/delta.py. Each head of each row of the batch
// has a matrix of its own, which stays in cache for all steps.
#pragma once
#include <vector>

#include "simd.h"
#include "threads.h"

namespace native {

// Steps from which on something is fetched.
constexpr int64_t AHEAD = 4;

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
    Space<T> own, found_word, own_query, own_key, along_key;

    // What a rule does: its key, the key's length before, what it adds to what the key finds, and its gate.
    struct Rule {
        T *key, *change, length, gate;
    };

  public:
    DeltaHead(const Delta& problem, int64_t row, int64_t number)
        : p(problem), key_size(int(p.key)), value_size(int(p.value)), rows(rows_of(p)),
          width(round_up<T>(value_size)), size(rows * width), head(number), job(row * p.heads + number),
          own(zeros<T>(size_t(size))), found_word(zeros<T>(size_t(width))), own_query(zeros<T>(size_t(rows))),
          own_key(zeros<T>(size_t(rows))), along_key(zeros<T>(size_t(rows))) {}

    // What the way back keeps of the steps of a chunk; of each step as well what its memory gives for the gradient of
    // what was read, that of its query.
    struct Record {
        Space<T> memories, room, along_queries;
        Space<Rule> rules;
    };
    static Record record(const Delta& p) {
        const int64_t every = std::min(p.every, p.steps), rows = rows_of(p), width = round_up<T>(int(p.value));
        Record made{zeros<T>(size_t((every * (p.rules + 1) + 1) * rows * width)),
                    zeros<T>(size_t(every * p.rules * (rows + width))), zeros<T>(size_t(every * rows)),
                    Space<Rule>(size_t(every * p.rules))};
        for (int64_t i = 0; i < every * p.rules; i++) {
            T* room = &made.room[size_t(i * (rows + width))];
            made.rules[size_t(i)] = {room, room + rows, 0, 0};
        }
        return made;
    }

    // Begin with a memory, or with its gradient, and give what it became.
    void begin(const T* first) { spread(first + job * p.key * p.value, own.get()); }
    void end(T* last) const { gather(own.get(), last + job * p.key * p.value); }

    // The steps of a chunk, from the memory that the chunk before has left.
    void forward(int64_t chunk, const T* vectors, const T* log_decay, T* reads, T* saved, T* changes) {
        if (saved) gather(own.get(), kept(saved, chunk));
        Rule rule{own_key.get(), found_word.get(), 0, 0};
        for (int64_t t = chunk * p.every; t < std::min((chunk + 1) * p.every, p.steps); t++) {
            fetch(vectors, t + AHEAD);
            if (log_decay) scale(own.get(), decay_of(log_decay, t), own.get());
            for (int64_t r = 0; r < p.rules; r++) {
                find(vectors, t, r, own.get(), rule);
                if (changes) copy(rule.change, value_size, changes + change_at(t, r));
                if (r + 1 < p.rules) add(own.get(), rule.key, rule.change, rule.gate, own.get());
            }
            unit(vector_at(vectors, t) + p.queries + head * p.key, own_query.get());
            add(own.get(), rule.key, rule.change, rule.gate, own.get(), own_query.get(), found_word.get());
            copy(found_word.get(), value_size, reads + at(t) * p.value);
        }
    }

    // Their gradients, from that of the memory that the chunk leaves.
    void backward(int64_t chunk, const T* vectors, const T* log_decay, const T* saved, const T* changes, const T* d_reads,
                  T* d_vectors, T* d_log_decay, const Record& record) {
        const int64_t first = chunk * p.every, last = std::min(first + p.every, p.steps);
        // Memories before each rule and after the last; without decay a step begins with what the one before has left.
        const int64_t per_step = p.rules + (log_decay ? 1 : 0);
        const auto memory_at = [&](int64_t t, int64_t r) { return &record.memories[size_t(((t - first) * per_step + r) * size)]; };
        const auto along_query_at = [&](int64_t t) { return &record.along_queries[size_t((t - first) * rows)]; };
        const auto rule_at = [&](int64_t t, int64_t r) -> Rule& { return record.rules[size_t((t - first) * p.rules + r)]; };
        for (int64_t t = first; t < last; t++) {
            fetch(vectors, t + AHEAD);
            if (t + AHEAD < p.steps) {
                prefetch<false>(d_reads + at(t + AHEAD) * p.value, p.value);
                prefetch<false>(changes + change_at(t + AHEAD, 0), p.rules * p.value);
            }
            if (t == first) spread(kept(saved, chunk), memory_at(t, 0));
            if (log_decay) scale(t == first ? memory_at(t, 0) : memory_at(t - 1, p.rules), decay_of(log_decay, t), memory_at(t, 0));
            copy(d_reads + at(t) * p.value, value_size, found_word.get());
            for (int64_t r = 0; r < p.rules; r++) {
                Rule& rule = rule_at(t, r);
                take(vectors, t, r, rule);
                copy(changes + change_at(t, r), value_size, rule.change);
                if (r + 1 < p.rules)
                    add(memory_at(t, r), rule.key, rule.change, rule.gate, memory_at(t, r + 1));
                else
                    add_and_products(memory_at(t, r), rule, memory_at(t, p.rules), found_word.get(), along_query_at(t));
            }
        }
        T* d_memory = own.get();
        for (int64_t t = last - 1; t >= first; t--) {
            fetch<true>(d_vectors, t - AHEAD);
            T* d_vector = d_vectors + (vector_at(vectors, t) - vectors);
            const T length = unit(vector_at(vectors, t) + p.queries + head * p.key, own_query.get());
            copy(d_reads + at(t) * p.value, value_size, found_word.get());
            to_raw(own_query.get(), length, along_query_at(t), d_vector + p.queries + head * p.key);
            add(d_memory, own_query.get(), found_word.get(), T(1), d_memory, rule_at(t, p.rules - 1).key, found_word.get());
            for (int64_t r = p.rules - 1; r >= 0; r--) {
                const Rule& rule = rule_at(t, r);
                const int64_t place = r * p.heads + head;
                if (r + 1 < p.rules) look_up(d_memory, rule.key, found_word.get());
                d_vector[p.gates + place] = inner(found_word.get(), rule.change, width) * rule.gate * (1 - rule.gate / T(p.largest_gate));
                for (int v = 0; v < width; v += LANES<T>) store(&found_word[size_t(v)], rule.gate * load(&found_word[size_t(v)]));
                copy(found_word.get(), value_size, d_vector + p.values + place * p.value);
                take_back(memory_at(t, r), rule, found_word.get(), d_memory, along_key.get());
                to_raw(rule.key, rule.length, along_key.get(), d_vector + p.keys + place * p.key);
            }
            if (log_decay) {
                d_log_decay[at(t)] = inner(d_memory, memory_at(t, 0), size);
                scale(d_memory, decay_of(log_decay, t), d_memory);
            }
        }
    }

  private:
    // Rows of a memory: whole vectors, and whole fours, since so many sums are made at a time; a vector may hold two.
    static int rows_of(const Delta& p) { return (round_up<T>(int(p.key)) + 3) / 4 * 4; }
    int64_t at(int64_t t) const { return t * p.batch * p.heads + job; }
    int64_t change_at(int64_t t, int64_t r) const { return (at(t) * p.rules + r) * p.value; }
    const T* vector_at(const T* vectors, int64_t t) const { return vectors + (t * p.batch + job / p.heads) * p.interface; }
    // What a step takes, or leaves: the processor does not foresee where it lies.
    template <bool TO_WRITE = false> void fetch(const T* vectors, int64_t t) const {
        if (t < 0 || t >= p.steps) return;
        const T* vector = vector_at(vectors, t);
        prefetch<TO_WRITE>(vector + p.queries + head * p.key, p.key);
        for (int64_t place = head; place < p.rules * p.heads; place += p.heads) {
            prefetch<TO_WRITE>(vector + p.keys + place * p.key, p.key);
            prefetch<TO_WRITE>(vector + p.values + place * p.value, p.value);
        }
    }
    T decay_of(const T* log_decay, int64_t t) const { return std::exp(log_decay[at(t)]); }
    T* kept(T* saved, int64_t chunk) const { return saved + (chunk * p.batch * p.heads + job) * p.key * p.value; }
    const T* kept(const T* saved, int64_t chunk) const { return kept(const_cast<T*>(saved), chunk); }

    // A matrix [key, value] to whole vectors and back; beyond it there are zeros.
    void spread(const T* from, T* memory) const {
        for (int k = 0; k < key_size; k++) copy(from + k * value_size, value_size, memory + k * width);
    }
    void gather(const T* memory, T* to) const {
        for (int k = 0; k < key_size; k++) copy(memory + k * width, value_size, to + k * value_size);
    }

    // A rule but for its change.
    void take(const T* vectors, int64_t t, int64_t r, Rule& rule) const {
        const T* vector = vector_at(vectors, t);
        const int64_t place = r * p.heads + head;
        rule.length = unit(vector + p.keys + place * p.key, rule.key);
        rule.gate = T(p.largest_gate) / (1 + std::exp(-vector[p.gates + place]));
    }
    void find(const T* vectors, int64_t t, int64_t r, const T* memory, Rule& rule) const {
        take(vectors, t, r, rule);
        look_up(memory, rule.key, rule.change);
        const T* wanted = vector_at(vectors, t) + p.values + (r * p.heads + head) * p.value;
        sweep<T>(value_size, [&](int v, auto io) { io.store(rule.change + v, io.load(wanted + v) - load(rule.change + v)); });
    }

    // A vector brought to length 1, and what its length was, or the shortest that counts.
    T unit(const T* raw, T* out) const {
        copy(raw, key_size, out);
        const T length = std::max(std::sqrt(inner(out, out, rows)), T(p.shortest));
        for (int k = 0; k < rows; k += LANES<T>) store(out + k, load(out + k) / length);
        return length;
    }
    // The gradient of what was brought to length 1, from that of the result; beyond the key both are 0.
    void to_raw(const T* units, T length, const T* gradient, T* out) const {
        const T along = length > T(p.shortest) ? inner(units, gradient, rows) : 0;
        sweep<T>(key_size, [&](int k, auto io) { io.store(out + k, (load(gradient + k) - along * load(units + k)) / length); });
    }

    // A call of memmove would take longer than so few vectors do.
    static void copy(const T* from, int64_t count, T* to) {
        sweep<T>(int(count), [&](int i, auto io) { io.store(to + i, io.load(from + i)); });
    }
    static T inner(const T* a, const T* b, int count) {
        Vec<T> sum{};
        for (int i = 0; i < count; i += LANES<T>) sum += load(a + i) * load(b + i);
        return lane_sum<T>(sum);
    }
    void scale(const T* memory, T factor, T* out) const {
        for (int i = 0; i < size; i += LANES<T>) store(out + i, factor * load(memory + i));
    }
    // out = memory + factor key wordᵀ
    void add(const T* memory, const T* key, const T* word, T factor, T* out) const {
        for (int v = 0; v < width; v += LANES<T>) {
            const Vec<T> scaled = factor * load(word + v);
            for (int k = 0; k < key_size; k++) store(out + k * width + v, load(memory + k * width + v) + key[k] * scaled);
        }
    }
    // The same, and found = outᵀ sought; found may be word.
    void add(const T* from, const T* to, const T* given, T factor, T* out, const T* sought, T* found) const {
        for (int v = 0; v < width; v += LANES<T>) {
            const Vec<T> scaled = factor * load(given + v);
            Vec<T> sums[4] = {};
            for (int k = 0; k < rows; k += 4) {
                for (int i = 0; i < 4; i++) {
                    const Vec<T> made = load(from + (k + i) * width + v) + to[k + i] * scaled;
                    store(out + (k + i) * width + v, made);
                    sums[i] += sought[k + i] * made;
                }
            }
            store(found + v, (sums[0] + sums[1]) + (sums[2] + sums[3]));
        }
    }
    // d_key = gate d_memory change - before d_value, and then d_memory -= key d_valueᵀ.
    void take_back(const T* before, const Rule& rule, const T* d_value, T* d_memory, T* d_key) const {
        for (int k = 0; k < rows; k += LANES<T>) {
            Vec<T> sums[LANES<T>] = {};
            for (int v = 0; v < width; v += LANES<T>) {
                const Vec<T> d = load(d_value + v), change = rule.gate * load(rule.change + v);
                T* row = d_memory + k * width + v;
                const T* old = before + k * width + v;
                UNROLLED for (int lane = 0; lane < LANES<T>; lane++) {
                    const Vec<T> found = load(row + lane * width);
                    sums[lane] += found * change - load(old + lane * width) * d;
                    store(row + lane * width, found - rule.key[k + lane] * d);
                }
            }
            store(d_key + k, lane_sums<T>(sums));
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
    // out = memory + gate key changeᵀ, and found = out word
    void add_and_products(const T* memory, const Rule& rule, T* out, const T* word, T* found) const {
        for (int k = 0; k < rows; k += LANES<T>) {
            Vec<T> sums[LANES<T>] = {};
            for (int v = 0; v < width; v += LANES<T>) {
                const Vec<T> w = load(word + v), scaled = rule.gate * load(rule.change + v);
                const T* from = memory + k * width + v;
                T* to = out + k * width + v;
                UNROLLED for (int lane = 0; lane < LANES<T>; lane++) {
                    const Vec<T> made = load(from + lane * width) + rule.key[k + lane] * scaled;
                    store(to + lane * width, made);
                    sums[lane] += w * made;
                }
            }
            store(found + k, lane_sums<T>(sums));
        }
    }
};

// The heads of each row of the batch take turns, chunk by chunk: what they read of a step lies side by side.
template <class T, class F> void each_row(const Delta& p, F&& body) {
    for_ranges(p.threads, p.batch, piece_of(p.threads, p.batch), [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; row++) {
            std::vector<DeltaHead<T>> heads;
            heads.reserve(size_t(p.heads));
            for (int64_t head = 0; head < p.heads; head++) heads.emplace_back(p, row, head);
            body(heads, (p.steps + p.every - 1) / p.every);
        }
    });
}

// vectors [T, B, interface], log_decay [T, B, H] or null, first and last [B, H, K, V], reads [T, B, H, V]; for the way
// back, or null, saved [chunks, B, H, K, V] and changes [T, B, H, P, V].
template <class T>
void delta_forward(const Delta& p, const T* vectors, const T* log_decay, const T* first, T* reads, T* saved, T* changes,
                   T* last) {
    each_row<T>(p, [&](std::vector<DeltaHead<T>>& heads, int64_t chunks) {
        for (DeltaHead<T>& head : heads) head.begin(first);
        for (int64_t chunk = 0; chunk < chunks; chunk++)
            for (DeltaHead<T>& head : heads) head.forward(chunk, vectors, log_decay, reads, saved, changes);
        for (DeltaHead<T>& head : heads) head.end(last);
    });
}

// Gradients: d_vectors everywhere but where the interface has something else than keys, values, gates and queries.
template <class T>
void delta_backward(const Delta& p, const T* vectors, const T* log_decay, const T* saved, const T* changes,
                    const T* d_reads, const T* d_last, T* d_vectors, T* d_log_decay, T* d_first) {
    each_row<T>(p, [&](std::vector<DeltaHead<T>>& heads, int64_t chunks) {
        const auto record = DeltaHead<T>::record(p);
        for (DeltaHead<T>& head : heads) head.begin(d_last);
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--)
            for (DeltaHead<T>& head : heads)
                head.backward(chunk, vectors, log_decay, saved, changes, d_reads, d_vectors, d_log_decay, record);
        for (DeltaHead<T>& head : heads) head.end(d_first);
    });
}

}  // namespace native
