// Rows of some sequences through the trunk. The contract that everything else stands on: a number of a row is computed by
// the same operations in the same order, whatever the number of rows, their places, the tree they stand in, other
// sequences, the threads, the instruction set and the compiler.
//
//   product    an output is one lane: a chain of fused multiply-adds over the inputs, ascending, from 0. int8: a sum of
//              whole numbers, which is exact in any order, then two multiplications
//   norm       16 partial sums of squares by index mod 16, then one fixed tree
//   attention  a score is a chain like a product. The softmax sum is 16 partial sums by position mod 16, ascending, then
//              the fixed tree. Values are added by ascending position, on a tree too
//   exp        ours; everything else is one IEEE operation
//
// Rows, tiles, panels and threads only choose what runs side by side. A masked position is never multiplied: it is left
// out. Never build this with -ffast-math or with contraction: -ffp-contract=off.
#include <math.h>
#include <sys/mman.h>

#include "dmath.h"
#include "engine.h"
#include "pool.h"

namespace BL_NS {

BL_INLINE int round_up(int x, int to) { return (x + to - 1) / to * to; }

// Memory --------------------------------------------------------------------------------------------------------------

struct Chunk { Chunk* next; void* memory; };
struct Arena { Chunk* chunks; char* at; size_t left; size_t bytes; };

// Zeroed memory. From 2 MB on it asks for huge pages: hardware prefetchers stop at the end of a page.
static void* zeroed(size_t bytes) {
  void* p = nullptr;
  const size_t page = bytes >= ((size_t)1 << 21) ? (size_t)1 << 21 : 64;
  bytes = (bytes + page - 1) / page * page;
  if (posix_memalign(&p, page, bytes)) return nullptr;
#ifdef MADV_HUGEPAGE
  if (page > 64) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  memset(p, 0, bytes);
  return p;
}

// Weights lie one behind the other, so that a pass reads memory in one direction.
void* take(Arena* arena, size_t bytes) {
  bytes = (bytes + 255) / 256 * 256;
  if (bytes > arena->left) {
    size_t size = bytes > ((size_t)16 << 20) ? bytes : (size_t)16 << 20;
    Chunk* chunk = (Chunk*)malloc(sizeof(Chunk));
    void* memory = chunk ? zeroed(size) : nullptr;
    if (!memory) return free(chunk), nullptr;
    *chunk = {arena->chunks, memory};
    arena->chunks = chunk, arena->at = (char*)memory, arena->left = size;
  }
  void* p = arena->at;
  arena->at += bytes, arena->left -= bytes, arena->bytes += bytes;
  return p;
}

static void arena_free(Arena* arena) {
  if (!arena) return;
  for (Chunk *c = arena->chunks, *next; c; c = next) next = c->next, free(c->memory), free(c);
  free(arena);
}

// Matrices ------------------------------------------------------------------------------------------------------------

// Packs [outs][ins] numbers, row by row. Status.
static int pack_matrix(Arena* arena, Matrix* m, const float* weights, int outs, int ins, int kind) {
  *m = {outs, ins, round_up(outs, PANEL) / PANEL, round_up(ins, 4), kind, nullptr, nullptr, nullptr};
  const size_t each = kind == F32 ? 4 : kind == BF16 ? 2 : 1;
  m->data = take(arena, (size_t)m->panels * PANEL * m->padded_ins * each);
  if (!m->data) return OUT_OF_MEMORY;
  if (kind == INT8) {
    m->scale = (float*)take(arena, (size_t)m->panels * PANEL * 4);
    m->offset = (int32_t*)take(arena, (size_t)m->panels * PANEL * 4);
    if (!m->scale || !m->offset) return OUT_OF_MEMORY;
  }
  for (int o = 0; o < outs; o++) {
    const float* row = weights + (size_t)o * ins;
    const size_t base = (size_t)(o / PANEL) * PANEL * m->padded_ins;
    const int lane = o % PANEL;
    float top = 1e-30f;
    for (int i = 0; kind == INT8 && i < ins; i++) top = fmaxf(top, fabsf(row[i]));
    int32_t sum = 0;
    for (int i = 0; i < ins; i++) {
      if (kind == F32) {
        ((float*)m->data)[base + (size_t)i * PANEL + lane] = row[i];
      } else if (kind == BF16) {
        ((uint16_t*)m->data)[base + (size_t)(i / 2) * PANEL * 2 + lane * 2 + i % 2] = to_bf16(row[i]);
      } else {
        const int q = (int)nearbyintf(row[i] * (127.0f / top));
        ((int8_t*)m->data)[base + (size_t)(i / 4) * PANEL * 4 + lane * 4 + i % 4] = (int8_t)q;
        sum += q;
      }
    }
    if (kind == INT8) m->scale[o] = top / 127.0f, m->offset[o] = -INPUT_OFFSET * sum;
  }
  return OK;
}

static size_t matrix_bytes(const Matrix& m) {
  return (size_t)m.panels * PANEL * m.padded_ins * (m.kind == F32 ? 4 : m.kind == BF16 ? 2 : 1);
}

struct ProductJob {
  const Matrix* w;
  const float* x;
  int ldx;
  float* y;
  int ldy, rows, from, to;
  const uint32_t* quantized;  // int8: the same inputs, begins of sums and units, see quantize_row
  const int32_t* begin;
  const float* unit;
  float* sums;              // [shares][rows][64], for many rows
};

// Words of one row of quantized inputs.
BL_INLINE size_t quantized_words(int ins) { return (size_t)round_up(ins, LANES) / 4 * INPUT_WORDS; }

constexpr size_t AHEAD = 8192;  // bytes that are fetched ahead: a pass of few rows waits for memory
constexpr int VECTORS_OF_PANEL = PANEL / LANES;

// M rows times N vectors of outputs, from vector `first` of a panel on into the next panel. Weights are read once, sums
// stay in registers.
template <int KIND, int M, int N, bool ADD>
BL_INLINE void tile(const ProductJob& a, int panel, int first, int row) {
  const Matrix& w = *a.w;
  const int ins = w.padded_ins, o = panel * PANEL + first * LANES;
  constexpr int GROUP = KIND == F32 ? 1 : KIND == BF16 ? 2 : 4;
  const uint32_t* base = (const uint32_t*)w.data + (size_t)panel * PANEL * (ins / GROUP) + first * LANES;
  const size_t next = (size_t)PANEL * (ins / GROUP) - PANEL;  // from the end of a line of this panel to the next panel
  float* y = a.y + (size_t)row * a.ldy + o;
  // The first tile of a panel fetches whole lines of it, also what the tiles beside it will read.
  constexpr int AHEAD_LINES = N < VECTORS_OF_PANEL ? VECTORS_OF_PANEL : N;
  const bool ahead = row == 0 && first == 0;
#define BL_AT(n) ((n) * LANES + ((n) >= VECTORS_OF_PANEL ? next : 0))
  if constexpr (KIND == INT8) {
    const size_t line = quantized_words(ins);
    const uint32_t* q = a.quantized + (size_t)row * line;
    Ints sum[M][N];
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) sum[m][n] = all_ints(a.begin[row + m]);
    for (int i = 0; i < ins; i += 4, base += PANEL) {
      Ints word[N];
      for (int n = 0; n < N; n++) word[n] = load_ints(base + BL_AT(n));
      if (ahead)
        for (int n = 0; n < AHEAD_LINES; n++) __builtin_prefetch((const char*)(base + BL_AT(n)) + AHEAD, 0, 3);
      for (int m = 0; m < M; m++) {
        const Inputs x = four_inputs(q + m * line + i / 4 * INPUT_WORDS);
        for (int n = 0; n < N; n++) sum[m][n] = dot4(sum[m][n], x, word[n]);
      }
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) {
        Ints whole = INPUT_OFFSET ? add(sum[m][n], load_ints(w.offset + o + n * LANES)) : sum[m][n];
        Floats r = mul(mul(to_floats(whole), load(w.scale + o + n * LANES)), all(a.unit[row + m]));
        float* out = y + (size_t)m * a.ldy + n * LANES;
        store(out, ADD ? add(load(out), r) : r);
      }
  } else {
    const float* x = a.x + (size_t)row * a.ldx;
    Floats sum[M][N];
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) sum[m][n] = all(0.0f);
    for (int i = 0; i < ins; i += GROUP, base += PANEL) {
      Floats even[N], odd[N];
      for (int n = 0; n < N; n++) {
        if constexpr (KIND == F32) {
          even[n] = load((const float*)base + BL_AT(n));
        } else {
          const Ints word = load_ints(base + BL_AT(n));
          even[n] = as_floats(shift_left<16>(word)), odd[n] = as_floats(high_half(word));
        }
      }
      if (ahead)
        for (int n = 0; n < AHEAD_LINES; n++) __builtin_prefetch((const char*)(base + BL_AT(n)) + AHEAD, 0, 3);
      for (int m = 0; m < M; m++) {
        const Floats b = all(x[(size_t)m * a.ldx + i]);
        for (int n = 0; n < N; n++) sum[m][n] = fma(even[n], b, sum[m][n]);
      }
      if constexpr (KIND == BF16) {
        for (int m = 0; m < M; m++) {
          const Floats b = all(x[(size_t)m * a.ldx + i + 1]);
          for (int n = 0; n < N; n++) sum[m][n] = fma(odd[n], b, sum[m][n]);
        }
      }
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) {
        float* out = y + (size_t)m * a.ldy + n * LANES;
        store(out, ADD ? add(load(out), sum[m][n]) : sum[m][n]);
      }
  }
