// The arithmetic of sparse convolution, for one instruction set. Included by sparse_conv_<set>.cpp, which defines
//   SPARSERECO_SET        name of the set,
//   SPARSERECO_VECTOR     bytes of a vector register,
//   SPARSERECO_REGISTERS  how many of them there are,
// and switches the compiler to the set, so that nothing of this may be shared between the files: all names stand in an
// unnamed namespace, and standard headers are included before.
//
// A tile of rows x channels stays in registers while it is multiplied, so that each number fetched serves many
// multiplications. Rows are fetched where they lie: nothing is gathered into a buffer first. The order of additions to
// a number depends neither on tiles nor on threads.

#include "../sparse_conv.h"

namespace sparsereco {
namespace {

// Numbers of a tile are in registers only if the compiler unrolls its loops before it decides what is in memory.
#define SPARSERECO_UNROLL _Pragma("GCC unroll 8")

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(SPARSERECO_VECTOR), may_alias));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = SPARSERECO_VECTOR / sizeof(T);

// Vectors of a tile's row, and rows of a tile: their product, the vectors of the other factor and one number of the
// first must fit in registers. More than 8 rows would need more pointers than there are integer registers.
constexpr int kMaxVectors = SPARSERECO_REGISTERS >= 32 ? 4 : 2;
constexpr int rows_of_tile(int vectors) {
  const int rows = (SPARSERECO_REGISTERS - vectors - 1) / vectors;
  return rows < 8 ? rows : 8;
}

template <typename T>
inline void fetch(const T* row, int64_t channels) {
  for (int64_t c = 0; c < channels; c += 64 / sizeof(T)) __builtin_prefetch(row + c);
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

// --- block[out] += input[in] @ weight; without the sum before if `first` ---

template <typename T, int kRows, int kVectors>
inline void multiply_tile(const T* input, int64_t c_in, const T* weight, int64_t c_out, const int32_t* in,
                          const int32_t* out, bool first, T* block) {
  const T* x[kRows];
  Vector<T> sum[kRows][kVectors];
  SPARSERECO_UNROLL for (int r = 0; r < kRows; ++r) {
    x[r] = input + in[r] * c_in;
    SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v)
      sum[r][v] = first ? Vector<T>{} : *reinterpret_cast<const Vector<T>*>(block + out[r] * c_out + v * kLanes<T>);
  }
  for (int64_t c = 0; c < c_in; ++c) {
    Vector<T> w[kVectors];
    SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v)
      w[v] = *reinterpret_cast<const Vector<T>*>(weight + c * c_out + v * kLanes<T>);
    SPARSERECO_UNROLL for (int r = 0; r < kRows; ++r)
      SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] += w[v] * x[r][c];
  }
  SPARSERECO_UNROLL for (int r = 0; r < kRows; ++r)
    SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector<T>*>(block + out[r] * c_out + v * kLanes<T>) = sum[r][v];
}

template <typename T, int kRows, int kVectors>
void multiply(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList pairs, bool first, T* block) {
  for (; pairs.size >= kRows; pairs.in += kRows, pairs.out += kRows, pairs.size -= kRows) {
    if (pairs.size >= 2 * kRows)  // the rows of the next tile lie anywhere: no processor fetches them by itself
      for (int r = kRows; r < 2 * kRows; ++r) fetch(input + pairs.in[r] * c_in, c_in);
    multiply_tile<T, kRows, kVectors>(input, c_in, weight, c_out, pairs.in, pairs.out, first, block);
  }
  if constexpr (kRows > 1) multiply<T, kRows - 1, kVectors>(input, c_in, weight, c_out, pairs, first, block);
}

template <typename T, int kVectors = kMaxVectors>
void multiply_columns(const T* input, int64_t c_in, const T* weight, int64_t c_out, int64_t columns, PairList pairs,
                      bool first, T* block) {
  constexpr int kWidth = kVectors * kLanes<T>;
  for (; columns >= kWidth; columns -= kWidth, weight += kWidth, block += kWidth)
    multiply<T, rows_of_tile(kVectors), kVectors>(input, c_in, weight, c_out, pairs, first, block);
  if constexpr (kVectors > 1)
    if (columns > 0) multiply_columns<T, kVectors - 1>(input, c_in, weight, c_out, columns, pairs, first, block);
}

