// Cuts a window out of frames as a video decoder leaves them, resizes it and makes it RGB, in one
// pass over the planes.
#pragma once

#include <cstdint>

namespace stmeta {

// Fixed point, as FFmpeg's libswscale has it: a product keeps its upper 16 of 32 bits.
struct YuvColours {
  int16_t luma, red_v, blue_u, green_u, green_v;  // times 2^13
  int16_t black;                                  // luma of black, times 8
};

struct YuvClip {
  const int64_t* pictures;  // [frames, 5]: addresses of Y, U, V; bytes per row of Y, and of U and V
  int64_t frames, height, width;     // width and height of Y; U and V have half, rounded up
  int64_t top, left, rows, columns;  // the window
  bool flip;                         // left to right
  YuvColours colours;
  uint8_t* out;  // [frames, out_rows, out_columns, 3]
  int64_t out_rows, out_columns;
};

// Sums of source pixels that make the pixels of one axis, as torch's antialiased bilinear resize of
// uint8 has them: 16-bit weights of 2^precision. `weights` is [count, taps], taps even.
struct YuvTaps {
  int64_t count, taps;
  int32_t precision;
  const int32_t* first;
  const int16_t* weights;
};

// Runs on the calling thread. Raises std::invalid_argument.
void crop_resize_yuv(const YuvClip& clip);

}  // namespace stmeta