#undef BL_AT
}

// Rows of the largest tile, and vectors of a tile of M rows: as many sums as registers hold beside the weights, and enough
// that none waits for another. int8 without VNNI needs registers for two forms of an input, and for pairs.
constexpr int most_tile_rows([[maybe_unused]] int kind) {
#if defined(__AVX512F__)
  return kind == INT8 && INPUT_WORDS == 2 ? 4 : 6;
#elif defined(__AVX2__)
  return 3;
#elif defined(__ARM_NEON)
  return 4;
#else
  return 2;
#endif
}
constexpr int vectors_of([[maybe_unused]] int m) {
#if defined(__AVX512F__)
  return 4;
#elif defined(__AVX2__)
  return m == 1 ? 4 : 2;
#elif defined(__ARM_NEON)
  return m == 1 ? 4 : m <= 2 ? 2 : 1;
#else
  return 1;
#endif
}
// Two panels at a time, so that a single row has eight chains of additions under way.
constexpr bool PANELS_IN_PAIRS = VECTORS_OF_PANEL == vectors_of(1);

template <int KIND, int M, bool ADD>
static void panel_rows(const ProductJob& a, int panel, int row) {
  constexpr int N = vectors_of(M);
  for (int first = 0; first < VECTORS_OF_PANEL; first += N) tile<KIND, M, N, ADD>(a, panel, first, row);
}

