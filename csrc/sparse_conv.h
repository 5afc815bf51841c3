// Sparse convolution over kernel maps: what is computed. cpu/sparse_conv_tiles.h computes it, once per instruction set.

#pragma once

#include <cstdint>

namespace sparsereco {

// The pairs of one offset of the kernel; both columns ascend strictly.
struct PairList {
  const int32_t* in;   // input rows
  const int32_t* out;  // output rows
  int64_t size;
  int64_t offset;  // its weights: weight[offset]
};

// Channels of weights and gradients are padded with zeros to a multiple of this, which every vector length divides.
constexpr int64_t kPad = 16;
inline int64_t padded(int64_t channels) { return (channels + kPad - 1) / kPad * kPad; }

// Output rows that are computed together: 128 KiB of sums, a part of the second-level cache.
inline int64_t block_rows(int64_t c_out) { return padded(c_out) < 512 ? 32768 / padded(c_out) : 64; }

// All pointers but those to rows are aligned to 64 bytes. `lists` start at the first pair of the output rows [begin,
// end), and are consumed. Each number is added up in an order that does not depend on how output rows are split.
template <typename T>
struct ConvKernels {
  // output[out] = sum over offsets k and their pairs (in, out) of input[in] @ weight[k].
  //   input: (N, c_in); weight: (volume, c_in, padded(c_out)); output: (M, c_out);
  //   block: workspace of block_rows(c_out) * padded(c_out), where c_out is not padded itself.
  void (*convolve)(const T* input, int64_t c_in, const T* weight, int64_t c_out, PairList* lists, int64_t volume,
                   int64_t begin, int64_t end, T* block, T* output);

  // weight[k] += sum over the pairs of offset k of input[in]^T @ grad[out].
  //   grad: (M, c_out), c_out a multiple of kPad; weight: (volume, c_in, c_out).
  void (*weight_gradient)(const T* input, int64_t c_in, const T* grad, int64_t c_out, PairList* lists, int64_t volume,
                          int64_t begin, int64_t end, T* weight);
};

// Each in a file of its own; on a processor that is not x86 all of them are the portable one.
template <typename T>
ConvKernels<T> conv_kernels_portable();
template <typename T>
ConvKernels<T> conv_kernels_avx2();
template <typename T>
ConvKernels<T> conv_kernels_avx512();

}  // namespace sparsereco
