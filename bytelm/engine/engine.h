// What the parts of the engine share: shapes, weights, caches, and the calls from one part to the next.
//
//   step.cpp    products, norms, attention, embeddings: rows of some sequences through the trunk
//   heads.cpp   every family of prediction heads: logits of head 0 at all rows, of a draft head at one
//   choose.cpp  the next byte from logits: greedy, or with noise of its position; penalty, UTF-8
//   draft.cpp   proposals of the heads and of prompt lookup, their calibration, and how many pay for their rows
//   decode.cpp  sequences side by side: draft, verify, accept, again
//
// Words: D width, H query heads, G key and value heads, R = H / G, C channels of a head, K prediction heads,
// V columns of an unembedding, rows of a pass. A slot is a place in a cache; the id of slot s has position s.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "vec.h"

namespace BL_NS {

constexpr int PANEL = 64;           // outputs that lie together in a matrix
constexpr int MOST_HEADS = 32;      // prediction heads
constexpr int MOST_TREE_ROWS = 64;  // rows of a pass of one sequence that are a tree, or are verified
constexpr int MOST_SEQUENCES = 64;  // sequences of a pass

enum Kind : int32_t { F32 = 0, BF16 = 1, INT8 = 2 };
enum Family : int32_t { LINEAR = 0, MLP = 1, TRANSFORMER = 2, CAUSAL = 3, ANTICAUSAL = 4, SHARED = 5 };
enum Status : int32_t { OK = 0, WRONG_SIZE = 1, NOT_FINITE = 2, OUT_OF_MEMORY = 3, WRONG_ARGUMENT = 4 };

// Shape of a model; the same struct in __init__.py.
struct Shape {
  int32_t width, layers, heads, groups, channels, inner;
  int32_t vocabulary;    // V, a multiple of 64
  int32_t choices;       // ids below this can be chosen
  int32_t head_count;    // K
  int32_t family;        // Family
  int32_t ngrams;        // kinds of n-grams, 0 … 7
  int32_t ngram_rows, ngram_width;
  int32_t ngram_size[7];
  int32_t kind;          // Kind of the matrices
  int32_t local_window;  // ids that a local layer sees
  float norm_epsilon;
  double rope_base;
};

// A matrix, packed: [outputs / 64][inputs / g][64][g], g = 1 (float32), 2 (bfloat16), 4 (int8) inputs in a word.
// Outputs are filled up with zeros to a multiple of 64, inputs to one of 4.
struct Matrix {
  int outs, ins;      // as given
  int panels;         // of 64 outputs
  int padded_ins;     // a multiple of 4
  int kind;           // Kind
  void* data;
  float* scale;       // int8: of each output
  int32_t* offset;    // int8: -INPUT_OFFSET times the sum of each output's weights
};

struct Layer {
  float *attention_gain, *qk_gain, *ff_gain;  // [D], [H + G][C], [D]
  Matrix qkv, output, gate_up, down;
  bool local;
};

struct Model {
  Shape shape;
  int all_layers;     // of the trunk, then blocks of the heads (one where they are shared)
  int cache_layers;   // of the trunk, then one for each head that attends
  Layer* layer;
  uint16_t* embedding16;  // [V][D] bfloat16, where the file has that; else
  float* embedding;       // [V][D]
  uint16_t* tables16;     // n-grams [kinds][rows][width], as above
  float* tables;
  Matrix ngram_output;
  float* final_gain;
  Matrix unembedding;     // K * V outputs where heads are linear, else V
  Matrix* mlp;            // [K]
  float* depth_embedding; // [K][D]
  struct Arena* arena;    // owns all of the above
  size_t matrix_bytes;    // of all matrices
};

// What has been read of one sequence. Keys lie [layer][group][slot / 16][C][16], values [layer][group][slot][C padded to 16].
struct Cache {
  int capacity;      // ids at most
  int slots;         // capacity, rounded up to 16
  int length;        // ids that are accepted
  int kind;          // F32 or BF16, of keys and values
  int32_t* ids;      // [slots]
  void *keys, *values;
  float *cosine, *sine;      // [slots][C / 2]
  float* last;     // of the last accepted row: its normed trunk state (linear, mlp), or [K][D] states (anticausal)
  float* history;  // heads that attend: [slots][D] trunk states, then in a causal chain those of each head
  int head_length[MOST_HEADS];  // ids that each attending head has read
};

// Rows of one sequence in a pass. Row r takes slot start + r. A chain: its position is its slot. A tree: parents[r] is
// the row that row r continues, -1 for the first; the position is start + depth[r].
struct Part {
  Cache* cache;
  int first;   // its row 0 among the rows of the pass
  int rows;
  int start;
  const int32_t* parents;  // null for a chain
  int depth[MOST_TREE_ROWS];  // of a tree
};

struct Pool;

// Room for the numbers of a pass, and the threads that compute it. One session serves one caller at a time.
struct Session {
  const Model* model;
  Pool* pool;
  int most_rows;      // of a pass
  int most_slots;     // of a cache that is attended to
  float *hidden, *normed, *qkv, *mixed, *inner, *gated, *scores, *found, *sums;
  float* state;       // heads that attend: [K][most_rows][D], states of the heads that the last pass ran
  float* logits;      // [most_rows][V]
  bool heads_ran;     // whether head 0 has seen the rows of the last pass
  uint32_t* quantized;  // [most_rows][most inputs / 4][INPUT_WORDS]
  int32_t* begin;       // [most_rows], as unit
  float* unit;
  void* memory;
};

// step.cpp ------------------------------------------------------------------------------------------------------------

void* take(struct Arena* arena, size_t bytes);  // zeroed, 64-byte aligned; null if memory is short

// y[row][o] = (ADD: y +) x[row] · w[o], for outputs of panels [from, to) of 64; to = -1: all. ldx, ldy: floats between rows.
void product(Session* s, const Matrix& w, const float* x, int ldx, float* y, int ldy, int rows, bool add_to,
             int from = 0, int to = -1);
void rms_norm(const float* x, int n, const float* gain, float epsilon, float* y);
// One transformer block on rows: hidden [rows][D] is changed in place. Rows before asked_from leave their keys and values
// and no more; asked_from > 0 is for one chain.
void run_block(Session* s, int layer, int cache_layer, const Part* parts, int count, int rows, float* hidden,
               int asked_from);
// Reads ids (rows of all parts, one behind the other) through the trunk: s->hidden [rows][D], before the final norm. Rows
// before asked_from have no state afterwards, for the last layer leaves them out; asked_from > 0 is for one chain.
void run_trunk(Session* s, Part* parts, int count, int rows, const int32_t* ids, int asked_from = 0);

// heads.cpp -----------------------------------------------------------------------------------------------------------

// Logits of head 0 at all rows of the pass that run_trunk has just run: [rows][V] into logits. 0, or NOT_FINITE.
int head0_logits(Session* s, Part* parts, int count, int rows, float* logits);
// Logits of a draft head 1 … K - 1 after the last accepted id of a sequence: [columns], columns a multiple of 64, at
// most V. Heads must be asked in ascending order, from 1, after each accept.
void draft_logits(Session* s, Cache* cache, int head, int columns, float* logits);
// Makes a path of the pass real: rows of the part, in the order of their depth; null: the first n rows. All that the
// heads need of these rows is kept.
void accept(Session* s, const Part& part, const int32_t* path, int n);
// Forgets all slots from length on.
void truncate(Cache* cache, int length);
// Reads n ids behind the cache's length and accepts them, in pieces of at most s->most_rows rows. Status.
int prefill(Session* s, Cache* cache, const int32_t* ids, int n);
// Copies the first n accepted slots of one cache into another of the same model, which then has length n.
void copy_prefix(const Model* m, Cache* to, const Cache* from, int n);

inline bool heads_attend(const Shape& h) { return h.family >= TRANSFORMER; }
// Whether a head reads the state of the head before it, nearest byte first.
inline bool heads_chain(const Shape& h) { return h.family == CAUSAL || h.family == SHARED; }

}  // namespace BL_NS
