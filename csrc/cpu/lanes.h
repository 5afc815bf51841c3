// Vectors of one instruction set, and how numbers move between their lanes. Included by splat_<set>.cpp, which defines
//   SPARSERECO_VECTOR  bytes of a vector register,
// and switches the compiler to the set, so that nothing of this may be shared between the files: all names stand in an
// unnamed namespace, and headers are included before.
//
// Three numbers of a deposit stand in a row, vectors want the same number of many. Compilers go from one to the other
// by permutations across the whole register, which are slow; within each four lanes it takes fewer, and faster ones.

namespace sparsereco {
namespace {

template <typename scalar_t>
struct Lanes {
  using Integer = std::conditional_t<sizeof(scalar_t) == 4, int32_t, int64_t>;
  static constexpr int kWidth = SPARSERECO_VECTOR / sizeof(scalar_t);
  static constexpr bool kFours = kWidth % 4 == 0;
  typedef scalar_t Vector __attribute__((vector_size(SPARSERECO_VECTOR), may_alias));
  typedef scalar_t Unaligned __attribute__((vector_size(SPARSERECO_VECTOR), may_alias, aligned(sizeof(scalar_t))));
  typedef Integer Index __attribute__((vector_size(SPARSERECO_VECTOR), may_alias));

  // Lanes of two vectors: those of the second are counted on from those of the first.
  static SPARSERECO_HD Vector shuffle(const Vector& first, const Vector& second, const Index& lane) {
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(first, second, lane);
#else
    Vector found;
    for (int k = 0; k < kWidth; ++k)
      found[k] = lane[k] < kWidth ? first[lane[k] & (kWidth - 1)] : second[lane[k] & (kWidth - 1)];
    return found;
#endif
  }

  // table[lane], for lanes below kWidth.
  static SPARSERECO_HD Vector look_up(const scalar_t* table, const Index& lane) {
    const Vector found = *reinterpret_cast<const Unaligned*>(table);
#if defined(__GNUC__) && !defined(__clang__)
    return __builtin_shuffle(found, lane);
#else
    return shuffle(found, found, lane & (kWidth - 1));
#endif
  }

  // Of each four lanes, four out of those of two vectors: 0 to 3 are lanes of the first, 4 to 7 of the second.
  template <int a, int b, int c, int d>
  static SPARSERECO_HD Vector mix(const Vector& first, const Vector& second) {
    constexpr int pick[4] = {a, b, c, d};
    Index lane;
    for (int k = 0; k < kWidth; ++k) lane[k] = k / 4 * 4 + pick[k % 4] % 4 + (pick[k % 4] < 4 ? 0 : kWidth);
    return shuffle(first, second, lane);
  }

  // Of three vectors in a row, every third four of lanes from number `part` on.
  template <int part>
  static SPARSERECO_HD Vector third(const Vector& a, const Vector& b, const Vector& c) {
    Index of_two, of_three;  // lanes of a and b; of these and c
    for (int k = 0; k < kWidth; ++k) {
      const int from = 4 * part + 12 * (k / 4) + k % 4;
      of_two[k] = from < 2 * kWidth ? from : k;
      of_three[k] = from < 2 * kWidth ? k : from - kWidth;
    }
    return shuffle(shuffle(a, b, of_two), c, of_three);
  }
};

constexpr int kFirstCache = 3, kSecondCache = 2;
constexpr int kAhead = 32;  // deposits whose rows come into the first cache ahead of use

// Calls for numbers [first, first + n) of a row, which are read or written later: by itself, a CPU follows a stream
// only to the end of a page, and brings what is written into the first cache only when it is written. They may lie
// behind the end of the row.
template <int write, int cache, typename scalar_t>
SPARSERECO_HD void call_for(const scalar_t* row, int64_t first, int n) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(row) + first * sizeof(scalar_t), line = 64;
  for (uintptr_t at = from; at < from + n * sizeof(scalar_t); at += line)
    __builtin_prefetch(reinterpret_cast<const void*>(at), write, cache);
}

// x, y, z of n deposits that stand one after the other. Not part of what calls it: inlined there, GCC 12 leaves the
// loop that follows scalar.
template <typename scalar_t>
__attribute__((noinline)) void separate(const scalar_t* __restrict__ from, int n, scalar_t* __restrict__ x,
                                        scalar_t* __restrict__ y, scalar_t* __restrict__ z) {
  using L = Lanes<scalar_t>;
  int j = 0;
  if constexpr (L::kFours) {
    for (; j + L::kWidth <= n; j += L::kWidth) {
      const auto row = [&](int k) {
        return *reinterpret_cast<const typename L::Unaligned*>(from + 3 * j + k * L::kWidth);
      };
      const auto put = [&](scalar_t* to, const typename L::Vector& numbers) {
        *reinterpret_cast<typename L::Vector*>(to + j) = numbers;
      };
      call_for<0, kFirstCache>(from, 3 * (j + kAhead), 3 * L::kWidth);
      const typename L::Vector a = row(0), b = row(1), c = row(2);
      const typename L::Vector first = L::template third<0>(a, b, c);   // x y z x of each four deposits
      const typename L::Vector second = L::template third<1>(a, b, c);  // y z x y
      const typename L::Vector last = L::template third<2>(a, b, c);    // z x y z
      const typename L::Vector xy = L::template mix<2, 3, 5, 6>(second, last);
      const typename L::Vector yz = L::template mix<1, 2, 4, 5>(first, second);
      put(x, L::template mix<0, 3, 4, 6>(first, xy));
      put(y, L::template mix<0, 2, 5, 7>(yz, xy));
      put(z, L::template mix<1, 3, 4, 7>(yz, last));
    }
  }
  for (; j < n; ++j) {
    x[j] = from[3 * j];
    y[j] = from[3 * j + 1];
    z[j] = from[3 * j + 2];
  }
}

// Numbers for the four voxels of a layer, along z first, then along y: of one deposit, and of two. Handed on by
// reference: vectors wider than the registers of a set have no agreed way to be passed by value.
template <typename scalar_t>
struct Layer {
  typedef scalar_t Two __attribute__((vector_size(2 * sizeof(scalar_t))));
  typedef scalar_t Four __attribute__((vector_size(4 * sizeof(scalar_t))));
  typedef scalar_t Eight __attribute__((vector_size(8 * sizeof(scalar_t))));

