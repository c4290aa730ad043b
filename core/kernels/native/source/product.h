// Products of a few rows (the batch) with a weight matrix that is packed once and then streamed at every step.
#pragma once
#include <type_traits>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace native {

// A matrix of k rows and n columns in panels of TILE_VECTORS vectors, each stored row after row; columns beyond n are 0.
template <class T> struct Packed {
    int k, vectors;
    Space<T> data;

    // Without elements; zeros where not all of them will be put.
    Packed(int rows, int n, bool all = true) : k(rows), vectors((n + LANES<T> - 1) / LANES<T>), data(size()) {
        if (all && n % LANES<T> == 0) return;
        const size_t last = all ? std::min<size_t>(size(), (size_t)k * TILE_VECTORS * LANES<T>) : size();
        std::fill(data.get() + size() - last, data.get() + size(), T(0));
    }
    void release() { data = Space<T>(0); }
    size_t size() const { return (size_t)k * vectors * LANES<T>; }

    // Sets the elements from (row, column) on, `rows` by `columns` of them, from rows that are `stride` apart.
    void put(int row, int rows, int column, int columns, const T* source, int64_t stride) {
        in_panels(column, columns, [&](T* out, int width, int done, int count) {
            for (int i = 0; i < rows; i++)
                std::memcpy(out + (size_t)(row + i) * width, source + i * stride + done, count * sizeof(T));
        });
    }
    // The same from columns that are `stride` apart.
    void put_transposed(int row, int rows, int column, int columns, const T* source, int64_t stride) {
        in_panels(column, columns, [&](T* out, int width, int done, int count) {
            transpose(count, rows, source + done * stride, stride, out + (size_t)row * width, width);
        });
    }

  private:
    // Calls body(where a panel's first row has these columns, the panel's width, columns before these, columns).
    template <class F> void in_panels(int column, int columns, F&& body) {
        constexpr int PANEL = TILE_VECTORS * LANES<T>;
        for (int done = 0; done < columns;) {
            const int first = (column + done) / PANEL * PANEL, inside = column + done - first;
            const int width = std::min(PANEL, vectors * LANES<T> - first), count = std::min(width - inside, columns - done);
            body(data.get() + (size_t)k * first + inside, width, done, count);
            done += count;
        }
    }
};

// Rows of a matrix: where the first one lies, and how far they are apart.
template <class T> struct Rows {
    T* first;
    int64_t stride;
};
template <class T> Rows<const T> const_rows(Rows<T> r) { return {r.first, r.stride}; }

// Element (row, p) of a is a.first[row * a.stride + p * step]. Where `start` is not null, its rows are added.
template <class T, int ROWS, int VECTORS>
inline void tile(int k, Rows<const T> a, int64_t step, const T* b, Rows<T> c, Rows<const T> start) {
    Vec<T> sums[ROWS][VECTORS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) sums[i][j] = Vec<T>{};
    for (int p = 0; p < k; p++) {
        Vec<T> row[VECTORS];
        for (int j = 0; j < VECTORS; j++) row[j] = load(b + ((size_t)p * VECTORS + j) * LANES<T>);
        for (int i = 0; i < ROWS; i++) {
            const T x = a.first[i * a.stride + p * step];
            for (int j = 0; j < VECTORS; j++) sums[i][j] += x * row[j];
        }
    }
    if (start.first)
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < VECTORS; j++) sums[i][j] += load(start.first + i * start.stride + j * LANES<T>);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) store(c.first + i * c.stride + j * LANES<T>, sums[i][j]);
}

template <class T, int ROWS>
void product_rows(const Packed<T>& b, Rows<const T> a, int64_t step, Rows<T> c, Rows<const T> start) {
    const T* panel = b.data.get();
    int j = 0;
    auto tiles = [&](auto vectors) {
        for (; j + vectors <= b.vectors; j += vectors) {
            tile<T, ROWS, vectors>(b.k, a, step, panel, c, start);
            panel += (size_t)b.k * vectors * LANES<T>;
            c.first += vectors * LANES<T>;
            if (start.first) start.first += vectors * LANES<T>;
        }
    };
    tiles(std::integral_constant<int, TILE_VECTORS>{});
    tiles(std::integral_constant<int, 2>{});
    tiles(std::integral_constant<int, 1>{});
}

// c[rows, n rounded up to whole vectors] = start + a[rows, k] b[k, n]; start may be null, or c. Each element is summed
// in the order of k, whatever the number of rows: a row's result does not depend on how the batch is cut.
template <class T>
void product(int rows, const Packed<T>& b, Rows<const T> a, Rows<T> c, Rows<const T> start, int64_t step = 1) {
    int i = 0;
    auto groups = [&](auto count) {
        for (; i + count <= rows; i += count) {
            product_rows<T, count>(b, a, step, c, start);
            a.first += count * a.stride;
            c.first += count * c.stride;
            if (start.first) start.first += count * start.stride;
        }
    };
    if (TILE_ROWS == 8) groups(std::integral_constant<int, 8>{});
    groups(std::integral_constant<int, 4>{});
    groups(std::integral_constant<int, 2>{});
    groups(std::integral_constant<int, 1>{});
}