// Many rows (a prompt): some inputs of a panel at a time, so that its weights stay in the nearest cache while all rows
// pass. The sums wait in `sums` between two blocks: the chain of additions is the same.
constexpr int MANY_ROWS = 24, BLOCK_INPUTS = 96;

struct InputBlock { int from, inputs; bool first, last; };

template <int M, bool ADD>
static void block_tile(const ProductJob& a, const InputBlock& block, const float* weights, float* sums, int panel, int row) {
  constexpr int N = vectors_of(M);
  const float* x = a.x + (size_t)row * a.ldx + block.from;
  float *y = a.y + (size_t)row * a.ldy + panel * PANEL, *waiting = sums + row * PANEL;
  const int ldx = a.ldx, inputs = block.inputs;
  for (int v = 0; v < PANEL; v += N * LANES) {
    Floats sum[M][N];
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) sum[m][n] = block.first ? all(0.0f) : load(waiting + m * PANEL + v + n * LANES);
    for (int i = 0; i < inputs; i++) {
      Floats w[N];
      for (int n = 0; n < N; n++) w[n] = load(weights + i * PANEL + v + n * LANES);
      for (int m = 0; m < M; m++) {
        const Floats b = all(x[(size_t)m * ldx + i]);
        for (int n = 0; n < N; n++) sum[m][n] = fma(w[n], b, sum[m][n]);
      }
    }
    for (int m = 0; m < M; m++)
      for (int n = 0; n < N; n++) {
        float* out = block.last ? y + (size_t)m * a.ldy + v + n * LANES : waiting + m * PANEL + v + n * LANES;
        store(out, ADD && block.last ? add(load(out), sum[m][n]) : sum[m][n]);
      }
  }
}

template <int KIND, bool ADD>
static void product_in_blocks(const ProductJob& a, int panel, float* sums) {
  const int ins = a.w->padded_ins;
  alignas(64) float wide[BLOCK_INPUTS * PANEL];
  for (int from = 0; from < ins; from += BLOCK_INPUTS) {
    const int inputs = ins - from < BLOCK_INPUTS ? ins - from : BLOCK_INPUTS;
    const InputBlock block{from, inputs, from == 0, from + inputs == ins};
    const size_t at = (size_t)panel * PANEL * ins + (size_t)from * PANEL;
    const float* weights = (const float*)a.w->data + at;
    if constexpr (KIND == BF16) {
      const uint32_t* words = (const uint32_t*)((const uint16_t*)a.w->data + at);
      for (int i = 0; i < inputs; i += 2)
        for (int v = 0; v < PANEL; v += LANES) {
          const Ints word = load_ints(words + i / 2 * PANEL + v);
          store(wide + i * PANEL + v, as_floats(shift_left<16>(word)));
          store(wide + (i + 1) * PANEL + v, as_floats(high_half(word)));
        }
      weights = wide;
    }
    constexpr int MOST = most_tile_rows(F32);
    int row = 0;
    for (; a.rows - row >= MOST; row += MOST)
      block_tile<MOST, ADD>(a, block, weights, sums, panel, row);
    if constexpr (MOST > 4)
      if (a.rows - row >= 4) block_tile<4, ADD>(a, block, weights, sums, panel, row), row += 4;
    if constexpr (MOST > 2)
      while (a.rows - row >= 2) block_tile<2, ADD>(a, block, weights, sums, panel, row), row += 2;
    if (a.rows - row >= 1) block_tile<1, ADD>(a, block, weights, sums, panel, row);
  }
}

