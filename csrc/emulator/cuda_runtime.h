// Stands in for the CUDA runtime, so that a .cu file compiles as C++ and runs on the host, under its sanitizers. For
// tests only. The blocks of a launch run one after the other; the threads of a block are threads of the host, kept in
// step by barriers: what races on a GPU races here.

#pragma once

#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(begin, bytes)
#endif

#define __global__
#define __device__
#define __host__
#define __shared__
#define __launch_bounds__(...)

struct dim3 {
  unsigned int x = 1, y = 1, z = 1;
};

using cudaStream_t = void*;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace sparsereco {
extern double shared_memory[];  // emulator::kSharedBytes of them, defined by the program
}

namespace emulator {

constexpr size_t kSharedBytes = 48 * 1024;  // what every GPU gives a block without asking

struct Warp {
  std::barrier<> step{32};
  uint64_t lane[32] = {};
};

struct Block {
  explicit Block(unsigned int threads) : step(threads) {
    for (unsigned int first = 0; first < threads; first += 32) warps.push_back(std::make_unique<Warp>());
  }
  std::barrier<> step;
  std::vector<std::unique_ptr<Warp>> warps;
};

inline thread_local Block* block = nullptr;

}  // namespace emulator

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { emulator::block->step.arrive_and_wait(); }

namespace emulator {

// Every lane of the warp gives a value and takes that of lane `from`.
template <typename T>
T exchange(T value, unsigned int from) {
  Warp& warp = *block->warps[threadIdx.x / 32];
  std::memcpy(&warp.lane[threadIdx.x % 32], &value, sizeof(T));
  warp.step.arrive_and_wait();
  std::memcpy(&value, &warp.lane[from], sizeof(T));
  warp.step.arrive_and_wait();
  return value;
}

template <typename T, typename Change>
T update(T* at, const Change& change) {
  std::atomic_ref<T> shared(*at);
  T old = shared.load();
  while (!shared.compare_exchange_weak(old, change(old))) {
  }
  return old;
}

}  // namespace emulator

template <typename T>
T __shfl_up_sync(unsigned int, T value, unsigned int step) {
  const unsigned int lane = threadIdx.x % 32;
  return emulator::exchange(value, lane < step ? lane : lane - step);
}

template <typename T>
T __shfl_down_sync(unsigned int, T value, unsigned int step) {
  const unsigned int lane = threadIdx.x % 32;
  return emulator::exchange(value, lane + step > 31 ? lane : lane + step);
}

inline unsigned int __ballot_sync(unsigned int, bool vote) {
  unsigned int votes = 0;
  for (unsigned int lane = 0; lane < 32; ++lane) votes |= (emulator::exchange(vote, lane) ? 1u : 0u) << lane;
  return votes;
}

inline int __ffs(int bits) { return __builtin_ffs(bits); }

template <typename T>
T atomicAdd(T* at, T value) {
  return emulator::update(at, [value](T old) { return old + value; });
}

inline unsigned int atomicOr(unsigned int* at, unsigned int bits) {
  return emulator::update(at, [bits](unsigned int old) { return old | bits; });
}

inline long long atomicMin(long long* at, long long value) {
  return emulator::update(at, [value](long long old) { return value < old ? value : old; });
}

template <typename... Parameters, typename... Arguments>
void cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                        const Arguments&... arguments) {
  if (config->dynamicSmemBytes > emulator::kSharedBytes) std::abort();
  emulator::Block here(config->blockDim.x);
  char* memory = reinterpret_cast<char*>(sparsereco::shared_memory);
  ASAN_POISON_MEMORY_REGION(memory + config->dynamicSmemBytes, emulator::kSharedBytes - config->dynamicSmemBytes);
  std::vector<std::thread> threads;
  for (unsigned int thread = 0; thread < config->blockDim.x; ++thread)
    threads.emplace_back([&, thread] {
      emulator::block = &here;
      threadIdx.x = thread;
      blockDim = config->blockDim;
      gridDim = config->gridDim;
      for (unsigned int i = 0; i < gridDim.x; ++i) {
        if (thread == 0) std::memset(memory, 0xff, config->dynamicSmemBytes);  // NaN: what is not set shows
        __syncthreads();
        blockIdx.x = i;
        kernel(arguments...);
        __syncthreads();
      }
    });
  for (std::thread& thread : threads) thread.join();
  ASAN_UNPOISON_MEMORY_REGION(memory, emulator::kSharedBytes);
}
