// Memories that move as a whole under one head each: stacks (core/accessors/stack.py) and soft tapes
// (core/accessors/soft_tape.py). The next contents are a mixture of those after each of a few moves.
#pragma once
#include <algorithm>
#include <cstring>

#include "sequence.h"

namespace native {

// to[i] += share * from[i]
template <class T> inline void add_share(int count, T share, const T* from, T* to) {
    sweep<T>(count, [&](int i, auto io) { io.store(to + i, io.load(to + i) + share * io.load(from + i)); });
}
template <class T> inline T dot(int count, const T* a, const T* b) {
    Vec<T> sum{};
    sweep<T>(count, [&](int i, auto io) { sum += io.load(a + i) * io.load(b + i); });
    return lane_sum<T>(sum);
}

// What one move does to `size` values in a row: two pieces of them go elsewhere, the rest is lost.
struct Move {
    struct Piece {
        int from, to, count;
    } pieces[2];

    // Onwards by some values, from 0 to size, of what is joined at its ends.
    static Move around(int size, int by) { return {{{0, by, size - by}, {size - by, 0, by}}}; }
    static Move onwards(int size, int by) { return {{{0, by, size - by}, {0, 0, 0}}}; }
    static Move back(int size, int by) { return {{{by, 0, size - by}, {0, 0, 0}}}; }

    // to[after] += share * from[before]
    template <class T> void add(T share, const T* from, T* to) const {
        for (const Piece& p : pieces) add_share<T>(p.count, share, from + p.from, to + p.to);
    }
    // The way back: to[before] += share * from[after], and Σ before * after.
    template <class T> void add_back(T share, const T* from, T* to) const {
        for (const Piece& p : pieces) add_share<T>(p.count, share, from + p.to, to + p.from);
    }
    template <class T> T meet(const T* before, const T* after) const {
        T sum = 0;
        for (const Piece& p : pieces) sum += dot<T>(p.count, before + p.from, after + p.to);
        return sum;
    }
};

// The moves in the order of the shares. A stack is moved and then gets the word, on top of what was pushed down; a tape
// gets the word under its head and is then moved. jump: cells, below the number of all.
struct StackMoves {
    static constexpr int COUNT = 3;
    static constexpr bool WRITES_FIRST = false;
    Move moves[COUNT];

    StackMoves(int size, int word, int)
        : moves{Move::onwards(size, word), Move::back(size, word), Move::around(size, 0)} {}
};
struct TapeMoves {
    static constexpr int COUNT = 5;
    static constexpr bool WRITES_FIRST = true;
    Move moves[COUNT];