template <int KIND, bool ADD>
static void product_share(void* what, int share, int shares) {
  const ProductJob& a = *(const ProductJob*)what;
  const int n = a.to - a.from, end = a.from + (int)((int64_t)n * (share + 1) / shares);
  if constexpr (KIND != INT8) {
    if (a.rows >= MANY_ROWS) {
      for (int p = a.from + (int)((int64_t)n * share / shares); p < end; p++)
        product_in_blocks<KIND, ADD>(a, p, a.sums + (size_t)share * a.rows * PANEL);
      return;
    }
  }
  for (int p = a.from + (int)((int64_t)n * share / shares); p < end; p++) {
    if constexpr (PANELS_IN_PAIRS) {
      if (a.rows <= 2 && p + 1 < end) {
        if (a.rows == 1) tile<KIND, 1, 2 * VECTORS_OF_PANEL, ADD>(a, p, 0, 0);
        else tile<KIND, 2, 2 * VECTORS_OF_PANEL, ADD>(a, p, 0, 0);
        p++;
        continue;
      }
    }
    constexpr int MOST = most_tile_rows(KIND);
    int row = 0;
    for (; a.rows - row >= MOST; row += MOST) panel_rows<KIND, MOST, ADD>(a, p, row);
    switch (a.rows - row) {
#define BL_CASE(M) case M: if constexpr (M < MOST) panel_rows<KIND, M, ADD>(a, p, row); break;
      BL_CASE(5) BL_CASE(4) BL_CASE(3) BL_CASE(2) BL_CASE(1)
#undef BL_CASE
      default: break;
    }
  }
}

// Makes a row of inputs int8 by its own largest number: x is about unit * q, q from -127 to 127. `to`: as the products of
// this instruction set want them; begin: what their sums begin with.
static void quantize_row(const float* x, int n, uint32_t* to, int32_t* begin, float* unit) {
  Floats top = all(1e-30f);
  const int whole = n / LANES * LANES;
  for (int i = 0; i < whole; i += LANES) {
    const Floats v = load(x + i);
    top = larger(top, larger(v, sub(all(0.0f), v)));
  }
  float most = largest(top);
  for (int i = whole; i < n; i++) most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
  *unit = most / 127.0f, *begin = 0;
  const float inverse = 127.0f / most;
  const Floats magic = all(12582912.0f);  // rounds to the nearest whole number, ties to even, and leaves it in the low bits
  int8_t q[LANES] = {0};
  for (int i = 0; i < whole; i += LANES) {
    low_bytes((uint8_t*)q, as_ints(fma(load(x + i), all(inverse), magic)));
    *begin += pack_inputs(q, to + i / 4 * INPUT_WORDS);
  }
  if (whole == n) return;
  memset(q, 0, sizeof q);
  for (int i = whole; i < n; i++) {
    const float t = __builtin_fmaf(x[i], inverse, 12582912.0f);
    uint32_t u;
    memcpy(&u, &t, 4);
    q[i - whole] = (int8_t)(u & 255);
  }
  *begin += pack_inputs(q, to + whole / 4 * INPUT_WORDS);
}

struct QuantizeJob { Session* s; const float* x; int ldx, ins, rows; };

static void quantize_share(void* what, int share, int shares) {
  const QuantizeJob& a = *(const QuantizeJob*)what;
  const size_t line = quantized_words(a.ins);
  for (int r = a.rows * share / shares; r < a.rows * (share + 1) / shares; r++)
    quantize_row(a.x + (size_t)r * a.ldx, a.ins, a.s->quantized + r * line, a.s->begin + r, a.s->unit + r);
}

void product(Session* s, const Matrix& w, const float* x, int ldx, float* y, int ldy, int rows, bool add_to, int from,
             int to) {
  ProductJob a{&w, x, ldx, y, ldy, rows, from, to < 0 ? w.panels : to, s->quantized, s->begin, s->unit, s->sums};
  if (w.kind == INT8) {
    QuantizeJob quantize{s, x, ldx, w.padded_ins, rows};
    if (rows < MANY_ROWS) quantize_share(&quantize, 0, 1);
    else pool_run(s->pool, quantize_share, &quantize);
  }
  static constexpr Job jobs[3][2] = {{product_share<F32, false>, product_share<F32, true>},
                                     {product_share<BF16, false>, product_share<BF16, true>},
                                     {product_share<INT8, false>, product_share<INT8, true>}};
  pool_run(s->pool, jobs[w.kind][add_to], &a);
}

// Norm, rotation, attention -------------------------------------------------------------------------------------------

BL_INLINE Floats load_some(const float* p, int n) {
  if (n >= LANES) return load(p);
  float t[LANES] = {0};
  memcpy(t, p, (size_t)n * 4);
  return load(t);
}
BL_INLINE void store_some(float* p, Floats a, int n) {
  if (n >= LANES) return store(p, a);
  float t[LANES];
  store(t, a);
  memcpy(p, t, (size_t)n * 4);
}

void rms_norm(const float* x, int n, const float* gain, float epsilon, float* y) {
  Floats sum = all(0.0f);
  for (int i = 0; i < n; i += LANES) {
    const Floats v = load_some(x + i, n - i);
    sum = fma(v, v, sum);
  }
  const Floats scale = all(1.0f / sqrtf(total(sum) / (float)n + epsilon));
  for (int i = 0; i < n; i += LANES)
    store_some(y + i, mul(mul(load_some(x + i, n - i), scale), load_some(gain + i, n - i)), n - i);
}

BL_INLINE int position_of(const Part& p, int row) { return p.start + (p.parents ? p.depth[row] : row); }

// The slot of the id `up` places before a row; below 0 where there is none.
BL_INLINE int slot_before(const Part& p, int row, int up) {
  if (!p.parents) return p.start + row - up;
  while (up && row >= 0) row = p.parents[row], up--;
  return row >= 0 ? p.start + row : p.start - 1 - up;
}

