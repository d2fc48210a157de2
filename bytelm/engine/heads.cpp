// The prediction heads: a state and its unembedding each.
//
//   linear       the normed trunk state, and an unembedding of its own
//   mlp          normed + silu(W · normed); all share an unembedding from here on
//   transformer  a block of its own on the trunk's state
//   causal       the same in a chain: head k on the state of head k - 1; shared: the same block for all
//   anticausal   a chain from the farthest head to head 0, which is therefore always computed whole
//
// Head 0 runs at every row of a pass. A draft head runs when it is asked, at the last accepted row. One that attends must
// have read all rows before: it reads what it missed then, from the history of states that the cache keeps. That changes
// when numbers are computed and never which.
#include "engine.h"
#include "pool.h"

namespace BL_NS {

static void silu_add(const float* inner, const float* normed, int n, float* out) {
  for (int i = 0; i < n; i += LANES) {
    const Floats g = load_some(inner + i, n - i);
    const Floats silu = div(g, add(all(1.0f), exponential(sub(all(0.0f), g))));
    store_some(out + i, add(load_some(normed + i, n - i), silu), n - i);
  }
}

static Matrix columns_of(const Matrix& w, int first, int columns) {
  Matrix part = w;
  const size_t each = w.kind == F32 ? 4 : w.kind == BF16 ? 2 : 1;
  part.data = (char*)w.data + (size_t)first * w.padded_ins * each;
  part.outs = columns, part.panels = columns / PANEL;
  if (w.scale) part.scale = w.scale + first, part.offset = w.offset + first;
  return part;
}

BL_INLINE int width_of(const Shape& h) { return round_up(h.width, PANEL); }
BL_INLINE int block_of(const Shape& h, int head) { return h.layers + (h.family == SHARED ? 0 : head); }
BL_INLINE float* state_of(Session* s, int head) {
  return s->state + (size_t)head * s->most_rows * width_of(s->model->shape);
}
// States that head `head` reads: history line 0 is the trunk's, line 1 + k that of head k in a chain.
BL_INLINE float* history_of(const Shape& h, Cache* c, int line) {
  return c->history + (size_t)line * c->slots * width_of(h);
}

static void add_depth(const Model* m, int head, float* state, int rows) {
  const int D = m->shape.width, wide = width_of(m->shape);
  for (int r = 0; m->depth_embedding && r < rows; r++)
    for (int i = 0; i < D; i++) state[(size_t)r * wide + i] += m->depth_embedding[(size_t)head * D + i];
}

// Brings a head that attends to all slots before `to`. Of a chain all heads before it must be there already.
static void advance_head(Session* s, Cache* c, int head, int to) {
  const Model* m = s->model;
  const Shape& h = m->shape;
  const int wide = width_of(h);
  const bool chain = heads_chain(h);
  while (c->head_length[head] < to) {
    const int from = c->head_length[head], left = to - from, rows = left < s->most_rows ? left : s->most_rows;
    Part part{c, 0, rows, from, nullptr, {}};
    float* state = state_of(s, head);
    memcpy(state, history_of(h, c, chain ? head : 0) + (size_t)from * wide, (size_t)rows * wide * 4);
    add_depth(m, head, state, rows);
    const bool keys_only = !chain || head + 1 == h.head_count;
    run_block(s, block_of(h, head), h.layers + head, &part, 1, rows, state, keys_only ? rows : 0);
    if (!keys_only) memcpy(history_of(h, c, head + 1) + (size_t)from * wide, state, (size_t)rows * wide * 4);
    c->head_length[head] = from + rows;
  }
}

static void advance_anticausal(Session* s, Cache* c, int to) {
  const Shape& h = s->model->shape;
  const int wide = width_of(h);
  while (c->head_length[0] < to) {
    const int from = c->head_length[0], left = to - from, rows = left < s->most_rows ? left : s->most_rows;
    Part part{c, 0, rows, from, nullptr, {}};
    float* state = state_of(s, 0);
    memcpy(state, history_of(h, c, 0) + (size_t)from * wide, (size_t)rows * wide * 4);
    for (int head = h.head_count - 1; head >= 0; head--)
      run_block(s, block_of(h, head), h.layers + head, &part, 1, rows, state, head == 0 ? rows : 0);
    c->head_length[0] = from + rows;
  }
}

static bool finite_rows(const float* x, int n, int stride, int rows) {
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < n; i++) {
      uint32_t u;
      memcpy(&u, x + (size_t)r * stride + i, 4);
      if ((u & 0x7f800000u) == 0x7f800000u) return false;
    }
  return true;
}

