// The controller's part of a scan for one instruction set, forward and backward, and what a tile of
// the batch carries through the steps. No guard: each instruction set includes it, after the
// memory's own part.
#include "cpu/scan/lstm_element.h"
#include "cpu/scan/panel_product.h"

namespace stmeta::STMETA_ISA {

// What a tile of the batch carries from step to step, and its working rows.
struct ScanTile {
  int64_t first, rows;                // elements of the batch
  int64_t size, weight_floats;        // floats of a memory, and of the weights of an element
  float *input, *cell;                // [rows][K]: h, reads; [rows][H]
  float *gates, *heads;               // [rows][padded 4H], [rows][padded P]
  float *memory, *previous, *weight;  // of each element, padded
  float* pairs;                       // [rows][pairs], for `multiply`
};

STMETA_FN inline ScanTile take_scan_tile(const Scan& p, int64_t first, int64_t rows,
                                         Scratch& scratch) {
  const MemorySizes& s = p.sizes;
  ScanTile t = {first, rows, s.rows * s.wide, s.heads * s.padded};
  t.input = scratch.take(rows * p.recurrent_size);
  t.cell = scratch.take(rows * p.hidden);
  t.gates = scratch.take(rows * round_up(4 * p.hidden, kPanel));
  t.heads = scratch.take(rows * round_up(p.numbers, kPanel));
  t.memory = scratch.take(rows * t.size);
  t.previous = scratch.take(rows * t.weight_floats);
  t.weight = scratch.take(rows * t.weight_floats);
  t.pairs = scratch.take(rows * p.pairs());
  return t;
}

// ---- forward ----

STMETA_FN inline void start_scan(const Scan& p, const ScanTile& t) {
  const MemorySizes& s = p.sizes;
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i;
    copy(p.h + b * p.hidden, p.hidden, t.input + i * p.recurrent_size);
    if (p.recurrent_size > p.hidden)
      copy(p.reads + b * p.read(), p.read(), t.input + i * p.recurrent_size + p.hidden);
    copy(p.c + b * p.hidden, p.hidden, t.cell + i * p.hidden);
    read_rows(p.memory + b * s.rows * s.width, s.width, s.rows, s.width, s.wide,
              t.memory + i * t.size);
    read_rows(p.previous + b * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded,
              t.previous + i * t.weight_floats);
  }
}

// One step of the LSTM, and the raw numbers of the heads into t.heads.
STMETA_FN inline void step_controller(const Scan& p, const ScanTile& t, int64_t step) {
  const int64_t four = 4 * p.hidden;
  for (int64_t i = 0; i < t.rows; ++i) {
    float* gates = t.gates + i * p.recurrent.wide;
    copy(p.gates + ((t.first + i) * p.steps + step) * four, four, gates);
    clear(gates + four, p.recurrent.wide - four);
  }
  multiply(p.recurrent, t.input, p.recurrent_size, t.rows, t.gates, t.pairs);
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t at = (t.first + i) * p.steps + step;
    float *gates = t.gates + i * p.recurrent.wide, *h = t.input + i * p.recurrent_size;
    float* heads = t.heads + i * p.interface.wide;
    copy(p.bias, p.numbers, heads);
    clear(heads + p.numbers, p.interface.wide - p.numbers);
    if (!p.runs(t.first + i, step)) continue;
    float* cell = t.cell + i * p.hidden;
    const int64_t checkpoint = (t.first + i) * p.num_checkpoints() + step / p.every;
    if (p.lean && step % p.every == 0) copy(cell, p.hidden, p.cells + checkpoint * p.hidden);
    open_all(p.hidden, gates, cell, h);
    copy(gates, four, p.gates_out + at * four);
    if (!p.lean) copy(cell, p.hidden, p.cells + at * p.hidden);
    copy(h, p.hidden, p.y + at * (p.hidden + p.read()));
  }
  multiply(p.interface, t.input, p.recurrent_size, t.rows, t.heads, t.pairs);
}

// Keeps the memory, one every sqrt(T) steps, and the weights before the step where not all are
// kept.
STMETA_FN inline void save_checkpoint(const Scan& p, const ScanTile& t, int64_t i, int64_t step) {
  if (step % p.every != 0) return;
  const MemorySizes& s = p.sizes;
  const int64_t checkpoint = (t.first + i) * p.num_checkpoints() + step / p.every;
  write_rows<float>(t.memory + i * t.size, s.rows, s.width, s.wide, p.checkpoints, checkpoint);
  if (p.lean)
    write_rows<float>(t.previous + i * t.weight_floats, s.heads, s.rows, s.padded, p.weights,
                      checkpoint);
}

// Writes out the weights of a step, and what it read, padded; the next step is fed with it.
STMETA_FN inline void show_step(const Scan& p, const ScanTile& t, int64_t i, int64_t step,
                                const float* read) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step;
  if (!p.lean)
    write_rows<float>(t.weight + i * t.weight_floats, s.heads, s.rows, s.padded, p.weights, at);
  float* y = p.y + at * (p.hidden + p.read()) + p.hidden;
  write_rows<float>(read, s.reads, s.width, s.wide, y, 0);
  if (p.recurrent_size > p.hidden) copy(y, p.read(), t.input + i * p.recurrent_size + p.hidden);
}

