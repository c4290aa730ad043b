// Products of a few rows (the batch) with a weight matrix that is packed once and then streamed at every step.
#pragma once
#include <memory>
#include <vector>

#include "simd.h"

namespace native {

// A matrix of k rows and n columns in panels of TILE_VECTORS vectors, each stored row after row; columns beyond n are 0.
template <class T> struct Packed {
    int k, vectors;
    std::unique_ptr<T[]> data;

    // Without elements; zeros where not all of them will be put.
    Packed(int k, int n, bool all = true) : k(k), vectors((n + LANES<T> - 1) / LANES<T>), data(new T[size()]) {
        if (all && n % LANES<T> == 0) return;
        const size_t last = all ? std::min<size_t>(size(), (size_t)k * TILE_VECTORS * LANES<T>) : size();
        std::fill(data.get() + size() - last, data.get() + size(), T(0));
    }
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
            const T* from = source + done * stride;
            out += (size_t)row * width;
            const int whole_rows = rows / LANES<T> * LANES<T>, whole_columns = count / LANES<T> * LANES<T>;
            for (int j = 0; j < whole_columns; j += LANES<T>) {
                for (int i = 0; i < whole_rows; i += LANES<T>) {
                    Vec<T> square[LANES<T>];
                    for (int lane = 0; lane < LANES<T>; lane++) square[lane] = load(from + (j + lane) * stride + i);
                    transpose<T>(square);
                    for (int lane = 0; lane < LANES<T>; lane++) store(out + (size_t)(i + lane) * width + j, square[lane]);
                }
            }
            for (int j = 0; j < count; j++)
                for (int i = j < whole_columns ? whole_rows : 0; i < rows; i++)
                    out[(size_t)i * width + j] = from[j * stride + i];
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

// Element (row, p) of a is a[row * lda + p * step].
template <class T, int ROWS, int VECTORS>
inline void tile(int k, const T* a, int64_t lda, int64_t step, const T* b, T* c, int64_t ldc, bool add) {
    Vec<T> sums[ROWS][VECTORS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) sums[i][j] = add ? load(c + i * ldc + j * LANES<T>) : Vec<T>{};
    for (int p = 0; p < k; p++) {
        Vec<T> row[VECTORS];
        for (int j = 0; j < VECTORS; j++) row[j] = load(b + ((size_t)p * VECTORS + j) * LANES<T>);
        for (int i = 0; i < ROWS; i++) {
            const T x = a[i * lda + p * step];
            for (int j = 0; j < VECTORS; j++) sums[i][j] += x * row[j];
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < VECTORS; j++) store(c + i * ldc + j * LANES<T>, sums[i][j]);
}

template <class T, int ROWS>
void product_rows(const Packed<T>& b, const T* a, int64_t lda, int64_t step, T* c, int64_t ldc, bool add) {
    const T* panel = b.data.get();
    int j = 0;
    for (; j + TILE_VECTORS <= b.vectors; j += TILE_VECTORS) {
        tile<T, ROWS, TILE_VECTORS>(b.k, a, lda, step, panel, c + j * LANES<T>, ldc, add);
        panel += (size_t)b.k * TILE_VECTORS * LANES<T>;
    }
    if (b.vectors - j == 2) tile<T, ROWS, 2>(b.k, a, lda, step, panel, c + j * LANES<T>, ldc, add);
    if (b.vectors - j == 1) tile<T, ROWS, 1>(b.k, a, lda, step, panel, c + j * LANES<T>, ldc, add);
}

// c[rows, n rounded up to whole vectors] (+)= a[rows, k] b[k, n]. Each element is summed in the order of k, whatever
// the number of rows: a row's result does not depend on how the batch is cut.
template <class T>
void product(int rows, const Packed<T>& b, const T* a, int64_t lda, T* c, int64_t ldc, bool add, int64_t step = 1) {
    int i = 0;
    if (TILE_ROWS == 8)
        for (; i + 8 <= rows; i += 8) product_rows<T, 8>(b, a + i * lda, lda, step, c + i * ldc, ldc, add);
    for (; i + 4 <= rows; i += 4) product_rows<T, 4>(b, a + i * lda, lda, step, c + i * ldc, ldc, add);
    for (; i + 2 <= rows; i += 2) product_rows<T, 2>(b, a + i * lda, lda, step, c + i * ldc, ldc, add);
    for (; i < rows; i++) product_rows<T, 1>(b, a + i * lda, lda, step, c + i * ldc, ldc, add);
}

// out[i, j] = Σ_p a[p, i] b[p, j] for i in [begin, end): rows of a weight's gradient.
template <class T>
void sum_of_products(int64_t count, const T* a, int64_t lda, int begin, int end, const T* b, int64_t ldb, int columns,
                     T* out, int64_t ldo) {
    constexpr int64_t AT_ONCE = 256;  // rows of b that stay in cache
    constexpr int ROWS = 32;          // of the gradient, the same
    const int width = round_up<T>(columns);
    std::vector<T> sums((size_t)ROWS * width);
    for (int64_t p = 0; p < count; p += AT_ONCE) {
        const int some = (int)std::min(AT_ONCE, count - p);
        Packed<T> packed(some, columns);
        packed.put(0, some, 0, columns, b + p * ldb, ldb);
        for (int first = begin; first < end; first += ROWS) {
            const int rows = std::min(ROWS, end - first);
            product<T>(rows, packed, a + p * lda + first, 1, sums.data(), width, false, lda);
            for (int i = 0; i < rows; i++) {
                T* to = out + (first + i) * ldo;
                const T* from = &sums[(size_t)i * width];
                if (p == 0)
                    std::memcpy(to, from, columns * sizeof(T));
                else
                    sweep<T>(columns, [&](int j, auto io) { io.store(to + j, io.load(to + j) + io.load(from + j)); });
            }
        }
    }
}
// out[i] = Σ_p a[p, i] for i in [begin, end).
template <class T> void sum_of_rows(int64_t count, const T* a, int64_t lda, int begin, int end, T* out) {
    sweep<T>(end - begin, [&](int i, auto io) {
        Vec<T> sum{};
        for (int64_t p = 0; p < count; p++) sum += io.load(a + p * lda + begin + i);
        io.store(out + begin + i, sum);
    });
}

}  // namespace native