// Normed states [rows][D] in s->normed -> logits.
static void unembed(Session* s, const float* state, int rows, float* logits, int columns) {
  const Shape& h = s->model->shape;
  product(s, columns_of(s->model->unembedding, 0, columns), state, width_of(h), logits, columns, rows, false);
}

static void norm_rows(Session* s, const float* states, int rows) {
  const Shape& h = s->model->shape;
  const int wide = width_of(h);
  for (int r = 0; r < rows; r++)
    rms_norm(states + (size_t)r * wide, h.width, s->model->final_gain, h.norm_epsilon, s->normed + (size_t)r * wide);
}

// The state of an mlp head from normed rows, into s->mixed.
static void mlp_state(Session* s, int head, const float* normed, int rows) {
  const Shape& h = s->model->shape;
  const int wide = width_of(h);
  product(s, s->model->mlp[head], normed, wide, s->qkv, wide, rows, false);
  for (int r = 0; r < rows; r++)
    silu_add(s->qkv + (size_t)r * wide, normed + (size_t)r * wide, h.width, s->mixed + (size_t)r * wide);
}

int head0_logits(Session* s, Part* parts, int count, int rows, float* logits) {
  const Model* m = s->model;
  const Shape& h = m->shape;
  const int wide = width_of(h), V = h.vocabulary;
  s->heads_ran = true;
  if (!finite_rows(s->hidden, h.width, wide, rows)) return NOT_FINITE;
  const float* states = s->hidden;
  if (heads_attend(h)) {
    // Reading what was missed needs the buffers of a pass, so it comes before the rows of this one.
    for (int n = 0; n < count; n++) {
      if (h.family == ANTICAUSAL) advance_anticausal(s, parts[n].cache, parts[n].start);
      else advance_head(s, parts[n].cache, 0, parts[n].start);
    }
    const int first = h.family == ANTICAUSAL ? h.head_count - 1 : 0;
    for (int head = first; head >= 0; head--) {
      float* state = state_of(s, head);
      memcpy(state, head == first ? s->hidden : state_of(s, head + 1), (size_t)rows * wide * 4);
      add_depth(m, head, state, rows);
      run_block(s, block_of(h, head), h.layers + head, parts, count, rows, state, 0);
    }
    states = state_of(s, 0);
  }
  norm_rows(s, states, rows);
  if (h.family == MLP) {
    mlp_state(s, 0, s->normed, rows);
    unembed(s, s->mixed, rows, logits, V);
  } else {
    unembed(s, s->normed, rows, logits, V);
  }
  return finite_rows(logits, h.choices, V, rows) ? OK : NOT_FINITE;
}

void draft_logits(Session* s, Cache* c, int head, int columns, float* logits) {
  const Model* m = s->model;
  const Shape& h = m->shape;
  const int wide = width_of(h);
  if (h.family == LINEAR) {
    product(s, columns_of(m->unembedding, head * h.vocabulary, columns), c->last, wide, logits, columns, 1, false);
    return;
  }
  if (h.family == MLP) {
    mlp_state(s, head, c->last, 1);
    unembed(s, s->mixed, 1, logits, columns);
    return;
  }
  const float* state = c->last + (size_t)head * wide;
  if (h.family != ANTICAUSAL) {
    const int last = c->length - 1;
    if (heads_chain(h))
      for (int before = 1; before < head; before++) advance_head(s, c, before, c->length);
    advance_head(s, c, head, last);
    float* own = state_of(s, head);
    memcpy(own, history_of(h, c, heads_chain(h) ? head : 0) + (size_t)last * wide, (size_t)wide * 4);
    add_depth(m, head, own, 1);
    Part part{c, 0, 1, last, nullptr, {}};
    run_block(s, block_of(h, head), h.layers + head, &part, 1, 1, own, 0);
    if (heads_chain(h) && head + 1 < h.head_count)
      memcpy(history_of(h, c, head + 1) + (size_t)last * wide, own, (size_t)wide * 4);
    c->head_length[head] = c->length;
    state = own;
  }
  norm_rows(s, state, 1);
  unembed(s, s->normed, 1, logits, columns);
}

// Caches --------------------------------------------------------------------------------------------------------------