struct Widths { int hidden, qkv, inner; };  // floats from one row to the next

static Widths widths_of(const Shape& h) {
  // A line more than is needed: rows that lie a multiple of 4 KB apart would meet in the same places of the nearest cache.
  return {round_up(h.width, PANEL), round_up((h.heads + 2 * h.groups) * h.channels, PANEL) + LANES,
          round_up(2 * h.inner, PANEL) + LANES};
}

// Normalises and rotates keys of a row, and queries where they are wanted, and leaves its key and value in the cache.
static void rotate_and_keep(Session* s, const Layer& layer, int cache_layer, const Part& part, int row, float* x,
                            bool queries) {
  const Shape& h = s->model->shape;
  const int C = h.channels, both = h.heads + h.groups, half = C / 2, padded = round_up(C, LANES);
  Cache& c = *part.cache;
  const int slot = part.start + row, position = position_of(part, row);
  const float *cosine = c.cosine + (size_t)position * half, *sine = c.sine + (size_t)position * half;
  for (int i = queries ? 0 : h.heads; i < both; i++) {
    float* one = x + i * C;
    rms_norm(one, C, layer.qk_gain + i * C, h.norm_epsilon, one);
    for (int j = 0; j < half; j++) {
      const float a = one[j], b = one[j + half];
      one[j] = __builtin_fmaf(-b, sine[j], a * cosine[j]);
      one[j + half] = __builtin_fmaf(a, sine[j], b * cosine[j]);
    }
  }
  for (int g = 0; g < h.groups; g++) {
    const size_t lines = ((size_t)cache_layer * h.groups + g) * c.slots;
    const float *key = x + (h.heads + g) * C, *value = x + (both + g) * C;
    const size_t at = lines * C + (size_t)(slot / LANES) * C * LANES + slot % LANES;
    if (c.kind == F32) {
      float* k = (float*)c.keys + at;
      for (int j = 0; j < C; j++) k[(size_t)j * LANES] = key[j];
      memcpy((float*)c.values + (lines + slot) * padded, value, (size_t)C * 4);
    } else {
      uint16_t *k = (uint16_t*)c.keys + at, *v = (uint16_t*)c.values + (lines + slot) * padded;
      for (int j = 0; j < C; j++) k[(size_t)j * LANES] = to_bf16(key[j]), v[j] = to_bf16(value[j]);
    }
  }
}

constexpr int MOST_QUERIES = 8;  // that share the keys they read

BL_INLINE Floats load_kept(const float* p) { return load(p); }
BL_INLINE Floats load_kept(const uint16_t* p) { return load_bf16(p); }