  // Four times the one of two numbers, and four times the other.
  static SPARSERECO_HD void spread(const scalar_t* two, Eight& to) {
#if defined(__GNUC__) && !defined(__clang__) && SPARSERECO_VECTOR >= 32
    if constexpr (sizeof(scalar_t) == 4) {  // as one number twice as wide, four times
      typedef double Doubles __attribute__((vector_size(32)));
      typedef int32_t Order __attribute__((vector_size(32)));
      double both;
      std::memcpy(&both, two, sizeof both);
      to = __builtin_shuffle(reinterpret_cast<Eight>(Doubles{both, both, both, both}), Order{0, 0, 0, 0, 5, 5, 5, 5});
      return;
    }
#endif
    to = Eight{two[0], two[0], two[0], two[0], two[1], two[1], two[1], two[1]};
  }

  static SPARSERECO_HD void sum(const Eight& of_two, Four& to) {
    Four parts[2];
    std::memcpy(parts, &of_two, sizeof parts);
    to = parts[0] + parts[1];
  }

  // Adds the numbers of a layer to an image whose rows along y are `up_y` apart.
  static SPARSERECO_HD void add(const Four& layer, int32_t up_y, scalar_t* image) {
    for (int y = 0; y < 2; ++y) {
      Two row;
      std::memcpy(&row, image + y * up_y, sizeof row);
      row += Two{layer[2 * y], layer[2 * y + 1]};
      std::memcpy(image + y * up_y, &row, sizeof row);
    }
  }
};

// Writes x, y, z of many deposits, one deposit after the other.
template <typename scalar_t, typename Vector = typename Lanes<scalar_t>::Vector>
SPARSERECO_HD void interleave(const Vector& x, const Vector& y, const Vector& z, scalar_t* to) {
  using L = Lanes<scalar_t>;
  if constexpr (L::kFours) {
    const auto put = [&](const Vector& part, scalar_t* at) {
      typename Layer<scalar_t>::Four fours[L::kWidth / 4];
      std::memcpy(fours, &part, sizeof part);
      for (int k = 0; k < L::kWidth / 4; ++k) std::memcpy(at + 12 * k, &fours[k], sizeof fours[k]);
    };
    const Vector xy = L::template mix<0, 2, 4, 6>(x, y), yz = L::template mix<1, 3, 5, 7>(y, z);
    const Vector zx = L::template mix<0, 2, 5, 7>(z, x);
    put(L::template mix<0, 2, 4, 6>(xy, zx), to);
    put(L::template mix<0, 2, 5, 7>(yz, xy), to + 4);
    put(L::template mix<1, 3, 5, 7>(zx, yz), to + 8);
  } else {
    for (int k = 0; k < L::kWidth; ++k) {
      to[3 * k] = x[k];
      to[3 * k + 1] = y[k];
      to[3 * k + 2] = z[k];
    }
  }
}

}  // namespace
}  // namespace sparsereco