// A step behind the end of an element's sequence: the state stays, its output is zero.
STMETA_FN inline void rest(const Scan& p, const ScanTile& t, int64_t i, int64_t step) {
  const MemorySizes& s = p.sizes;
  const int64_t at = (t.first + i) * p.steps + step, y_width = p.hidden + p.read();
  save_checkpoint(p, t, i, step);
  copy(t.previous + i * t.weight_floats, t.weight_floats, t.weight + i * t.weight_floats);
  if (!p.lean) {
    write_rows<float>(t.weight + i * t.weight_floats, s.heads, s.rows, s.padded, p.weights, at);
    copy(t.cell + i * p.hidden, p.hidden, p.cells + at * p.hidden);
  }
  clear(p.gates_out + at * 4 * p.hidden, 4 * p.hidden);
  clear(p.heads + at * p.numbers, p.numbers);
  clear(p.y + at * y_width, y_width);
}

// The weights of this step are the next one's `previous`.
STMETA_INLINE void turn_weights(ScanTile& t) {
  float* weight = t.weight;
  t.weight = t.previous;
  t.previous = weight;
}

STMETA_FN inline void end_scan(const Scan& p, const ScanTile& t) {
  const MemorySizes& s = p.sizes;
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i;
    write_rows<float>(t.memory + i * t.size, s.rows, s.width, s.wide, p.memory_out, b);
    write_rows<float>(t.previous + i * t.weight_floats, s.heads, s.rows, s.padded, p.weight_out, b);
    copy(t.cell + i * p.hidden, p.hidden, p.c_out + b * p.hidden);
  }
}

// ---- backward ----

// What the backward carries from step to step, of each element, and its working rows.
struct ScanBack {
  float *input, *cell;                    // [rows][padded K], [rows][H]
  float *memory, *weight, *other_weight;  // padded; other_weight takes turns with it
  float *d_gates, *d_heads, *grad_h;      // [rows][4H], [rows][P], [rows][padded H]
  float* past;   // [rows][slots][N][wide]: memories before steps of a segment
  float* cells;  // [rows][every + 1][H]: cells of a segment, before its first step first, or null
  float* read;   // [R][wide], gradient of what one element read
};

STMETA_FN inline ScanBack take_scan_back(const Scan& p, const ScanTile& t, Scratch& scratch) {
  ScanBack c = {};
  c.input = scratch.take(t.rows * p.recurrent.wide);
  c.cell = scratch.take(t.rows * p.hidden);
  c.memory = scratch.take(t.rows * t.size);
  c.weight = scratch.take(t.rows * t.weight_floats);
  c.other_weight = scratch.take(t.rows * t.weight_floats);
  c.d_gates = scratch.take(t.rows * 4 * p.hidden);
  c.d_heads = scratch.take(t.rows * p.numbers);
  c.grad_h = scratch.take(t.rows * p.interface.wide);
  c.past = scratch.take(t.rows * p.slots * t.size);
  c.read = scratch.take(p.sizes.reads * p.sizes.wide);
  return c;
}

STMETA_FN inline void start_scan_back(const Scan& p, const ScanTile& t, const ScanBack& c) {
  const MemorySizes& s = p.sizes;
  clear(c.input, t.rows * p.recurrent.wide);
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i;
    copy(p.grad_c + b * p.hidden, p.hidden, c.cell + i * p.hidden);
    read_rows(p.grad_memory + b * s.rows * s.width, s.width, s.rows, s.width, s.wide,
              c.memory + i * t.size);
    read_rows(p.grad_weight + b * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded,
              c.weight + i * t.weight_floats);
  }
}

// The weights before a step, padded.
STMETA_FN inline void load_previous(const Scan& p, int64_t b, int64_t step, float* out) {
  const MemorySizes& s = p.sizes;
  const int64_t size = s.heads * s.rows;
  const float* from =
      step == 0 ? p.previous + b * size : p.weights + (b * p.steps + step - 1) * size;
  read_rows(from, s.rows, s.heads, s.rows, s.padded, out);
}

// out[k] += gradient of number `first` + k of what a step showed.
STMETA_FN inline void add_output_grad(const Scan& p, int64_t b, int64_t step, int64_t first,
                                      int64_t count, float* out) {
  const int64_t stride = p.grad_strides[2];
  const float* from = p.grad_y + b * p.grad_strides[0] + step * p.grad_strides[1] + first * stride;
  if (stride == 1) {
    for (int64_t k = 0; k < count; ++k) out[k] += from[k];
    return;
  }
  for (int64_t k = 0; k < count; ++k) out[k] += from[k * stride];
}

// The gradient of what a step read.
STMETA_FN inline void load_read(const Scan& p, const ScanBack& c, int64_t b, int64_t i,
                                int64_t step) {
  const MemorySizes& s = p.sizes;
  const int64_t width = s.width;
  const float* input = c.input + i * p.recurrent.wide + p.hidden;
  clear(c.read, s.reads * s.wide);
  for (int64_t r = 0; r < s.reads; ++r) {
    float* read = c.read + r * s.wide;
    if (p.recurrent_size > p.hidden) copy(input + r * width, width, read);
    add_output_grad(p, b, step, p.hidden + r * width, width, read);
  }
}

