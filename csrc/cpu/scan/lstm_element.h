// The point-wise part of an LSTM step, forward and backward, for one instruction set. No guard:
// each instruction set includes it.

namespace stmeta::STMETA_ISA {

STMETA_INLINE Vec sigmoid_of(Vec x) { return splat(1.0f) / (splat(1.0f) + exp_of(-x)); }
STMETA_INLINE Vec tanh_of(Vec x) {
  return splat(1.0f) - splat(2.0f) / (splat(1.0f) + exp_of(x + x));
}
STMETA_INLINE float sigmoid_number(float x) { return 1.0f / (1.0f + __builtin_expf(-x)); }

STMETA_INLINE void copy(const float* from, int64_t count, float* to) {
  if (count > 0) __builtin_memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// The point-wise part of an LSTM step, of one vector: gates become what they let through; h and c.
STMETA_INLINE void open_gates(float* in, float* forget, float* value, float* out, float* cell,
                              float* h) {
  const Vec i = sigmoid_of(load(in)), f = sigmoid_of(load(forget));
  const Vec g = tanh_of(load(value)), o = sigmoid_of(load(out));
  const Vec c = f * load(cell) + i * g;
  store(in, i);
  store(forget, f);
  store(value, g);
  store(out, o);
  store(cell, c);
  store(h, o * tanh_of(c));
}

// Gradients of the gates [4][H] from that of h; `carried`, of the cell, goes a step back.
STMETA_INLINE void close_gates(const float* in, const float* forget, const float* value,
                               const float* out, const float* cell, const float* before,
                               const float* grad_h, float* carried, float* d_in, float* d_forget,
                               float* d_value, float* d_out) {
  const Vec one = splat(1.0f), i = load(in), f = load(forget), g = load(value), o = load(out);
  const Vec activated_cell = tanh_of(load(cell)), d = load(grad_h);
  const Vec dc = load(carried) + d * o * (one - activated_cell * activated_cell);
  store(d_in, dc * g * i * (one - i));
  store(d_forget, dc * load(before) * f * (one - f));
  store(d_value, dc * i * (one - g * g));
  store(d_out, d * activated_cell * o * (one - o));
  store(carried, dc * f);
}

// Both, over H numbers: the last ones, which fill no vector, go through copies.
STMETA_FN inline void open_all(int64_t hidden, float* gates, float* cell, float* h) {
  int64_t n = 0;
  for (; n + kLanes <= hidden; n += kLanes) {
    float* g = gates + n;
    open_gates(g, g + hidden, g + 2 * hidden, g + 3 * hidden, cell + n, h + n);
  }
  const int64_t rest = hidden - n;
  if (rest == 0) return;
  float tail[6][kLanes] = {};
  float* places[6] = {
      gates + n, gates + hidden + n, gates + 2 * hidden + n, gates + 3 * hidden + n, cell + n,
      h + n};
  for (int k = 0; k < 5; ++k) copy(places[k], rest, tail[k]);
  open_gates(tail[0], tail[1], tail[2], tail[3], tail[4], tail[5]);
  for (int k = 0; k < 6; ++k) copy(tail[k], rest, places[k]);
}

STMETA_FN inline void close_all(int64_t hidden, const float* gates, const float* cell,
                                const float* before, const float* grad_h, float* carried,
                                float* d_gates) {
  int64_t n = 0;
  for (; n + kLanes <= hidden; n += kLanes) {
    const float* g = gates + n;
    float* d = d_gates + n;
    close_gates(g, g + hidden, g + 2 * hidden, g + 3 * hidden, cell + n, before + n, grad_h + n,
                carried + n, d, d + hidden, d + 2 * hidden, d + 3 * hidden);
  }
  const int64_t rest = hidden - n;
  if (rest == 0) return;
  float in[8][kLanes] = {}, out[4][kLanes];
  for (int k = 0; k < 4; ++k) copy(gates + k * hidden + n, rest, in[k]);
  copy(cell + n, rest, in[4]);
  copy(before + n, rest, in[5]);
  copy(grad_h + n, rest, in[6]);
  copy(carried + n, rest, in[7]);
  close_gates(in[0], in[1], in[2], in[3], in[4], in[5], in[6], in[7], out[0], out[1], out[2],
              out[3]);
  for (int k = 0; k < 4; ++k) copy(out[k], rest, d_gates + k * hidden + n);
  copy(in[7], rest, carried + n);
}

}  // namespace stmeta::STMETA_ISA
