// Products of a few rows (the batch) with a weight matrix that is packed once and then streamed at every step.
#pragma once
#include <vector>

#include "simd.h"

namespace native {

// A matrix of k rows and n columns in panels of TILE_VECTORS vectors, each stored row after row; columns beyond n are 0.
template <class T> struct Packed {
    int k, vectors;
    std::vector<T> data;

    // Element (row, column) of the matrix is source[row * row_stride + column * column_stride].
    Packed(int k, int n, const T* source, int64_t row_stride, int64_t column_stride)
        : k(k), vectors((n + LANES<T> - 1) / LANES<T>), data((size_t)k * vectors * LANES<T>) {
        T* out = data.data();
        for (int first = 0; first < vectors;) {
            const int width = std::min(TILE_VECTORS, vectors - first) * LANES<T>;
            const int column = first * LANES<T>, count = std::min(width, n - column);
            if (column_stride == 1) {
                for (int row = 0; row < k; row++)
                    std::memcpy(out + (size_t)row * width, source + row * row_stride + column, count * sizeof(T));
            } else {
                for (int j = 0; j < count; j++) {
                    const T* from = source + (column + j) * column_stride;
                    for (int row = 0; row < k; row++) out[(size_t)row * width + j] = from[row * row_stride];
                }
            }
            out += (size_t)k * width;
            first += width / LANES<T>;
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
    const T* panel = b.data.data();
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
    const int width = round_up<T>(columns);
    std::vector<T> sums((size_t)(end - begin) * width);
    for (int64_t p = 0; p < count; p += AT_ONCE) {
        const Packed<T> packed((int)std::min(AT_ONCE, count - p), columns, b + p * ldb, ldb, 1);
        product<T>(end - begin, packed, a + p * lda + begin, 1, sums.data(), width, true, lda);
    }
    for (int i = begin; i < end; i++)
        std::memcpy(out + i * ldo, &sums[(size_t)(i - begin) * width], columns * sizeof(T));
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
