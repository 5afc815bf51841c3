// Binds the CUDA launches to torch: device guard, stream, memory. The counterpart of cpu/path_lengths.cpp.

#ifdef WITH_CUDA

#include <ATen/Dispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/cuda/CUDAContext.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include <tuple>

#include "../checks.h"
#include "path_lengths.h"

namespace sparsereco {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> path_lengths_cuda(const at::Tensor& start, const at::Tensor& end,
                                                                 at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(start.device() == end.device(), "path_lengths: start and end must be on the same device, got ",
                    start.device(), " and ", end.device());
  const c10::cuda::CUDAGuard guard(start.device());
  const Grid grid = check_path_lengths(start, end, shape);
  const at::Tensor from = start.contiguous(), to = end.contiguous();
  const int64_t n = from.size(0);
  const cudaStream_t stream = at::cuda::getCurrentCUDAStream();
  const at::Tensor counts = at::empty({n}, from.options().dtype(at::kLong));
  at::Tensor segment, coords, length;

  AT_DISPATCH_FLOATING_TYPES(from.scalar_type(), "path_lengths_cuda", [&] {
    const scalar_t* a = from.const_data_ptr<scalar_t>();
    const scalar_t* b = to.const_data_ptr<scalar_t>();
    int64_t total = 0;
    at::Tensor stops = counts;
    if (n > 0) {  // CUDA refuses a launch of no blocks
      launch_count_crossed(a, b, grid, n, counts.mutable_data_ptr<int64_t>(), stream);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
      stops = counts.cumsum(0);
      total = stops[n - 1].item<int64_t>();
    }
    segment = at::empty({total}, from.options().dtype(at::kLong));
    coords = at::empty({total, 3}, from.options().dtype(at::kInt));
    length = at::empty({total}, from.options());
    if (total > 0) {
      launch_write_crossed(a, b, grid, n, stops.const_data_ptr<int64_t>(), segment.mutable_data_ptr<int64_t>(),
                           coords.mutable_data_ptr<int32_t>(), length.mutable_data_ptr<scalar_t>(), stream);
      C10_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {segment, coords, length};
}

}  // namespace

TORCH_LIBRARY_IMPL(sparsereco, CUDA, library) { library.impl("path_lengths", &path_lengths_cuda); }

}  // namespace sparsereco

#endif  // WITH_CUDA