// Scores of Q queries with B blocks of 16 keys.
template <int Q, int B, typename T>
BL_INLINE void score_blocks(const T* keys, int channels, const float* const* query, float* const* out, int at) {
  Floats sum[Q][B];
  for (int q = 0; q < Q; q++)
    for (int b = 0; b < B; b++) sum[q][b] = all(0.0f);
  for (int c = 0; c < channels; c++) {
    Floats key[B];
    for (int b = 0; b < B; b++) key[b] = load_kept(keys + ((size_t)b * channels + c) * LANES);
    for (int q = 0; q < Q; q++) {
      const Floats x = all(query[q][c]);
      for (int b = 0; b < B; b++) sum[q][b] = fma(key[b], x, sum[q][b]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int b = 0; b < B; b++) store(out[q] + at + b * LANES, sum[q][b]);
}

template <int Q, typename T>
static void score_range(const T* keys, int channels, const float* const* query, float* const* out, int blocks) {
  constexpr int B = Q >= 8 ? 2 : 4;
  int b = 0;
  for (; b + B <= blocks; b += B)
    score_blocks<Q, B>(keys + (size_t)b * channels * LANES, channels, query, out, b * LANES);
  for (; b < blocks; b++) score_blocks<Q, 1>(keys + (size_t)b * channels * LANES, channels, query, out, b * LANES);
}

// Adds the weighted values of slots [from, to) to Q sums of V vectors; the weight of a slot is at [slot + shift].
template <int Q, int V, typename T>
BL_INLINE void mix(const T* values, int padded, const float* const* weight, int shift, int from, int to,
                   float* const* out) {
  Floats sum[Q][V];
  for (int q = 0; q < Q; q++)
    for (int v = 0; v < V; v++) sum[q][v] = load(out[q] + v * LANES);
  for (int slot = from; slot < to; slot++) {
    Floats value[V];
    for (int v = 0; v < V; v++) value[v] = load_kept(values + (size_t)slot * padded + v * LANES);
    for (int q = 0; q < Q; q++) {
      const Floats x = all(weight[q][slot + shift]);
      for (int v = 0; v < V; v++) sum[q][v] = fma(value[v], x, sum[q][v]);
    }
  }
  for (int q = 0; q < Q; q++)
    for (int v = 0; v < V; v++) store(out[q] + v * LANES, sum[q][v]);
}

template <int Q, typename T>
static void mix_range(const T* values, int padded, const float* const* weight, int shift, int from, int to,
                      float* const* out) {
  if (from >= to) return;
  float* own[Q];
  for (int v = 0; v < padded / LANES;) {
    const int left = padded / LANES - v;
    for (int q = 0; q < Q; q++) own[q] = out[q] + v * LANES;
    const T* from_v = values + v * LANES;
    if (left >= 4 && Q <= 4) mix<Q, 4>(from_v, padded, weight, shift, from, to, own), v += 4;
    else if (left >= 3 && left != 4) mix<Q, 3>(from_v, padded, weight, shift, from, to, own), v += 3;
    else if (left >= 2) mix<Q, 2>(from_v, padded, weight, shift, from, to, own), v += 2;
    else mix<Q, 1>(from_v, padded, weight, shift, from, to, own), v += 1;
  }
}

// Any number of queries, in the largest pieces that are made; F has operator()<Q>(first query).
template <typename F>
BL_INLINE void in_pieces(int queries, const F& f) {
  int q = 0;
  for (; queries - q >= 8; q += 8) f.template run<8>(q);
  if (queries - q >= 4) f.template run<4>(q), q += 4;
  if (queries - q >= 2) f.template run<2>(q), q += 2;
  if (queries - q >= 1) f.template run<1>(q);
}

template <typename T>
struct ScoreAll {
  const T* keys; int channels; const float** query; float** out; int blocks;
  template <int Q> void run(int q) const { score_range<Q>(keys, channels, query + q, out + q, blocks); }
};
template <typename T>
struct MixAll {
  const T* values; int padded; float** weight; int shift, from, to; float** out;
  template <int Q> void run(int q) const {
    mix_range<Q>(values, padded, (const float* const*)weight + q, shift, from, to, out + q);
  }
};

// Softmax weights of scores at positions [from, to] of a row whose scores begin at position base, a multiple of 16.
// Positions outside of the range get the weight 0. Returns what the mixed values are multiplied by.
static float softmax_weights(float* scores, int base, int from, int to, float scale) {
  float* p = scores + (from / LANES * LANES - base);
  const int first = from % LANES, n = to - from / LANES * LANES + 1;
  const auto inside = [=](Floats a, int i, float other) {
    return i && i + LANES <= n ? a : lanes_between(a, i ? 0 : first, n - i, other);
  };
  Floats top = inside(load(p), 0, -3e38f);
  for (int i = LANES; i < n; i += LANES) top = larger(top, inside(load(p + i), i, -3e38f));
  const Floats best = all(largest(top)), factor = all(scale);
  Floats sum = all(0.0f);
  for (int i = 0; i < n; i += LANES) {
    const Floats weight = inside(exponential(mul(sub(load(p + i), best), factor)), i, 0.0f);
    store(p + i, weight);
    sum = add(sum, weight);
  }
  return 1.0f / total(sum);
}

// Some rows of a part, with the query heads [head, head + heads) of one group.
template <typename T>
static void attend_rows(Session* s, const Layer& layer, int cache_layer, const Part& part, int row0, int rows, int group,
                        int head, int heads, float* room) {
  const Shape& h = s->model->shape;
  const Widths w = widths_of(h);
  const Cache& c = *part.cache;
  const int C = h.channels, padded = round_up(C, LANES), R = h.heads / h.groups, queries = rows * heads;
  const size_t lines = ((size_t)cache_layer * h.groups + group) * c.slots;
  const T *keys = (const T*)c.keys + lines * C, *values = (const T*)c.values + lines * padded;
  int starts[MOST_QUERIES], positions[MOST_QUERIES], low = 1 << 30, high = 0;
  for (int r = 0; r < rows; r++) {
    positions[r] = position_of(part, row0 + r);
    starts[r] = layer.local && positions[r] >= h.local_window ? positions[r] - h.local_window + 1 : 0;
    if (starts[r] < low) low = starts[r];
    if (positions[r] > high) high = positions[r];
  }
  const int base = low / LANES * LANES;
  const int end = part.parents ? part.start + part.rows : high + 1;  // slots that may be looked at
  const size_t stride = (size_t)round_up(s->most_slots, LANES) + 2 * LANES;
  const float* query[MOST_QUERIES];
  float *score[MOST_QUERIES], *mixed[MOST_QUERIES];
  float* sums = room + MOST_QUERIES * stride;  // [queries][padded]
  for (int q = 0; q < queries; q++) {
    const int r = row0 + q / heads, i = group * R + head + q % heads;
    query[q] = s->qkv + (size_t)(part.first + r) * w.qkv + (size_t)i * C;
    score[q] = room + q * stride;
    mixed[q] = sums + (size_t)q * padded;
  }
  in_pieces(queries, ScoreAll<T>{keys + (size_t)base * C, C, query, score, (end - base + LANES - 1) / LANES});
  float scale[MOST_QUERIES], own[MOST_TREE_ROWS];
  for (int q = 0; q < queries; q++) {
    const int r = q / heads;
    if (part.parents) {  // from the order of slots into that of positions, along the path of the row
      memcpy(own, score[q] + part.start - base, (size_t)part.rows * 4);
      for (int at = row0 + r, position = positions[r]; at >= 0; at = part.parents[at], position--)
        if (position >= base) score[q][position - base] = own[at];
    }
    scale[q] = softmax_weights(score[q], base, starts[r], positions[r], 1.0f / sqrtf((float)C));
  }
  memset(sums, 0, (size_t)queries * padded * 4);
  // What all rows see is read once for all; before and behind it each row reads what it alone sees.
  int common_from = 0, common_to = 1 << 30;
  for (int r = 0; r < rows; r++) {
    if (starts[r] > common_from) common_from = starts[r];
    const int to = part.parents ? (part.start < positions[r] + 1 ? part.start : positions[r] + 1) : positions[r] + 1;
    if (to < common_to) common_to = to;
  }
  if (common_from >= common_to) common_from = common_to = 0;
  for (int r = 0; r < rows; r++) {
    const int to = common_to ? common_from : (part.parents ? part.start : positions[r] + 1);
    in_pieces(heads, MixAll<T>{values, padded, score + r * heads, -base, starts[r], to, mixed + r * heads});
  }
  if (common_to) in_pieces(queries, MixAll<T>{values, padded, score, -base, common_from, common_to, mixed});
  for (int r = 0; r < rows; r++) {
    if (!part.parents) {
      if (common_to)
        in_pieces(heads, MixAll<T>{values, padded, score + r * heads, -base, common_to, positions[r] + 1, mixed + r * heads});
      continue;
    }
    int path[MOST_TREE_ROWS], n = 0;
    for (int at = row0 + r; at >= 0; at = part.parents[at]) path[n++] = at;
    for (int k = n - 1, position = part.start; k >= 0; k--, position++) {
      if (position < starts[r]) continue;
      const int slot = part.start + path[k];
      in_pieces(heads, MixAll<T>{values, padded, score + r * heads, position - slot - base, slot, slot + 1, mixed + r * heads});
    }
  }
  for (int q = 0; q < queries; q++) {
    float* out = s->mixed + (size_t)(part.first + row0 + q / heads) * w.hidden + (size_t)(group * R + head + q % heads) * C;
    for (int i = 0; i < C; i += LANES)
      store_some(out + i, mul(load(mixed[q] + i), all(scale[q])), C - i);
  }
}

struct AttendJob { Session* s; const Layer* layer; int cache_layer; const Part* parts; int count; };

static void attend_share(void* what, int share, int shares) {
  const AttendJob& a = *(const AttendJob*)what;
  const Shape& h = a.s->model->shape;
  const int R = h.heads / h.groups, heads = R < MOST_QUERIES ? R : MOST_QUERIES;
  const int pieces = (R + heads - 1) / heads, together = MOST_QUERIES / heads;
  const size_t stride = (size_t)round_up(a.s->most_slots, LANES) + 2 * LANES;
  float* room = a.s->scores + (size_t)share * MOST_QUERIES * (stride + round_up(h.channels, LANES));
  int job = 0;
  for (int n = 0; n < a.count; n++) {
    const Part& part = a.parts[n];
    for (int row = 0; row < part.rows; row += together)
      for (int g = 0; g < h.groups; g++)
        for (int piece = 0; piece < pieces; piece++, job++) {
          if (job % shares != share) continue;
          const int rows = part.rows - row < together ? part.rows - row : together, first = piece * heads;
          const int some = R - first < heads ? R - first : heads;
          if (part.cache->kind == F32)
            attend_rows<float>(a.s, *a.layer, a.cache_layer, part, row, rows, g, first, some, room);
          else attend_rows<uint16_t>(a.s, *a.layer, a.cache_layer, part, row, rows, g, first, some, room);
        }
  }
}

// Work that is done row by row, each row by one thread.
struct RowJob {
  Session* s;
  const Layer* layer;
  int cache_layer;
  const Part* parts;
  int count, from, rows;
  float* hidden;
  int step;
  int asked_from;  // rows before it need no queries
};

enum { NORM_ATTENTION, ROTATE, NORM_FF, GATE };

static void row_share(void* what, int share, int shares) {
  const RowJob& a = *(const RowJob*)what;
  Session* s = a.s;
  const Shape& h = s->model->shape;
  const Widths w = widths_of(h);
  const int count = a.rows - a.from, from = a.from + count * share / shares, to = a.from + count * (share + 1) / shares;
  int n = 0;
  for (int r = from; r < to; r++) {
    switch (a.step) {
      case NORM_ATTENTION:
      case NORM_FF:
        rms_norm(a.hidden + (size_t)r * w.hidden, h.width,
                 a.step == NORM_FF ? a.layer->ff_gain : a.layer->attention_gain, h.norm_epsilon,
                 s->normed + (size_t)r * w.hidden);
        break;
      case ROTATE:
        while (n + 1 < a.count && a.parts[n + 1].first <= r) n++;
        rotate_and_keep(s, *a.layer, a.cache_layer, a.parts[n], r - a.parts[n].first, s->qkv + (size_t)r * w.qkv,
                        r >= a.asked_from);
        break;
      default: {
        const float *gate = s->inner + (size_t)r * w.inner, *up = gate + h.inner;
        float* out = s->gated + (size_t)r * round_up(h.inner, PANEL);
        for (int i = 0; i < h.inner; i += LANES) {
          const Floats g = load(gate + i);
          const Floats silu = div(g, add(all(1.0f), exponential(sub(all(0.0f), g))));
          store_some(out + i, mul(silu, load_some(up + i, h.inner - i)), h.inner - i);
        }
      }
    }
  }
}

static void by_rows(RowJob& a, int step) {
  a.step = step;
  if (a.rows - a.from < 8) row_share(&a, 0, 1);  // waking a thread takes longer
  else pool_run(a.s->pool, row_share, &a);
}

void run_block(Session* s, int layer, int cache_layer, const Part* parts, int count, int rows, float* hidden,
               int asked_from) {
  const Shape& h = s->model->shape;
  const Layer& y = s->model->layer[layer];
  const Widths w = widths_of(h);
  RowJob job{s, &y, cache_layer, parts, count, 0, rows, hidden, 0, asked_from};
  by_rows(job, NORM_ATTENTION);
  const int asked = rows - asked_from, key_panel = asked_from ? h.heads * h.channels / PANEL : 0;
  product(s, y.qkv, s->normed, w.hidden, s->qkv, w.qkv, rows, false, key_panel);
  // What is asked of some rows alone: from here on the pass has no others.
  const size_t first = (size_t)asked_from;
  if (key_panel && asked)
    product(s, y.qkv, s->normed + first * w.hidden, w.hidden, s->qkv + first * w.qkv, w.qkv, asked, false, 0, key_panel);
  by_rows(job, ROTATE);
  if (!asked) return;
  Part last;
  if (asked_from) {
    last = {parts->cache, parts->first + asked_from, asked, parts->start + asked_from, nullptr, {}};
    parts = &last, job.from = asked_from, hidden += first * w.hidden;
  }
  AttendJob attend{s, &y, cache_layer, parts, count};
  pool_run(s->pool, attend_share, &attend);
  product(s, y.output, s->mixed + first * w.hidden, w.hidden, hidden, w.hidden, asked, true);
  by_rows(job, NORM_FF);
  product(s, y.gate_up, s->normed + first * w.hidden, w.hidden, s->inner + first * w.inner, w.inner, asked, false);
  by_rows(job, GATE);
  const int gated = round_up(h.inner, PANEL);
  product(s, y.down, s->gated + first * gated, gated, hidden, w.hidden, asked, true);
}

// Embeddings ----------------------------------------------------------------------------------------------------------

BL_INLINE void expand(const float* wide, const uint16_t* narrow, size_t at, int n, float* out) {
  if (wide) memcpy(out, wide + at, (size_t)n * 4);
  else
    for (int i = 0; i < n; i++) out[i] = from_bf16(narrow[at + i]);
}

// An n-gram is a polynomial over a prime field, taken at a factor: products stay below 2^62. See ngram_rows.py.
constexpr int64_t NGRAM_PRIME = ((int64_t)1 << 31) - 1, NGRAM_FACTOR = 1103515245;

static void embed(const Model* m, const Part& part, int row, float* hidden, float* found) {
  const Shape& h = m->shape;
  const int32_t* ids = part.cache->ids;
  const int id = ids[part.start + row];
  expand(m->embedding, m->embedding16, (size_t)id * h.width, h.width, hidden);
  int64_t value = id + 1;
  for (int size = 2, n = 0; n < h.ngrams; size++) {
    const int slot = slot_before(part, row, size - 1);
    value = (value * NGRAM_FACTOR + (slot < 0 ? -1 : ids[slot]) + 1) % NGRAM_PRIME;
    if (size != h.ngram_size[n]) continue;
    const size_t at = ((size_t)n * h.ngram_rows + (size_t)(value % h.ngram_rows)) * h.ngram_width;
    expand(m->tables, m->tables16, at, h.ngram_width, found + (size_t)n * h.ngram_width);
    n++;
  }
}

void run_trunk(Session* s, Part* parts, int count, int rows, const int32_t* ids, int asked_from) {
  const Model* m = s->model;
  const Shape& h = m->shape;
  const Widths w = widths_of(h);
  const int wide = round_up(h.ngrams * h.ngram_width, PANEL);
  s->heads_ran = false;
  for (int n = 0; n < count; n++) {
    Part& p = parts[n];
    memcpy(p.cache->ids + p.start, ids + p.first, (size_t)p.rows * 4);
    for (int r = 0; p.parents && r < p.rows; r++) p.depth[r] = p.parents[r] < 0 ? 0 : p.depth[p.parents[r]] + 1;
    for (int r = 0; r < p.rows; r++)
      embed(m, p, r, s->hidden + (size_t)(p.first + r) * w.hidden, s->found + (size_t)(p.first + r) * wide);
  }
  if (h.ngrams) product(s, m->ngram_output, s->found, wide, s->hidden, w.hidden, rows, true);
  for (int l = 0; l < h.layers; l++)
    run_block(s, l, l, parts, count, rows, s->hidden, l + 1 < h.layers ? 0 : asked_from);
}

}  // namespace BL_NS