// Copies the keys and values of one slot of a cache layer to another slot, maybe of another cache.
static void copy_slot(const Shape& h, Cache* to, int to_slot, const Cache* from, int from_slot, int layer) {
  const int C = h.channels, padded = round_up(C, LANES);
  for (int g = 0; g < h.groups; g++) {
    const size_t to_line = ((size_t)layer * h.groups + g) * to->slots, from_line = ((size_t)layer * h.groups + g) * from->slots;
    const size_t to_key = to_line * C + (size_t)(to_slot / LANES) * C * LANES + to_slot % LANES;
    const size_t from_key = from_line * C + (size_t)(from_slot / LANES) * C * LANES + from_slot % LANES;
    if (to->kind == F32) {
      for (int i = 0; i < C; i++)
        ((float*)to->keys)[to_key + (size_t)i * LANES] = ((const float*)from->keys)[from_key + (size_t)i * LANES];
      memcpy((float*)to->values + (to_line + to_slot) * padded, (const float*)from->values + (from_line + from_slot) * padded,
             (size_t)C * 4);
    } else {
      for (int i = 0; i < C; i++)
        ((uint16_t*)to->keys)[to_key + (size_t)i * LANES] = ((const uint16_t*)from->keys)[from_key + (size_t)i * LANES];
      memcpy((uint16_t*)to->values + (to_line + to_slot) * padded,
             (const uint16_t*)from->values + (from_line + from_slot) * padded, (size_t)C * 2);
    }
  }
}

void accept(Session* s, const Part& part, const int32_t* path, int n) {
  const Shape& h = s->model->shape;
  const int wide = width_of(h);
  Cache* c = part.cache;
  const int heads_of_pass = !s->heads_ran || !heads_attend(h) ? 0 : h.family == ANTICAUSAL ? h.head_count : 1;
  for (int i = 0; i < n; i++) {
    const int row = path ? path[i] : i, to = part.start + i, from = part.start + row;
    if (from != to) {
      c->ids[to] = c->ids[from];
      for (int layer = 0; layer < h.layers + heads_of_pass; layer++) copy_slot(h, c, to, c, from, layer);
    }
    if (c->history) {
      memcpy(history_of(h, c, 0) + (size_t)to * wide, s->hidden + (size_t)(part.first + row) * wide, (size_t)wide * 4);
      if (heads_of_pass && heads_chain(h) && h.head_count > 1)
        memcpy(history_of(h, c, 1) + (size_t)to * wide, state_of(s, 0) + (size_t)(part.first + row) * wide,
               (size_t)wide * 4);
    }
  }
  if (n > 0) {
    const int last = part.first + (path ? path[n - 1] : n - 1);
    if (!heads_attend(h))
      rms_norm(s->hidden + (size_t)last * wide, h.width, s->model->final_gain, h.norm_epsilon, c->last);
    for (int head = 0; h.family == ANTICAUSAL && heads_of_pass && head < h.head_count; head++)
      memcpy(c->last + (size_t)head * wide, state_of(s, head) + (size_t)last * wide, (size_t)wide * 4);
  }
  c->length = part.start + n;
  if (heads_of_pass) c->head_length[0] = c->length;
}

void truncate(Cache* c, int length) {
  if (length < c->length) c->length = length;
  for (int head = 0; head < MOST_HEADS; head++)
    if (c->head_length[head] > c->length) c->head_length[head] = c->length;
}

int prefill(Session* s, Cache* c, const int32_t* ids, int n) {
  if (n < 0 || n > c->capacity - c->length) return WRONG_ARGUMENT;
  for (int done = 0; done < n;) {
    const int rows = n - done < s->most_rows ? n - done : s->most_rows;
    Part part{c, 0, rows, c->length, nullptr, {}};
    // Heads that attend keep the states of all rows, the others that of the last one.
    run_trunk(s, &part, 1, rows, ids + done, heads_attend(s->model->shape) ? 0 : rows - 1);
    if (!finite_rows(s->hidden, s->model->shape.width, width_of(s->model->shape), rows)) return NOT_FINITE;
    accept(s, part, nullptr, rows);
    done += rows;
  }
  return OK;
}

void copy_prefix(const Model* m, Cache* to, const Cache* from, int n) {
  const Shape& h = m->shape;
  const int wide = width_of(h);
  memcpy(to->ids, from->ids, (size_t)n * 4);
  for (int layer = 0; layer < m->cache_layers; layer++)
    for (int slot = 0; slot < n; slot++) copy_slot(h, to, slot, from, slot, layer);
  const int lines = heads_chain(h) ? h.head_count : 1;
  for (int line = 0; to->history && line < lines; line++)
    memcpy(history_of(h, to, line), history_of(h, (Cache*)from, line),
           (size_t)n * wide * 4);
  to->length = n;
  for (int head = 0; head < MOST_HEADS; head++)
    to->head_length[head] = from->head_length[head] < n ? from->head_length[head] : n;
}

}  // namespace BL_NS
