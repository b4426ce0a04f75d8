// The window of pixels that a token of stmeta::patch_shift reads, staged in shared memory.
//
// Every pixel is read once, normalised, and set to zero outside the frame; a table, made once a
// block, says where in the window each of the F = t*p*p*S*C features of a token lies.
//
// Letters: B batch, C channels, T frames, H W pixels, (t, p, p) tubelet, S shifts, N tokens of a
// sample, K of them made (K = N without ids).
#pragma once

#include <tuple>
#include <utility>
#include <vector>

#include "common/cuda_vector.cuh"

namespace stmeta::patch_shift {

constexpr int kMaxShifts = 32;
constexpr int kMaxChannels = 32;
constexpr int kGroup = 8;  // features that a thread takes at a time: 16 bytes of a 16-bit type

// What all kernels know. A pixel is (t, y, x); strides count elements.
struct Problem {
  const int64_t* ids;                                        // [B, K] contiguous; null: all tokens
  int64_t stride_b, stride_c, stride_t, stride_y, stride_x;  // of the video [B, C, T, H, W]
  int batch, channels, frames, height, width;
  int tubelet, patch, shifts, features;
  int rows, columns;  // of tokens in a frame
  int sites, kept;    // N and K
  int shift_t[kMaxShifts], shift_y[kMaxShifts], shift_x[kMaxShifts];
  float scale[kMaxChannels], offset[kMaxChannels];
  Divider by_kept, by_columns, by_rows, by_channels, by_shifts, by_patch, by_tubelet;

  __host__ __device__ int total() const { return batch * kept; }
};

// The pixels that a token reads: one box around all of its shifts, or, where they lie so far apart
// that this is less, one box for each shift. A box is stored as rows along x: [t, y, x, c] where
// channels are innermost in the video too ("packed"), else [c, t, y, x].
struct Window {
  int boxes, size;                // size: elements of all boxes
  int first_t, first_y, first_x;  // of the one box, relative to the token
  int extent_t, extent_y, extent_x;
  int unit;  // elements that one step along x takes: C if packed, else 1
  bool packed;
  bool quads;                  // rows can be loaded four elements at a time
  Divider by_row, by_y, by_t;  // loads in a row; rows in a frame; frames in a box
};

__host__ __device__ inline int whole_groups(int features) {
  return (features + kGroup - 1) / kGroup * kGroup;
}

struct Token {
  int batch, t, y, x;
};

__device__ inline Token find_token(const Problem& p, int index) {
  uint32_t slot = index;
  const int batch = p.by_kept.split(slot);
  uint32_t x = p.ids ? static_cast<uint32_t>(p.ids[index]) : slot;
  uint32_t y = p.by_columns.split(x);
  const uint32_t t = p.by_rows.split(y);
  return {batch, static_cast<int>(t) * p.tubelet, static_cast<int>(y) * p.patch,
          static_cast<int>(x) * p.patch};
}

// Parts of the dynamic shared memory, and their size for `features` table entries.
struct Shared {
  float* window;           // [size]
  Pack<float, 2>* affine;  // [C]: scale and offset
  uint16_t* table;         // [features], whole groups

  __device__ Shared(const Window& w, const Problem& p)
      : window(reinterpret_cast<float*>(dynamic_shared())),
        affine(reinterpret_cast<Pack<float, 2>*>(window + (w.size + 3) / 4 * 4)),
        table(reinterpret_cast<uint16_t*>(affine + (p.channels + 1) / 2 * 2)) {}