    TapeMoves(int size, int word, int jump)
        : moves{Move::around(size, word), Move::around(size, 0), Move::around(size, size - word),
                Move::around(size, jump * word), Move::around(size, size - jump * word)} {}
};

template <class T, class Moves> class ShiftAccessor {
    enum Leaf { MEMORY, JUMPS };  // the cells of a jump at each step, [T, B]; only of tapes

    const Tensors<T>& x;
    const Records<T>& records;
    int cells, word, units, size;
    int64_t batch, rows_per_state, all;
    Saved<T> saved;
    int words, shares, gates;  // parts of the interface vector; -1: words replace all that was there

    Moves moves(int64_t t, int64_t b) const {
        return {size, word, Moves::WRITES_FIRST ? int(records.accessor(t + 1, b)[0]) : 0};
    }

    // Puts a tape's word under its head.
    void write(const T* a, int unit, T* cell) const {
        const T* w = a + words + unit * word;
        if (gates < 0) {
            std::copy_n(w, word, cell);
            return;
        }
        const T g = a[gates + unit];
        for (int i = 0; i < word; i++) cell[i] += g * (w[i] - cell[i]);
    }
    // The way back: d_cell is of the cell after writing, then of the cell before; d is of the interface vector.
    void write_back(const T* a, int unit, const T* cell, T* d_cell, T* d) const {
        const T* w = a + words + unit * word;
        T* d_w = d + words + unit * word;
        if (gates < 0) {
            std::copy_n(d_cell, word, d_w);
            std::fill_n(d_cell, word, T(0));
            return;
        }
        const T g = a[gates + unit];
        T for_gate = 0;
        for (int i = 0; i < word; i++) {
            for_gate += d_cell[i] * (w[i] - cell[i]);
            d_w[i] = g * d_cell[i];
            d_cell[i] *= 1 - g;
        }
        d[gates + unit] = for_gate * g * (1 - g);
    }

  public:
    ShiftAccessor(const Problem& p, const Tensors<T>& tensors, const Records<T>& all_records)
        : x(tensors), records(all_records), cells((int)p.slots), word((int)p.word), units((int)p.reads),
          size(cells * word), batch(p.batch), rows_per_state(p.rows_per_state()), all((int64_t)units * size),
          saved{x.saved, all, p.batch, p.keep_every, p.steps, p.training != 0}, words((int)p.places.words),
          shares((int)p.places.moves), gates((int)p.places.write_gates) {}
    static int64_t record_size(const Problem&) { return Moves::WRITES_FIRST ? LANES<T> : 0; }
    static int64_t history(const Problem&) { return 1; }
    static int64_t saved_size(const Problem& p) { return Saved<T>::length(p) * p.batch * p.reads * p.slots * p.word; }

    int64_t forward_scratch() const { return size; }
    void begin(int64_t b) const {
        std::copy_n(x.state[MEMORY] + b / rows_per_state * all, all, saved.first(b));
    }
    void expect_forward(int64_t, int64_t) const {}
    void forward(int64_t t, int64_t b, T* words_read, T* before) const {
        T* a = records.interface(t + 1, b);
        if (Moves::WRITES_FIRST) records.accessor(t + 1, b)[0] = T(int64_t(x.state[JUMPS][t * batch + b]) % cells);
        const Moves by = moves(t, b);
        small_softmax(units, Moves::COUNT, a + shares);
        if (gates >= 0) apply_logistic(a + gates, units);
        for (int unit = 0; unit < units; unit++) {
            const T *s = a + shares + unit * Moves::COUNT, *w = a + words + unit * word;
            T* after = saved.after(t, b) + unit * size;
            std::copy_n(saved.before(t, b) + unit * size, size, before);
            if (Moves::WRITES_FIRST) write(a, unit, before);
            std::fill_n(after, size, T(0));
            for (int i = 0; i < Moves::COUNT; i++) by.moves[i].add(s[i], before, after);
            if (!Moves::WRITES_FIRST) add_share<T>(word, s[0], w, after);
            std::copy_n(after, word, words_read + unit * word);
        }
    }
    void finish(int64_t b) const { std::copy_n(saved.last(b), all, x.last_state[MEMORY] + b * all); }

    // Per row of the batch: gradients of the memory.
    int64_t row_scratch() const { return all; }
    int64_t backward_scratch() const { return 2 * size; }
    void begin_backward(int64_t b, T* d_memory) const {
        if (const T* d = x.d_last_state[MEMORY]) std::copy_n(d + b * all, all, d_memory);
    }
    void finish_backward(int64_t b, const T* d_memory) const {
        if (T* d = x.d_state[MEMORY]) std::copy_n(d_memory, all, d + b * all);
    }
    void expect_backward(int64_t, int64_t) const {}
    void backward(int64_t t, int64_t b, const T* d_words_read, T* d, T* scratch, T* d_memory) const {
        const T* a = records.interface(t + 1, b);
        const Moves by = moves(t, b);
        T *before = scratch, *d_before = scratch + size;
        for (int unit = 0; unit < units; unit++) {
            const T* s = a + shares + unit * Moves::COUNT;
            T *d_s = d + shares + unit * Moves::COUNT, *d_after = d_memory + unit * size;
            add_share<T>(word, T(1), d_words_read + unit * word, d_after);
            const T* old = saved.before(t, b, (T*)nullptr) + unit * size;
            std::copy_n(old, size, before);
            if (Moves::WRITES_FIRST) write(a, unit, before);
            std::fill_n(d_before, size, T(0));
            for (int i = 0; i < Moves::COUNT; i++) {
                d_s[i] = by.moves[i].meet(before, d_after);
                by.moves[i].add_back(s[i], d_after, d_before);
            }
            if (Moves::WRITES_FIRST) {
                write_back(a, unit, old, d_before, d);
            } else {
                T* d_w = d + words + unit * word;
                d_s[0] += dot<T>(word, a + words + unit * word, d_after);
                sweep<T>(word, [&](int i, auto io) { io.store(d_w + i, s[0] * io.load(d_after + i)); });
            }
            std::copy_n(d_before, size, d_after);
            small_softmax_backward(Moves::COUNT, s, d_s);
        }
    }
};

template <class T> using StackAccessor = ShiftAccessor<T, StackMoves>;
template <class T> using SoftTapeAccessor = ShiftAccessor<T, TapeMoves>;

}  // namespace native
