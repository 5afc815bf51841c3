// The arithmetic of sparse convolution, for one instruction set. Included by sparse_conv_<set>.cpp, which defines
//   SPARSERECO_SET        name of the set,
//   SPARSERECO_VECTOR     bytes of a vector register,
//   SPARSERECO_REGISTERS  how many of them there are,
// and switches the compiler to the set, so that nothing of this may be shared between the files: all names stand in an
// unnamed namespace, and standard headers are included before.
//
// A tile of rows x channels stays in registers while it is multiplied, so that each number fetched serves many
// multiplications. Rows are fetched where they lie: nothing is gathered into a buffer first. The order of additions to a
// number depends neither on tiles nor on threads.

#include "../sparse_conv.h"

namespace sparsereco {
namespace {

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(SPARSERECO_VECTOR), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = SPARSERECO_VECTOR / sizeof(T);

// Vectors of a tile's row, and rows of a tile: their product, the vectors of the other factor and one number of the first
// must fit in registers. More than 8 rows would need more pointers than there are integer registers.
constexpr int kMaxVectors = SPARSERECO_REGISTERS >= 32 ? 4 : 2;
constexpr int rows_of_tile(int vectors) {
  const int rows = (SPARSERECO_REGISTERS - vectors - 1) / vectors;
  return rows < 8 ? rows : 8;
}

// Takes the pairs of output rows before `end` from the front of a list: they are read next anyway.
inline PairList take_until(PairList& list, int64_t end) {
  int64_t size = 0;
  while (size + 8 <= list.size && list.out[size + 7] < end) size += 8;
  while (size < list.size && list.out[size] < end) ++size;
  const PairList taken = {list.in, list.out, size, list.offset};
  list = {list.in + size, list.out + size, list.size - size, list.offset};
  return taken;
}

// --- block[out] += input[in] @ weight ---

template <typename T, int kRows, int kVectors>
inline void multiply_tile(const T* input, int64_t c_in, const T* weight, int64_t c_out, const int32_t* in,
                          const int32_t* out, T* block) {
  const T* x[kRows];
  Vector<T> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    x[r] = input + in[r] * c_in;
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = *reinterpret_cast<const Vector<T>*>(block + out[r] * c_out + v * kLanes<T>);
  }
  for (int64_t c = 0; c < c_in; ++c) {
    Vector<T> w[kVectors];
    for (int v = 0; v < kVectors; ++v)
      w[v] = *reinterpret_cast<const Vector<T>*>(weight + c * c_out + v * kLanes<T>);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] += w[v] * x[r][c];
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector<T>*>(block + out[r] * c_out + v * kLanes<T>) = sum[r][v];
}

template <typename T, int kRows, int kVectors>
void multiply(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList pairs, T* block) {
  for (; pairs.size >= kRows; pairs.in += kRows, pairs.out += kRows, pairs.size -= kRows) {
    if (pairs.size >= 2 * kRows)  // the rows of the next tile lie anywhere: no processor fetches them by itself
      for (int r = kRows; r < 2 * kRows; ++r) __builtin_prefetch(input + pairs.in[r] * c_in);
    multiply_tile<T, kRows, kVectors>(input, c_in, weight, c_out, pairs.in, pairs.out, block);
  }
  if constexpr (kRows > 1) multiply<T, kRows / 2, kVectors>(input, c_in, weight, c_out, pairs, block);
}

template <typename T, int kVectors = kMaxVectors>
void multiply_columns(const T* input, int64_t c_in, const T* weight, int64_t c_out, int64_t columns, PairList pairs,
                      T* block) {
  constexpr int kWidth = kVectors * kLanes<T>;
  for (; columns >= kWidth; columns -= kWidth, weight += kWidth, block += kWidth)
    multiply<T, rows_of_tile(kVectors), kVectors>(input, c_in, weight, c_out, pairs, block);
  if constexpr (kVectors > 1)
    if (columns > 0) multiply_columns<T, kVectors - 1>(input, c_in, weight, c_out, columns, pairs, block);
}

template <typename T>
void convolve(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList* lists, int64_t volume,
              int64_t begin, int64_t end, T* block, T* output) {
  const int64_t width = padded(c_out), step = block_rows(c_out);
  for (; begin < end; begin += step) {
    const int64_t stop = begin + step < end ? begin + step : end;
    for (int64_t i = 0; i < (stop - begin) * width; ++i) block[i] = 0;
    for (int64_t k = 0; k < volume; ++k)
      multiply_columns<T>(input, c_in, weight + lists[k].offset * c_in * width, width, width,
                          take_until(lists[k], stop), block - begin * width);
    for (int64_t row = begin; row < stop; ++row)
      for (int64_t c = 0; c < c_out; ++c) output[row * c_out + c] = block[(row - begin) * width + c];
  }
}

// --- weight += input[in]^T @ grad[out] ---

template <typename T, int kRows, int kVectors>
inline void correlate_tile(const T* input, int64_t c_in, const T* grad, int64_t c_out, const PairList& pairs,
                           T* weight) {
  Vector<T> sum[kRows][kVectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      sum[r][v] = *reinterpret_cast<const Vector<T>*>(weight + r * c_out + v * kLanes<T>);
  for (int64_t p = 0; p < pairs.size; ++p) {
    const T* x = input + pairs.in[p] * c_in;
    Vector<T> g[kVectors];
    for (int v = 0; v < kVectors; ++v)
      g[v] = *reinterpret_cast<const Vector<T>*>(grad + pairs.out[p] * c_out + v * kLanes<T>);
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sum[r][v] += g[v] * x[r];
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector<T>*>(weight + r * c_out + v * kLanes<T>) = sum[r][v];
}

template <typename T, int kRows, int kVectors>
void correlate(const T* input, int64_t c_in, const T* grad, int64_t c_out, int64_t rows, const PairList& pairs,
               T* weight) {
  for (; rows >= kRows; rows -= kRows, input += kRows, weight += kRows * c_out)
    correlate_tile<T, kRows, kVectors>(input, c_in, grad, c_out, pairs, weight);
  if constexpr (kRows > 1) correlate<T, kRows / 2, kVectors>(input, c_in, grad, c_out, rows, pairs, weight);
}

template <typename T, int kVectors = kMaxVectors>
void correlate_columns(const T* input, int64_t c_in, const T* grad, int64_t c_out, int64_t columns,
                       const PairList& pairs, T* weight) {
  constexpr int kWidth = kVectors * kLanes<T>;
  for (; columns >= kWidth; columns -= kWidth, grad += kWidth, weight += kWidth)
    correlate<T, rows_of_tile(kVectors), kVectors>(input, c_in, grad, c_out, c_in, pairs, weight);
  if constexpr (kVectors > 1)
    if (columns > 0) correlate_columns<T, kVectors - 1>(input, c_in, grad, c_out, columns, pairs, weight);
}

constexpr int64_t kWindow = 512;  // output rows whose inputs and gradients stay in the second-level cache for all offsets
constexpr int64_t kBatch = 64;    // pairs whose inputs and gradients stay in the first-level cache for all tiles

template <typename T>
void weight_gradient(const T* input, int64_t c_in, const T* grad, int64_t c_out, PairList* lists, int64_t volume,
                     int64_t begin, int64_t end, T* weight) {
  for (; begin < end; begin += kWindow)
    for (int64_t k = 0; k < volume; ++k) {
      PairList pairs = take_until(lists[k], begin + kWindow < end ? begin + kWindow : end);
      for (; pairs.size > 0; pairs.in += kBatch, pairs.out += kBatch, pairs.size -= kBatch) {
        const PairList batch = {pairs.in, pairs.out, pairs.size < kBatch ? pairs.size : kBatch, pairs.offset};
        correlate_columns<T>(input, c_in, grad, c_out, c_out, batch, weight + pairs.offset * c_in * c_out);
      }
    }
}

template <typename T>
ConvKernels<T> kernels() {
  return {&convolve<T>, &weight_gradient<T>};
}

}  // namespace

template <>
ConvKernels<float> SPARSERECO_SET<float>() {
  return kernels<float>();
}
template <>
ConvKernels<double> SPARSERECO_SET<double>() {
  return kernels<double>();
}

}  // namespace sparsereco