// The weights of a step and those before it into the tile, and the gradient of what it read.
STMETA_FN inline void load_step(const Scan& p, const ScanTile& t, const ScanBack& c, int64_t i,
                                int64_t step) {
  const MemorySizes& s = p.sizes;
  const int64_t b = t.first + i, at = b * p.steps + step;
  load_previous(p, b, step, t.previous + i * t.weight_floats);
  read_rows(p.weights + at * s.heads * s.rows, s.rows, s.heads, s.rows, s.padded,
            t.weight + i * t.weight_floats);
  load_read(p, c, b, i, step);
}

// The cells of [begin, end) of an element again, from that before them and from the activated
// gates.
STMETA_FN inline void repeat_cells(const Scan& p, const ScanBack& c, int64_t b, int64_t i,
                                   int64_t begin, int64_t end) {
  const int64_t hidden = p.hidden;
  float* cell = c.cells + i * (p.every + 1) * hidden;
  const float* before = begin == 0 ? p.c + b * hidden
                        : p.lean   ? p.cells + (b * p.num_checkpoints() + begin / p.every) * hidden
                                   : p.cells + (b * p.steps + begin - 1) * hidden;
  copy(before, hidden, cell);
  for (int64_t step = begin; step < end && p.runs(b, step); ++step, cell += hidden) {
    const float* in = p.gates_out + (b * p.steps + step) * 4 * hidden;
    const float *forget = in + hidden, *value = in + 2 * hidden;
    for (int64_t n = 0; n < hidden; ++n) cell[hidden + n] = forget[n] * cell[n] + in[n] * value[n];
  }
}

// A step back behind the end of an element's sequence: gradients of the state pass as they are.
STMETA_FN inline void rest_back(const Scan& p, const ScanTile& t, const ScanBack& c, int64_t i,
                                int64_t step) {
  const int64_t at = (t.first + i) * p.steps + step;
  copy(c.weight + i * t.weight_floats, t.weight_floats, c.other_weight + i * t.weight_floats);
  clear(c.d_heads + i * p.numbers, p.numbers);
  clear(p.d_heads + at * p.numbers, p.numbers);
}

// The controller, a step back, from the gradients of the raw numbers of the heads.
STMETA_FN inline void step_controller_back(const Scan& p, const ScanTile& t, const ScanBack& c,
                                           int64_t step) {
  const int64_t hidden = p.hidden, four = 4 * hidden;
  for (int64_t i = 0; i < t.rows; ++i) {
    float* grad = c.grad_h + i * p.interface.wide;
    copy(c.input + i * p.recurrent.wide, hidden, grad);
    add_output_grad(p, t.first + i, step, 0, hidden, grad);
    clear(grad + hidden, p.interface.wide - hidden);
  }
  multiply(p.interface, c.d_heads, p.numbers, t.rows, c.grad_h, t.pairs);
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i, at = b * p.steps + step;
    if (!p.runs(b, step)) {
      clear(c.d_gates + i * four, four);
      clear(p.d_gates + at * four, four);
      continue;
    }
    const float* before = step == 0 ? p.c + b * hidden : p.cells + (at - 1) * hidden;
    const float* cell = p.cells + at * hidden;
    if (c.cells != nullptr) {
      before = c.cells + (i * (p.every + 1) + step % p.every) * hidden;
      cell = before + hidden;
    }
    float* d = c.d_gates + i * four;
    close_all(hidden, p.gates_out + at * four, cell, before, c.grad_h + i * p.interface.wide,
              c.cell + i * hidden, d);
    copy(d, four, p.d_gates + at * four);
  }
  clear(c.input, t.rows * p.recurrent.wide);
  multiply(p.recurrent, c.d_gates, four, t.rows, c.input, t.pairs);
}

STMETA_INLINE void turn_weights_back(ScanBack& c) {
  float* spare = c.other_weight;
  c.other_weight = c.weight;
  c.weight = spare;
}

STMETA_FN inline void end_scan_back(const Scan& p, const ScanTile& t, const ScanBack& c) {
  const MemorySizes& s = p.sizes;
  for (int64_t i = 0; i < t.rows; ++i) {
    const int64_t b = t.first + i;
    const float* input = c.input + i * p.recurrent.wide;
    write_rows<float>(c.memory + i * t.size, s.rows, s.width, s.wide, p.d_memory, b);
    write_rows<float>(c.weight + i * t.weight_floats, s.heads, s.rows, s.padded, p.d_previous, b);
    copy(input, p.hidden, p.d_h + b * p.hidden);
    copy(c.cell + i * p.hidden, p.hidden, p.d_c + b * p.hidden);
    if (p.recurrent_size > p.hidden) {
      copy(input + p.hidden, p.read(), p.d_reads + b * p.read());
    } else {
      clear(p.d_reads + b * p.read(), p.read());
    }
  }
}

}  // namespace stmeta::STMETA_ISA