// A matrix that serves so few rows that packing it would cost more than it saves: parts of weights where they lie.
template <class T> struct Unpacked {
    struct Part {
        int row, rows, column, columns;  // of the matrix
        const T* weight;                 // [columns, rows], rows `stride` apart
        int64_t stride;
    };
    std::vector<Part> parts;
};

// sums[i, column] += Σ_p a[i, p] weight[column, p] of ROWS rows.
template <class T, int ROWS>
void add_dot_products(const typename Unpacked<T>::Part& part, Rows<const T> a, Rows<T> c) {
    sweep<T>(part.columns, [&](int j, auto io) {
        const int some = std::min(LANES<T>, part.columns - j);
        Vec<T> vectors[ROWS][LANES<T>];
        for (int lane = 0; lane < some; lane++) {
            const T* weight = part.weight + (j + lane) * part.stride;
            Vec<T> sums[ROWS];
            for (int i = 0; i < ROWS; i++) sums[i] = Vec<T>{};
            sweep<T>(part.rows, [&](int p, auto from) {
                const Vec<T> w = from.load(weight + p);
                for (int i = 0; i < ROWS; i++) sums[i] += w * from.load(a.first + i * a.stride + part.row + p);
            });
            for (int i = 0; i < ROWS; i++) vectors[i][lane] = sums[i];
        }
        for (int i = 0; i < ROWS; i++) {
            for (int lane = some; lane < LANES<T>; lane++) vectors[i][lane] = Vec<T>{};
            T* to = c.first + i * c.stride + part.column + j;
            io.store(to, io.load(to) + folded<T, LANES<T>>(vectors[i], 0, LANES<T>));
        }
    });
}

// The same as the product with a packed matrix of n columns.
template <class T>
void product(int rows, int n, const Unpacked<T>& b, Rows<const T> a, Rows<T> c, Rows<const T> start) {
    for (int i = 0; i < rows; i++) {
        T* to = c.first + i * c.stride;
        if (!start.first)
            std::memset(to, 0, round_up<T>(n) * sizeof(T));
        else if (to != start.first + i * start.stride)
            std::memcpy(to, start.first + i * start.stride, round_up<T>(n) * sizeof(T));
    }
    row_groups<4>(rows, [&](auto some, int i) {
        for (const auto& part : b.parts)
            add_dot_products<T, some>(part, {a.first + i * a.stride, a.stride}, {c.first + i * c.stride, c.stride});
    });
}

// A matrix of k rows and n columns made of transposed weights, packed or not.
template <class T> struct Matrix {
    int n;
    bool packs;
    Packed<T> packed;
    Unpacked<T> unpacked;

    Matrix(int k, int columns, bool all, bool pack) : n(columns), packs(pack), packed(pack ? k : 0, columns, all) {}
    void put_transposed(int row, int rows, int column, int columns, const T* source, int64_t stride) {
        if (packs)
            packed.put_transposed(row, rows, column, columns, source, stride);
        else
            unpacked.parts.push_back({row, rows, column, columns, source, stride});
    }
};
template <class T>
void product(int rows, const Matrix<T>& b, Rows<const T> a, Rows<T> c, Rows<const T> start) {
    if (b.packs)
        product<T>(rows, b.packed, a, c, start);
    else
        product<T>(rows, b.n, b.unpacked, a, c, start);
}

// A share of a weight's gradient: the columns that it has in common with `count` columns of b.
template <class T> struct Share {
    Rows<const T> b;
    int count;
    Rows<T> out;  // null: not wanted
};

// share.out[i, j] = Σ_p a[p, i] share.b[p, j] for i in [0, rows), of every share.
template <class T>
void sum_of_products(int64_t threads, int64_t count, Rows<const T> a, int rows, const std::vector<Share<T>>& shares) {
    constexpr int64_t AT_ONCE = 256;  // rows of b that stay in cache
    int columns = 0;
    for (const auto& share : shares) columns += share.count;
    const int64_t width = round_up<T>(columns);
    std::vector<Packed<T>> parts;
    for (int64_t p = 0; p < count; p += AT_ONCE) parts.emplace_back((int)std::min(AT_ONCE, count - p), columns);
    for_ranges(threads, (int64_t)parts.size(), 1, [&](int64_t part, int64_t) {
        int column = 0;
        for (const auto& share : shares) {
            const T* from = share.b.first + part * AT_ONCE * share.b.stride;
            parts[part].put(0, parts[part].k, column, share.count, from, share.b.stride);
            column += share.count;
        }
    });
    for_ranges(threads, rows, piece_of(threads, rows), [&](int64_t begin, int64_t end) {
        const Space<T> sums = zeros<T>((end - begin) * width);
        for (size_t part = 0; part < parts.size(); part++)
            product<T>(int(end - begin), parts[part], {a.first + part * AT_ONCE * a.stride + begin, 1},
                       {sums.get(), width}, {sums.get(), width}, a.stride);
        const T* from = sums.get();
        for (const auto& share : shares) {
            for (int64_t i = begin; i < end; i++)
                std::memcpy(share.out.first + i * share.out.stride, from + (i - begin) * width,
                            share.count * sizeof(T));
            from += share.count;
        }
    });
}

}  // namespace native
