// Binds sparse convolution to torch: checks, padding of weights, threads.

#include "../sparse_conv.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "clones.h"

namespace sparsereco {
namespace {

constexpr int64_t kGrain = 256;         // output rows per task
constexpr int64_t kPackGrain = 8192;    // weights per task
constexpr int64_t kCheckGrain = 32768;  // pairs per task
constexpr int64_t kSlab = 8192;         // output rows that a weight gradient is summed over before slabs are added up,
constexpr int64_t kMaxSlabs = 16;       // in order; more rows than so many slabs hold make longer slabs
constexpr int64_t kMaxChannels = 1 << 16;

// The instruction set that torch itself uses; ATEN_CPU_CAPABILITY=avx2 or =default chooses a smaller one.
template <typename T>
const ConvKernels<T>& conv_kernels() {
  static const ConvKernels<T> chosen = [] {
    const std::string set = at::get_cpu_capability();
    if (set == "AVX512") return conv_kernels_avx512<T>();
    return set == "AVX2" ? conv_kernels_avx2<T>() : conv_kernels_portable<T>();
  }();
  return chosen;
}

void check_features(const char* op, const char* name, const at::Tensor& feats) {
  TORCH_CHECK_TYPE(feats.scalar_type() == at::kFloat || feats.scalar_type() == at::kDouble, op, ": ", name,
                   " must be float32 or float64, got ", feats.scalar_type());
  TORCH_CHECK_VALUE(feats.dim() == 2 && feats.size(1) <= kMaxChannels, op, ": ", name,
                    " must have shape (rows, channels), got ", feats.sizes());
}

SPARSERECO_CLONES
bool ascend_strictly(const int32_t* rows, int64_t size) {
  int32_t faults = 0;
  for (int64_t p = 1; p < size; ++p) faults |= rows[p - 1] >= rows[p];
  return faults == 0;
}

void check_column(const char* op, int64_t list, const char* side, const int32_t* rows, int64_t size, int64_t n) {
  TORCH_CHECK_VALUE(ascend_strictly(rows, size), op, ": ", side, " rows of list ", list, " must ascend strictly");
  TORCH_CHECK_VALUE(size == 0 || (rows[0] >= 0 && rows[size - 1] < n), op, ": ", side, " rows of list ", list,
                    " must lie in 0 to ", n - 1, ", got ", rows[0], " to ", rows[size - 1]);
}

// The lists of all offsets of the kernel. A map of half a symmetric kernel serves the other half with columns
// exchanged. The centre comes first: it reads the input in order, and so brings it to the cache for the others.
std::vector<PairList> check_lists(const char* op, const at::Tensor& rows, const at::Tensor& splits, int64_t volume,
                                  bool transposed, int64_t n_in, int64_t n_out) {
  TORCH_CHECK_TYPE(rows.scalar_type() == at::kInt, op, ": rows must be int32, got ", rows.scalar_type());
  TORCH_CHECK_TYPE(splits.scalar_type() == at::kLong, op, ": splits must be int64, got ", splits.scalar_type());
  TORCH_CHECK_VALUE(rows.dim() == 2 && rows.size(0) == 2 && rows.is_contiguous(), op,
                    ": rows must have shape (2, P) and be contiguous, got ", rows.sizes());
  TORCH_CHECK_VALUE(splits.dim() == 1 && splits.size(0) > 1 && splits.is_contiguous(), op,
                    ": splits must have shape (lists + 1,) and be contiguous, got ", splits.sizes());
  const int64_t n_lists = splits.size(0) - 1;
  const bool halved = volume == 2 * n_lists - 1;
  TORCH_CHECK_VALUE(halved || volume == n_lists, op, ": ", n_lists, " lists serve a kernel of ", n_lists, " or ",
                    2 * n_lists - 1, " offsets, got ", volume);
  const int64_t* split = splits.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(split[0] == 0 && split[n_lists] == rows.size(1) && std::is_sorted(split, split + n_lists + 1), op,
                    ": splits must rise from 0 to the ", rows.size(1), " pairs of rows, got ", splits);

  const int32_t* in = rows.const_data_ptr<int32_t>();
  const int32_t* out = in + rows.size(1);
  if (transposed) std::swap(in, out);
  at::parallel_for(0, n_lists, kCheckGrain / (rows.size(1) / n_lists + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t l = begin; l < end; ++l) {
      const int64_t size = split[l + 1] - split[l], both = std::min(n_in, n_out);
      check_column(op, l, "input", in + split[l], size, halved && l > 0 ? both : n_in);
      check_column(op, l, "output", out + split[l], size, halved && l > 0 ? both : n_out);
    }
  });
  std::vector<PairList> lists;
  for (int64_t l = 0; l < n_lists; ++l) {
    const int64_t size = split[l + 1] - split[l];
    lists.push_back({in + split[l], out + split[l], size, halved ? n_lists - 1 + l : l});
    if (halved && l > 0) lists.push_back({out + split[l], in + split[l], size, n_lists - 1 - l});
  }
  return lists;
}

// The same lists without the pairs of output rows before `begin`.
std::vector<PairList> from_row(std::vector<PairList> lists, int64_t begin) {
  for (PairList& list : lists) {
    const int64_t skipped = std::lower_bound(list.out, list.out + list.size, begin) - list.out;
    list = {list.in + skipped, list.out + skipped, list.size - skipped, list.offset};
  }
  return lists;
}

// One matrix of (c_out, c_in) with strides to (c_in, padded(c_out)). It goes by tiles of columns, which use up the
// cache lines that they touch.
template <typename T>
void pack(const T* from, int64_t s_out, int64_t s_in, int64_t c_out, int64_t c_in, T* to) {
  const int64_t width = padded(c_out);
  for (int64_t first = 0; first < width; first += kPad) {
    const int64_t last = std::min(first + kPad, c_out);
    for (int64_t i = 0; i < c_in; ++i) {
      for (int64_t o = first; o < last; ++o) to[i * width + o] = from[o * s_out + i * s_in];
      for (int64_t o = last; o < first + kPad; ++o) to[i * width + o] = T{0};
    }
  }
}

// (c_out, volume, c_in) of any strides to (volume, c_in, padded(c_out)).
template <typename T>
at::Tensor packed(const at::Tensor& weight) {
  const int64_t c_out = weight.size(0), volume = weight.size(1), c_in = weight.size(2), matrix = c_in * padded(c_out);
  at::Tensor result = at::empty({volume, c_in, padded(c_out)}, weight.options());
  const T* from = weight.const_data_ptr<T>();
  T* to = result.mutable_data_ptr<T>();
  at::parallel_for(0, volume, kPackGrain / (matrix + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k)
      pack(from + k * weight.stride(1), weight.stride(0), weight.stride(2), c_out, c_in, to + k * matrix);
  });
  return result;
}

