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

// Memory that is read after what is multiplied now. It comes to the second-level cache little by little meanwhile: all
// at once, as the first offset would ask for it, it would be waited for.
template <typename T>
struct Ahead {
  const T* next = nullptr;
  const T* end = nullptr;
  void fetch_some(int64_t numbers) {
    const T* stop = end - next < numbers ? end : next + numbers;
    for (; next < stop; next += 64 / sizeof(T)) __builtin_prefetch(next, 0, 2);
  }
};

// One row is fetched ahead for so many that are multiplied: on a track, each is multiplied four or five times.
constexpr int64_t kRowsPerFetch = 3;

// The input rows of the next block, if its first list is as long as in this one: nearly all, where that is the centre.
template <typename T>
Ahead<T> next_rows(const T* input, int64_t channels, const PairList& first, int64_t pairs) {
  if (pairs > first.size) pairs = first.size;
  if (pairs == 0) return {};
  return {input + first.in[0] * channels, input + (first.in[pairs - 1] + 1) * channels};
}

// Takes pairs from the front of a list.
inline PairList take(PairList& list, int64_t size) {
  if (size > list.size) size = list.size;
  const PairList taken = {list.in, list.out, size, list.offset};
  list = {list.in + size, list.out + size, list.size - size, list.offset};
  return taken;
}

// Takes the pairs of output rows before `end` from the front of a list: they are read next anyway.
inline PairList take_until(PairList& list, int64_t end) {
  int64_t size = 0;
  while (size + 8 <= list.size && list.out[size + 7] < end) size += 8;
  while (size < list.size && list.out[size] < end) ++size;
  return take(list, size);
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
void multiply(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList pairs, bool first, T* block,
              Ahead<T>& ahead) {
  for (; pairs.size >= kRows; pairs.in += kRows, pairs.out += kRows, pairs.size -= kRows) {
    ahead.fetch_some(kRows * c_in / kRowsPerFetch);
    multiply_tile<T, kRows, kVectors>(input, c_in, weight, c_out, pairs.in, pairs.out, first, block);
  }
  if constexpr (kRows > 1) multiply<T, kRows - 1, kVectors>(input, c_in, weight, c_out, pairs, first, block, ahead);
}

template <typename T, int kVectors = kMaxVectors>
void multiply_columns(const T* input, int64_t c_in, const T* weight, int64_t c_out, int64_t columns, PairList pairs,
                      bool first, T* block, Ahead<T>& ahead) {
  constexpr int kWidth = kVectors * kLanes<T>;
  for (; columns >= kWidth; columns -= kWidth, weight += kWidth, block += kWidth)
    multiply<T, rows_of_tile(kVectors), kVectors>(input, c_in, weight, c_out, pairs, first, block, ahead);
  if constexpr (kVectors > 1)
    if (columns > 0) multiply_columns<T, kVectors - 1>(input, c_in, weight, c_out, columns, pairs, first, block, ahead);
}

template <typename T>
void convolve(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList* lists, int64_t volume,
              int64_t begin, int64_t end, T* block, T* output) {
  const int64_t width = padded(c_out), step = block_rows(c_out);
  for (; begin < end; begin += step) {
    const int64_t stop = begin + step < end ? begin + step : end;
    T* sum = width == c_out ? output + begin * width : block;
    Ahead<T> ahead;
    for (int64_t k = 0; k < volume; ++k) {
      const PairList pairs = take_until(lists[k], stop);
      if (k == 0) ahead = next_rows(input, c_in, lists[0], pairs.size);
      const bool all = pairs.size == stop - begin;  // as for the centre of a submanifold convolution
      if (k == 0 && !all)
        for (int64_t i = 0; i < (stop - begin) * width; ++i) sum[i] = 0;
      multiply_columns<T>(input, c_in, weight + pairs.offset * c_in * width, width, width, pairs, k == 0 && all,
                          sum - begin * width, ahead);
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
    __builtin_prefetch(input + pairs.in[p + kAhead < pairs.size ? p + kAhead : p] * c_in);
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
               T* weight, Ahead<T>& inputs, Ahead<T>& grads) {
  for (; rows >= kRows; rows -= kRows, input += kRows, weight += kRows * c_out) {
    inputs.fetch_some(pairs.size * kRows / kRowsPerFetch);
    grads.fetch_some(pairs.size * kRows * c_out / c_in / kRowsPerFetch);
    correlate_tile<T, kRows, kVectors>(input, c_in, grad, c_out, pairs, weight);
  }
  if constexpr (kRows > 1) correlate<T, kRows - 1, kVectors>(input, c_in, grad, c_out, rows, pairs, weight, inputs, grads);
}

template <typename T, int kVectors = kMaxVectors>
void correlate_columns(const T* input, int64_t c_in, const T* grad, int64_t c_out, int64_t columns,
                       const PairList& pairs, T* weight, Ahead<T>& inputs, Ahead<T>& grads) {
  constexpr int kWidth = kVectors * kLanes<T>;
  for (; columns >= kWidth; columns -= kWidth, grad += kWidth, weight += kWidth)
    correlate<T, rows_of_tile(kVectors), kVectors>(input, c_in, grad, c_out, c_in, pairs, weight, inputs, grads);
  if constexpr (kVectors > 1)
    if (columns > 0) correlate_columns<T, kVectors - 1>(input, c_in, grad, c_out, columns, pairs, weight, inputs, grads);
}

constexpr int64_t kWindow = 256 << 10;  // bytes of inputs and gradients in the second-level cache, for all offsets,
constexpr int64_t kChunk = 24 << 10;    // and in the first-level one, for all tiles of weights, but no fewer than
constexpr int64_t kMinPairs = 32;       // so many pairs

template <typename T>
void weight_gradient(const T* input, int64_t c_in, const T* grad, int64_t c_out, PairList* lists, int64_t volume,
                     int64_t begin, int64_t end, T* weight) {
  const int64_t row = (c_in + c_out) * sizeof(T), window = kWindow / row + 1;
  const int64_t chunk = kChunk / row > kMinPairs ? kChunk / row : kMinPairs;
  for (int64_t stop; begin < end; begin = stop) {
    stop = begin + window < end ? begin + window : end;
    Ahead<T> inputs, grads = {grad + stop * c_out, grad + (stop + window < end ? stop + window : end) * c_out};
    for (int64_t k = 0; k < volume; ++k) {
      PairList pairs = take_until(lists[k], stop);
      if (k == 0) inputs = next_rows(input, c_in, lists[0], pairs.size);
      while (pairs.size > 0) {
        const PairList some = take(pairs, chunk);
        correlate_columns<T>(input, c_in, grad, c_out, c_out, some, weight + some.offset * c_in * c_out, inputs, grads);
      }
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