  static size_t bytes(const Window& w, const Problem& p, int features) {
    return (w.size + 3) / 4 * 16 + (p.channels + 1) / 2 * 16 + sizeof(uint16_t) * features;
  }
};

// Fills what does not change from token to token; `count` features from `first` on.
__device__ inline void prepare(const Problem& p, const Window& w, const Shared& shared, int first,
                               int count) {
  for (int c = threadIdx.x; c < p.channels; c += blockDim.x) {
    shared.affine[c] = {p.scale[c], p.offset[c]};
  }
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    uint32_t c = first + i;
    uint32_t s = p.by_channels.split(c);
    uint32_t x = p.by_shifts.split(s);
    uint32_t y = p.by_patch.split(x);
    uint32_t t = p.by_patch.split(y);
    int box = s;
    if (w.boxes == 1) {
      box = 0;
      t += p.shift_t[s] - w.first_t;
      y += p.shift_y[s] - w.first_y;
      x += p.shift_x[s] - w.first_x;
    }
    const int plane = w.packed ? box : box * p.channels + c;
    const int row = (plane * w.extent_t + t) * w.extent_y + y;
    const int place = (row * w.extent_x + x) * w.unit + (w.packed ? c : 0);
    shared.table[i] = first + i < p.features ? place : 0;
  }
}

// Loads the window of one token, kLoad elements at a time. Ends without a barrier.
template <int kLoad, typename In>
__device__ inline void stage(const Problem& p, const Window& w, const In* __restrict__ video,
                             const Token& token, const Shared& shared) {
  const In* sample = video + token.batch * p.stride_b;
  for (int i = threadIdx.x; i < w.size / kLoad; i += blockDim.x) {
    uint32_t step = i;
    uint32_t y = w.by_row.split(step);
    uint32_t t = w.by_y.split(y);
    uint32_t box = w.by_t.split(t);
    uint32_t c = box;
    box = w.packed ? box : p.by_channels.split(c);
    const bool one = w.boxes == 1;
    const int from_t = token.t + t + (one ? w.first_t : p.shift_t[box]);
    const int from_y = token.y + y + (one ? w.first_y : p.shift_y[box]);
    const int from_x = (token.x + (one ? w.first_x : p.shift_x[box])) * w.unit + step * kLoad;
    float value[kLoad] = {};
    if (static_cast<unsigned>(from_t) < static_cast<unsigned>(p.frames) &&
        static_cast<unsigned>(from_y) < static_cast<unsigned>(p.height) &&
        static_cast<unsigned>(from_x) < static_cast<unsigned>(p.width * w.unit)) {
      const In* source = sample + from_t * p.stride_t + from_y * p.stride_y;
      if (w.packed) {
        source += from_x;
        c = from_x;
        p.by_channels.split(c);
      } else {
        source += c * p.stride_c + from_x * p.stride_x;
      }
      load_floats<kLoad>(source, value);
#pragma unroll
      for (int k = 0; k < kLoad; ++k) {
        value[k] = value[k] * shared.affine[c].at[0] + shared.affine[c].at[1];
        if (w.packed && ++c == static_cast<uint32_t>(p.channels)) c = 0;
      }
    }
    store_floats<kLoad>(shared.window + i * kLoad, value);
  }
}

template <typename In>
__device__ inline void stage_token(const Problem& p, const Window& w, const In* __restrict__ video,
                                   const Token& token, const Shared& shared) {
  if (w.quads) {
    stage<4>(p, w, video, token, shared);
  } else {
    stage<1>(p, w, video, token, shared);
  }
}

__device__ inline void gather(const Shared& shared, int first, float (&x)[kGroup]) {
  const auto place = *reinterpret_cast<const Pack<uint16_t, kGroup>*>(shared.table + first);
#pragma unroll
  for (int k = 0; k < kGroup; ++k) x[k] = shared.window[place.at[k]];
}

// ---- host ----