at::Tensor sparse_conv(const at::Tensor& input, const at::Tensor& weight, const at::Tensor& rows,
                       const at::Tensor& splits, int64_t n_out, bool transposed) {
  check_features("sparse_conv", "input", input);
  TORCH_CHECK_TYPE(weight.scalar_type() == input.scalar_type(), "sparse_conv: weight must be ", input.scalar_type(),
                   " as input is, got ", weight.scalar_type());
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.size(2) == input.size(1) && weight.size(0) <= kMaxChannels,
                    "sparse_conv: weight must have shape (C_out, offsets, ", input.size(1), "), got ", weight.sizes());
  TORCH_CHECK_VALUE(n_out >= 0, "sparse_conv: n_out must not be negative, got ", n_out);
  const std::vector<PairList> lists =
      check_lists("sparse_conv", rows, splits, weight.size(1), transposed, input.size(0), n_out);
  const at::Tensor x = input.contiguous();
  const int64_t c_in = x.size(1), c_out = weight.size(0), volume = static_cast<int64_t>(lists.size());
  at::Tensor output = at::empty({n_out, c_out}, x.options());
  if (output.numel() == 0) return output;

  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sparse_conv", [&] {
    const at::Tensor w = packed<scalar_t>(weight);
    at::parallel_for(0, n_out, kGrain, [&](int64_t begin, int64_t end) {
      std::vector<PairList> own = from_row(lists, begin);
      const at::Tensor block = at::empty({std::min(block_rows(c_out), end - begin), padded(c_out)}, x.options());
      conv_kernels<scalar_t>().convolve(x.const_data_ptr<scalar_t>(), c_in, w.const_data_ptr<scalar_t>(), c_out,
                                        own.data(), volume, begin, end, block.mutable_data_ptr<scalar_t>(),
                                        output.mutable_data_ptr<scalar_t>());
    });
  });
  return output;
}