template <typename T>
void convolve(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList* lists, int64_t volume,
              int64_t begin, int64_t end, T* block, T* output) {
  const int64_t width = padded(c_out), step = block_rows(c_out);
  for (; begin < end; begin += step) {
    const int64_t stop = begin + step < end ? begin + step : end;
    T* sum = width == c_out ? output + begin * width : block;
    for (int64_t k = 0; k < volume; ++k) {
      const PairList pairs = take_until(lists[k], stop);
      const bool all = pairs.size == stop - begin;  // as for the centre of a submanifold convolution
      if (k == 0 && !all)
        for (int64_t i = 0; i < (stop - begin) * width; ++i) sum[i] = 0;
      multiply_columns<T>(input, c_in, weight + pairs.offset * c_in * width, width, width, pairs, k == 0 && all,
                          sum - begin * width);
    }
    if (width == c_out) continue;
    for (int64_t row = begin; row < stop; ++row)
      for (int64_t c = 0; c < c_out; ++c) output[row * c_out + c] = sum[(row - begin) * width + c];
  }
}

// --- weight += input[in]^T @ grad[out] ---

constexpr int64_t kAhead = 12;  // pairs between the one that is multiplied and the one that is fetched

template <typename T, int kRows, int kVectors>
inline void correlate_tile(const T* input, int64_t c_in, const T* grad, int64_t c_out, const PairList& pairs,
                           T* weight) {
  Vector<T> sum[kRows][kVectors];
  SPARSERECO_UNROLL for (int r = 0; r < kRows; ++r)
    SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v)
      sum[r][v] = *reinterpret_cast<const Vector<T>*>(weight + r * c_out + v * kLanes<T>);
  for (int64_t p = 0; p < pairs.size; ++p) {
    const T* x = input + pairs.in[p] * c_in;
    fetch(input + pairs.in[p + kAhead < pairs.size ? p + kAhead : p] * c_in, 1);
    Vector<T> g[kVectors];
    SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v)
      g[v] = *reinterpret_cast<const Vector<T>*>(grad + pairs.out[p] * c_out + v * kLanes<T>);
    SPARSERECO_UNROLL for (int r = 0; r < kRows; ++r)
      SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] += g[v] * x[r];
  }
  SPARSERECO_UNROLL for (int r = 0; r < kRows; ++r)
    SPARSERECO_UNROLL for (int v = 0; v < kVectors; ++v)
      *reinterpret_cast<Vector<T>*>(weight + r * c_out + v * kLanes<T>) = sum[r][v];
}

template <typename T, int kRows, int kVectors>
void correlate(const T* input, int64_t c_in, const T* grad, int64_t c_out, int64_t rows, const PairList& pairs,
               T* weight) {
  for (; rows >= kRows; rows -= kRows, input += kRows, weight += kRows * c_out)
    correlate_tile<T, kRows, kVectors>(input, c_in, grad, c_out, pairs, weight);
  if constexpr (kRows > 1) correlate<T, kRows - 1, kVectors>(input, c_in, grad, c_out, rows, pairs, weight);
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

constexpr int64_t kWindow = 1 << 19;  // bytes of inputs and gradients in the second-level cache, for all offsets

template <typename T>
void weight_gradient(const T* input, int64_t c_in, const T* grad, int64_t c_out, PairList* lists, int64_t volume,
                     int64_t begin, int64_t end, T* weight) {
  const int64_t window = kWindow / ((c_in + c_out) * sizeof(T)) + 1;
  for (; begin < end; begin += window)
    for (int64_t k = 0; k < volume; ++k) {
      const PairList pairs = take_until(lists[k], begin + window < end ? begin + window : end);
      correlate_columns<T>(input, c_in, grad, c_out, c_out, pairs, weight + pairs.offset * c_in * c_out);
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