// `sizes` and `strides` are those of the video; patch = {t, p}; shifts = {t, y, x} of each.
inline Problem make_problem(const int64_t* sizes, const int64_t* strides, const int64_t* ids,
                            int64_t kept, const std::vector<int64_t>& patch,
                            const std::vector<int64_t>& shifts, const std::vector<double>& scale,
                            const std::vector<double>& offset) {
  const int64_t channels = sizes[1], count = static_cast<int64_t>(shifts.size()) / 3;
  require(count <= kMaxShifts && channels <= kMaxChannels,
          "patch_shift: the cuda backend takes at most 32 shifts and 32 channels; use 'triton'");
  require(sizes[0] * kept < (int64_t{1} << 30), "patch_shift: B * K must be below 2^30");
  Problem p{};
  p.ids = ids;
  p.stride_b = strides[0], p.stride_c = strides[1], p.stride_t = strides[2];
  p.stride_y = strides[3], p.stride_x = strides[4];
  p.batch = static_cast<int>(sizes[0]), p.channels = static_cast<int>(channels);
  p.frames = static_cast<int>(sizes[2]), p.height = static_cast<int>(sizes[3]);
  p.width = static_cast<int>(sizes[4]);
  p.tubelet = static_cast<int>(patch[0]), p.patch = static_cast<int>(patch[1]);
  p.shifts = static_cast<int>(count), p.kept = static_cast<int>(kept);
  p.rows = p.height / p.patch, p.columns = p.width / p.patch;
  p.sites = p.frames / p.tubelet * p.rows * p.columns;
  p.features = p.tubelet * p.patch * p.patch * p.shifts * p.channels;
  // A shift by the whole clip already reads nothing; a longer one could only overflow.
  const auto near = [](int64_t shift, int64_t size) {
    return static_cast<int>(std::clamp(shift, -size, size));
  };
  for (int s = 0; s < p.shifts; ++s) {
    p.shift_t[s] = near(shifts[3 * s], p.frames);
    p.shift_y[s] = near(shifts[3 * s + 1], p.height);
    p.shift_x[s] = near(shifts[3 * s + 2], p.width);
  }
  std::copy(scale.begin(), scale.end(), p.scale);
  std::copy(offset.begin(), offset.end(), p.offset);
  p.by_kept = Divider(std::max(p.kept, 1)), p.by_channels = Divider(p.channels);
  p.by_columns = Divider(p.columns), p.by_rows = Divider(p.rows);
  p.by_shifts = Divider(p.shifts), p.by_patch = Divider(p.patch), p.by_tubelet = Divider(p.tubelet);
  return p;
}

// First offset and extent of `size` pixels under all the shifts.
inline std::pair<int, int> span(const int* shift, int count, int size) {
  const auto [low, high] = std::minmax_element(shift, shift + count);
  return {*low, *high - *low + size};
}

template <typename In>
Window make_window(const Problem& p, const In* video) {
  Window w{};
  std::tie(w.first_t, w.extent_t) = span(p.shift_t, p.shifts, p.tubelet);
  std::tie(w.first_y, w.extent_y) = span(p.shift_y, p.shifts, p.patch);
  std::tie(w.first_x, w.extent_x) = span(p.shift_x, p.shifts, p.patch);
  w.boxes = 1;
  int64_t size = int64_t{p.channels} * w.extent_t * w.extent_y * w.extent_x;
  if (size > p.features) {
    w.boxes = p.shifts, size = p.features;
    w.extent_t = p.tubelet, w.extent_y = w.extent_x = p.patch;
  }
  w.size = static_cast<int>(size);
  w.packed = p.stride_c == 1 && p.stride_x == p.channels;
  w.unit = w.packed ? p.channels : 1;
  const auto fours = [&](int64_t n) { return n % 4 == 0; };
  w.quads = (w.packed || (p.stride_x == 1 && fours(p.stride_c))) && fours(p.stride_b) &&
            fours(p.stride_t) && fours(p.stride_y) && fours(int64_t{p.patch} * w.unit) &&
            fours(int64_t{p.width} * w.unit) && aligned(video, 4 * sizeof(In)) &&
            std::all_of(p.shift_x, p.shift_x + p.shifts, [&](int x) { return fours(x * w.unit); });
  w.by_row = Divider(w.extent_x * w.unit / (w.quads ? 4 : 1));
  w.by_y = Divider(w.extent_y), w.by_t = Divider(w.extent_t);
  return w;
}

}  // namespace stmeta::patch_shift