at::Tensor sparse_conv_weight(const at::Tensor& input, const at::Tensor& grad, const at::Tensor& rows,
                              const at::Tensor& splits, int64_t volume, bool transposed) {
  check_features("sparse_conv_weight", "input", input);
  check_features("sparse_conv_weight", "grad", grad);
  TORCH_CHECK_TYPE(grad.scalar_type() == input.scalar_type(), "sparse_conv_weight: grad must be ", input.scalar_type(),
                   " as input is, got ", grad.scalar_type());
  const std::vector<PairList> lists =
      check_lists("sparse_conv_weight", rows, splits, volume, transposed, input.size(0), grad.size(0));
  const int64_t n_out = grad.size(0), c_in = input.size(1), c_out = grad.size(1), width = padded(c_out);
  const at::Tensor x = input.contiguous();
  at::Tensor g = grad.contiguous();
  if (width != c_out) {
    g = at::zeros({n_out, width}, grad.options());
    g.narrow(1, 0, c_out).copy_(grad);
  }
  at::Tensor result = at::zeros({c_out, volume, c_in}, x.options());
  if (result.numel() == 0 || n_out == 0) return result;

  // The slabs depend on the number of rows alone: the sums are the same for any number of threads.
  const int64_t slabs = std::clamp<int64_t>(n_out / kSlab, 1, kMaxSlabs);
  AT_DISPATCH_FLOATING_TYPES(x.scalar_type(), "sparse_conv_weight", [&] {
    const at::Tensor sums = at::empty({slabs, volume, c_in, width}, x.options());
    scalar_t* sum = sums.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, slabs * volume, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last;) {
        const int64_t slab = task / volume, stop = std::min(last, (slab + 1) * volume);
        const int64_t begin = n_out * slab / slabs, end = n_out * (slab + 1) / slabs;
        std::vector<PairList> own(lists.begin() + task % volume, lists.begin() + (stop - slab * volume));
        own = from_row(std::move(own), begin);
        for (const PairList& list : own)
          std::fill_n(sum + (slab * volume + list.offset) * c_in * width, c_in * width, scalar_t{0});
        conv_kernels<scalar_t>().weight_gradient(x.const_data_ptr<scalar_t>(), c_in, g.const_data_ptr<scalar_t>(),
                                                 width, own.data(), stop - task, begin, end,
                                                 sum + slab * volume * c_in * width);
        task = stop;
      }
    });
    scalar_t* out = result.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, volume, 1, [&](int64_t first, int64_t last) {
      const int64_t matrix = c_in * width;
      for (int64_t k = first; k < last; ++k) {
        scalar_t* total = sum + k * matrix;
        for (int64_t slab = 1; slab < slabs; ++slab)
          for (int64_t i = 0; i < matrix; ++i) total[i] += sum[(slab * volume + k) * matrix + i];
        for (int64_t o = 0; o < c_out; ++o)
          for (int64_t i = 0; i < c_in; ++i) out[(o * volume + k) * c_in + i] = total[i * width + o];
      }
    });
  });
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CPU, library) {
  library.impl("sparse_conv", &sparse_conv);
  library.impl("sparse_conv_weight", &sparse_conv_weight);
}

}  // namespace sparsereco
