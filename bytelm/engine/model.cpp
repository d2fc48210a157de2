// Models, sessions and caches: memory, and the functions that Python calls for them. Nothing of the caller's is believed:
// sizes are compared with the shape before a pointer is made of them.
#include "engine.h"
#include "export.h"
#include "pool.h"

namespace BL_NS {

// Parts of a model as the caller names them; the same numbers in weights.py.
enum WeightPart : int32_t {
  EMBEDDING = 0, NGRAM_TABLES = 1, NGRAM_OUTPUT = 2, FINAL_GAIN = 3, UNEMBEDDING = 4, DEPTH_EMBEDDING = 5, MLP_LAYER = 6,
  ATTENTION_GAIN = 10, QKV = 11, QK_GAIN = 12, ATTENTION_OUTPUT = 13, FF_GAIN = 14, GATE_UP = 15, DOWN = 16,
};
enum Dtype : int32_t { DT_F32 = 0, DT_BF16 = 1 };

static bool shape_is_valid(const Shape& h) {
  const int32_t ranges[][3] = {
      {h.width, 1, 65536},   {h.layers, 1, 512},      {h.heads, 1, 1024},        {h.groups, 1, 1024},
      {h.channels, 2, 65536}, {h.inner, 1, 262144},   {h.vocabulary, 64, 1 << 18}, {h.choices, 2, 1 << 18},
      {h.head_count, 1, MOST_HEADS}, {h.family, LINEAR, SHARED}, {h.ngrams, 0, 7}, {h.kind, F32, INT8},
  };
  for (const auto& one : ranges)
    if (one[0] < one[1] || one[0] > one[2]) return false;
  if (h.ngrams && (h.ngram_rows < 1 || h.ngram_rows > 1 << 26 || h.ngram_width < 1 || h.ngram_width > 65536)) return false;
  for (int n = 0; n < h.ngrams; n++)
    if (h.ngram_size[n] < 2 || h.ngram_size[n] > 8 || (n && h.ngram_size[n] <= h.ngram_size[n - 1])) return false;
  return h.heads % h.groups == 0 && h.heads * h.channels == h.width && h.channels % 2 == 0 && h.vocabulary % PANEL == 0 &&
         h.choices <= h.vocabulary && h.local_window >= 1 && h.norm_epsilon > 0 && h.rope_base > 1;
}

static int largest_of(int a, int b) { return a > b ? a : b; }

// The number of a weight's elements; 0 for one that this model does not have.
static int64_t elements(const Model* m, int part, int index) {
  const Shape& h = m->shape;
  const int64_t D = h.width, C = h.channels, qkv = (int64_t)(h.heads + 2 * h.groups) * C;
  const bool layer = index >= 0 && index < m->all_layers;
  if (part >= ATTENTION_GAIN && !layer) return 0;
  if (part < ATTENTION_GAIN && part != MLP_LAYER && index != 0) return 0;
  switch (part) {
    case EMBEDDING: return h.vocabulary * D;
    case NGRAM_TABLES: return (int64_t)h.ngrams * h.ngram_rows * h.ngram_width;
    case NGRAM_OUTPUT: return (int64_t)h.ngrams * h.ngram_width * D;
    case FINAL_GAIN: return D;
    case UNEMBEDDING: return (h.family == LINEAR ? h.head_count : 1) * (int64_t)h.vocabulary * D;
    case DEPTH_EMBEDDING: return h.family == SHARED ? h.head_count * D : 0;
    case MLP_LAYER: return h.family == MLP && index >= 0 && index < h.head_count ? D * D : 0;
    case ATTENTION_GAIN: case FF_GAIN: return D;
    case QKV: return qkv * D;
    case QK_GAIN: return (h.heads + h.groups) * C;
    case ATTENTION_OUTPUT: return D * D;
    case GATE_UP: return 2 * (int64_t)h.inner * D;
    case DOWN: return (int64_t)h.inner * D;
    default: return 0;
  }
}

static int copy_floats(Model* m, float** to, const float* from, int64_t n) {
  *to = (float*)take(m->arena, (size_t)n * 4);
  if (!*to) return OUT_OF_MEMORY;
  memcpy(*to, from, (size_t)n * 4);
  return OK;
}

static int set_matrix(Model* m, Matrix* w, const float* x, int outs, int ins) {
  const int status = pack_matrix(m->arena, w, x, outs, ins, m->shape.kind);
  if (status == OK) m->matrix_bytes += matrix_bytes(*w);
  return status;
}

static int set_wide(Model* m, int part, int index, const float* x, int64_t n) {
  const Shape& h = m->shape;
  const int D = h.width;
  Layer* y = part >= ATTENTION_GAIN ? &m->layer[index] : nullptr;
  switch (part) {
    case EMBEDDING: return copy_floats(m, &m->embedding, x, n);
    case NGRAM_TABLES: return copy_floats(m, &m->tables, x, n);
    case NGRAM_OUTPUT: return set_matrix(m, &m->ngram_output, x, D, h.ngrams * h.ngram_width);
    case FINAL_GAIN: return copy_floats(m, &m->final_gain, x, n);
    case UNEMBEDDING: return set_matrix(m, &m->unembedding, x, (int)(n / D), D);
    case DEPTH_EMBEDDING: return copy_floats(m, &m->depth_embedding, x, n);
    case MLP_LAYER: return set_matrix(m, &m->mlp[index], x, D, D);
    case ATTENTION_GAIN: return copy_floats(m, &y->attention_gain, x, n);
    case QKV: return set_matrix(m, &y->qkv, x, (int)(n / D), D);
    case QK_GAIN: return copy_floats(m, &y->qk_gain, x, n);
    case ATTENTION_OUTPUT: return set_matrix(m, &y->output, x, D, D);
    case FF_GAIN: return copy_floats(m, &y->ff_gain, x, n);
    case GATE_UP: return set_matrix(m, &y->gate_up, x, 2 * h.inner, D);
    case DOWN: return set_matrix(m, &y->down, x, D, h.inner);
    default: return WRONG_ARGUMENT;
  }
}

static bool complete(const Model* m) {
  const Shape& h = m->shape;
  bool all = (m->embedding || m->embedding16) && m->final_gain && m->unembedding.data;
  if (h.ngrams) all = all && (m->tables || m->tables16) && m->ngram_output.data;
  if (h.family == SHARED) all = all && m->depth_embedding;
  for (int i = 0; h.family == MLP && i < h.head_count; i++) all = all && m->mlp[i].data;
  for (int i = 0; i < m->all_layers; i++) {
    const Layer& y = m->layer[i];
    all = all && y.attention_gain && y.qk_gain && y.ff_gain && y.qkv.data && y.output.data && y.gate_up.data && y.down.data;
  }
  return all;
}

static void model_free(Model* m) {
  if (!m) return;
  arena_free(m->arena);
  free(m->layer), free(m->mlp), free(m);
}

static Model* model_new(const Shape& h, const uint8_t* local) {
  Model* m = (Model*)calloc(1, sizeof(Model));
  if (!m) return nullptr;
  m->shape = h;
  m->all_layers = h.layers + (!heads_attend(h) ? 0 : h.family == SHARED ? 1 : h.head_count);
  m->cache_layers = h.layers + (heads_attend(h) ? h.head_count : 0);
  m->layer = (Layer*)calloc((size_t)m->all_layers, sizeof(Layer));
  m->mlp = (Matrix*)calloc((size_t)h.head_count, sizeof(Matrix));
  m->arena = (Arena*)calloc(1, sizeof(Arena));
  if (!m->layer || !m->mlp || !m->arena) return model_free(m), nullptr;
  for (int i = 0; i < m->all_layers; i++) m->layer[i].local = local[i] != 0;
  return m;
}

static void session_free(Session* s) {
  if (!s) return;
  pool_free(s->pool);
  free(s->memory);
  free(s);
}

static Session* session_new(const Model* m, int threads, int most_rows, int most_slots) {
  const Shape& h = m->shape;
  const Widths w = widths_of(h);
  Session* s = (Session*)calloc(1, sizeof(Session));
  if (!s) return nullptr;
  s->model = m, s->most_rows = most_rows, s->most_slots = most_slots;
  s->pool = pool_new(threads);
  if (!s->pool) return session_free(s), nullptr;
  const size_t rows = (size_t)most_rows, qkv = (size_t)largest_of(w.qkv, w.hidden);
  const size_t found = (size_t)round_up(h.ngrams * h.ngram_width, PANEL), gated = (size_t)round_up(h.inner, PANEL);
  const size_t stride = (size_t)round_up(most_slots, LANES) + 2 * LANES;
  const size_t inputs = (size_t)largest_of(largest_of(w.hidden, (int)gated), (int)found);
  const size_t scores = (size_t)s->pool->wanted * MOST_QUERIES * (stride + round_up(h.channels, LANES));
  const size_t states = heads_attend(h) ? (size_t)h.head_count * rows * w.hidden : 0;
  // Sixteen floats behind each: vectors are read whole.
  const struct { float** to; size_t floats; } parts[] = {
      {&s->hidden, rows * w.hidden}, {&s->normed, rows * w.hidden}, {&s->qkv, rows * qkv}, {&s->mixed, rows * w.hidden},
      {&s->inner, rows * w.inner}, {&s->gated, rows * gated}, {&s->scores, scores}, {&s->found, rows * found},
      {&s->sums, s->pool->wanted * rows * PANEL},
      {&s->state, states}, {&s->logits, rows * h.vocabulary}, {&s->unit, rows}, {(float**)&s->begin, rows},
      {(float**)&s->quantized, rows * inputs / 4 * INPUT_WORDS},
  };
  size_t floats = 0;
  for (const auto& one : parts) floats += (one.floats + LANES + 15) / 16 * 16;
  s->memory = zeroed(floats * 4);
  if (!s->memory) return session_free(s), nullptr;
  float* at = (float*)s->memory;
  for (const auto& one : parts) *one.to = at, at += (one.floats + LANES + 15) / 16 * 16;
  return s;
}

void cache_free(Cache* c) {
  if (!c) return;
  free(c->ids), free(c->keys), free(c->values), free(c->cosine), free(c->last), free(c->history);
  free(c);
}

Cache* cache_new(const Model* m, int capacity, int kind) {
  const Shape& h = m->shape;
  const int C = h.channels, half = C / 2;
  Cache* c = (Cache*)calloc(1, sizeof(Cache));
  if (!c) return nullptr;
  c->capacity = capacity, c->slots = round_up(capacity, LANES), c->kind = kind;
  const size_t lines = (size_t)m->cache_layers * h.groups * c->slots, each = kind == F32 ? 4 : 2;
  const size_t history = !heads_attend(h) ? 0 : (heads_chain(h) ? h.head_count : 1) * (size_t)c->slots;
  c->ids = (int32_t*)zeroed((size_t)c->slots * 4);
  c->keys = zeroed(lines * C * each);
  c->values = zeroed(lines * round_up(C, LANES) * each);
  c->cosine = (float*)zeroed((size_t)c->slots * half * 2 * 4);
  c->last = (float*)zeroed((size_t)(h.family == ANTICAUSAL ? h.head_count : 1) * round_up(h.width, PANEL) * 4);
  if (history) c->history = (float*)zeroed(history * round_up(h.width, PANEL) * 4);
  if (!c->ids || !c->keys || !c->values || !c->cosine || !c->last || (history && !c->history)) return cache_free(c), nullptr;
  c->sine = c->cosine + (size_t)c->slots * half;
  for (int i = 0; i < half; i++) {
    const double turn = power(h.rope_base, -(double)i / half);
    for (int slot = 0; slot < c->slots; slot++) {
      c->cosine[(size_t)slot * half + i] = (float)cos(slot * turn);
      c->sine[(size_t)slot * half + i] = (float)sin(slot * turn);
    }
  }
  return c;
}

// Nats that heads give the ids that come, of one row's logits: -log softmax over all V columns, and the best choice.
static void score_row(const float* logits, int V, int choices, int target, float* nats, int32_t* best) {
  Floats top = load(logits);
  for (int i = LANES; i < V; i += LANES) top = larger(top, load(logits + i));
  const float most = largest(top);
  Floats sum = all(0.0f);
  for (int i = 0; i < V; i += LANES) sum = add(sum, exponential(sub(load(logits + i), all(most))));
  *nats = target < 0 ? 0.0f : (float)(log((double)total(sum)) + ((double)most - (double)logits[target]));
  int found = 0;
  for (int i = 1; i < choices; i++)
    if (logits[i] > logits[found]) found = i;
  *best = found;
}

}  // namespace BL_NS

// What Python calls ---------------------------------------------------------------------------------------------------

using namespace BL_NS;

BL_API int BL_EXPORT(model_new)(const Shape* shape, const uint8_t* local, int layers, Model** out) {
  *out = nullptr;
  if (!shape_is_valid(*shape)) return WRONG_ARGUMENT;
  const int wanted = shape->layers + (!heads_attend(*shape) ? 0 : shape->family == SHARED ? 1 : shape->head_count);
  if (layers != wanted) return WRONG_SIZE;
  *out = BL_NS::model_new(*shape, local);
  return *out ? OK : OUT_OF_MEMORY;
}

BL_API int64_t BL_EXPORT(model_elements)(const Model* m, int part, int index) { return elements(m, part, index); }

// Gives the model one weight: count numbers of a dtype, row by row. NOT_FINITE if one of them is not.
BL_API int BL_EXPORT(model_set)(Model* m, int part, int index, int dtype, const void* data, int64_t count) {
  if (count <= 0 || elements(m, part, index) != count || (dtype != DT_F32 && dtype != DT_BF16)) return WRONG_SIZE;
  for (int64_t i = 0; i < count; i++) {
    const uint32_t u = dtype == DT_F32 ? ((const uint32_t*)data)[i] : (uint32_t)((const uint16_t*)data)[i] << 16;
    if ((u & 0x7f800000u) == 0x7f800000u) return NOT_FINITE;
  }
  if (dtype == DT_BF16 && (part == EMBEDDING || part == NGRAM_TABLES)) {  // looked up as they are
    uint16_t** to = part == EMBEDDING ? &m->embedding16 : &m->tables16;
    *to = (uint16_t*)take(m->arena, (size_t)count * 2);
    if (!*to) return OUT_OF_MEMORY;
    memcpy(*to, data, (size_t)count * 2);
    return OK;
  }
  if (dtype == DT_F32) return set_wide(m, part, index, (const float*)data, count);
  float* wide = (float*)malloc((size_t)count * 4);
  if (!wide) return OUT_OF_MEMORY;
  for (int64_t i = 0; i < count; i++) wide[i] = from_bf16(((const uint16_t*)data)[i]);
  const int status = set_wide(m, part, index, wide, count);
  free(wide);
  return status;
}

BL_API int BL_EXPORT(model_complete)(const Model* m) { return complete(m); }
BL_API int64_t BL_EXPORT(model_matrix_bytes)(const Model* m) { return (int64_t)m->matrix_bytes; }
BL_API int64_t BL_EXPORT(model_bytes)(const Model* m) { return (int64_t)m->arena->bytes; }
BL_API void BL_EXPORT(model_free)(Model* m) { BL_NS::model_free(m); }

BL_API int BL_EXPORT(session_new)(const Model* m, int threads, int most_rows, int most_slots, Session** out) {
  *out = nullptr;
  if (!complete(m) || most_rows < 1 || most_rows > 4096 || most_slots < 1 || most_slots > 1 << 24) return WRONG_ARGUMENT;
  *out = BL_NS::session_new(m, threads, most_rows, most_slots);
  return *out ? OK : OUT_OF_MEMORY;
}
BL_API void BL_EXPORT(session_free)(Session* s) { BL_NS::session_free(s); }

BL_API int BL_EXPORT(cache_new)(const Model* m, int capacity, int kind, Cache** out) {
  *out = nullptr;
  if (capacity < 1 || capacity > 1 << 24 || (kind != F32 && kind != BF16)) return WRONG_ARGUMENT;
  *out = BL_NS::cache_new(m, capacity, kind);
  return *out ? OK : OUT_OF_MEMORY;
}
BL_API void BL_EXPORT(cache_free)(Cache* c) { BL_NS::cache_free(c); }
BL_API int BL_EXPORT(cache_length)(const Cache* c) { return c->length; }
BL_API int BL_EXPORT(cache_truncate)(Cache* c, int length) {
  if (length < 0 || length > c->length) return WRONG_ARGUMENT;
  truncate(c, length);
  return OK;
}

static bool ids_are_valid(const Session* s, const int32_t* ids, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (ids[i] < 0 || ids[i] >= s->model->shape.vocabulary) return false;
  return true;
}

BL_API int BL_EXPORT(prefill)(Session* s, Cache* c, const int32_t* ids, int n) {
  if (n < 0 || c->capacity > s->most_slots || !ids_are_valid(s, ids, n)) return WRONG_ARGUMENT;
  return BL_NS::prefill(s, c, ids, n);
}

// One pass over rows of some sequences, then logits of head 0 at all rows [rows][V]. parents: of all rows, within their
// sequence, or null for chains. Then accept_path of each sequence that is to keep rows, before the next pass.
BL_API int BL_EXPORT(pass)(Session* s, int count, Cache** caches, const int32_t* rows, const int32_t* parents, const int32_t* ids,
                     float* logits) {
  if (count < 1 || count > MOST_SEQUENCES) return WRONG_ARGUMENT;
  Part* parts = (Part*)calloc((size_t)count, sizeof(Part));
  if (!parts) return OUT_OF_MEMORY;
  int total_rows = 0, status = OK;
  for (int n = 0; n < count && status == OK; n++) {
    Cache* c = caches[n];
    const int limit = parents ? MOST_TREE_ROWS : s->most_rows;
    if (rows[n] < 1 || rows[n] > limit || total_rows + rows[n] > s->most_rows || rows[n] > c->capacity - c->length ||
        c->capacity > s->most_slots) {
      status = WRONG_ARGUMENT;
      break;
    }
    parts[n].cache = c, parts[n].first = total_rows, parts[n].rows = rows[n], parts[n].start = c->length;
    parts[n].parents = parents ? parents + total_rows : nullptr;
    for (int r = 0; parents && r < rows[n]; r++)
      if (parts[n].parents[r] >= r || parts[n].parents[r] < -1) status = WRONG_ARGUMENT;
    total_rows += rows[n];
  }
  if (status == OK && !ids_are_valid(s, ids, total_rows)) status = WRONG_ARGUMENT;
  if (status == OK) {
    run_trunk(s, parts, count, total_rows, ids);
    status = head0_logits(s, parts, count, total_rows, s->logits);
    memcpy(logits, s->logits, (size_t)total_rows * s->model->shape.vocabulary * 4);
  }
  free(parts);
  return status;
}

// Makes rows of the last pass of a cache real: first is the number of its row 0 in that pass.
BL_API int BL_EXPORT(accept_path)(Session* s, Cache* c, int first, int rows, const int32_t* path, int n) {
  if (n < 0 || n > rows || first < 0 || first + rows > s->most_rows || c->length + rows > c->slots) return WRONG_ARGUMENT;
  for (int i = 0; path && i < n; i++)
    if (path[i] < i || path[i] >= rows || (i && path[i] <= path[i - 1])) return WRONG_ARGUMENT;
  Part part{c, first, rows, c->length, nullptr, {}};
  accept(s, part, path, n);
  return OK;
}

// Logits of one draft head after the last accepted id, [V].
BL_API int BL_EXPORT(draft_head)(Session* s, Cache* c, int head, float* logits) {
  const Shape& h = s->model->shape;
  if (head < 1 || head >= h.head_count || c->length < 1) return WRONG_ARGUMENT;
  draft_logits(s, c, head, h.vocabulary, s->logits);
  memcpy(logits, s->logits, (size_t)h.vocabulary * 4);
  return OK;
}

// Reads n ids as a window of their own and says what some heads make of the ids behind them: for row t and head k the
// target is ids[t + 1 + k], where there are so many (known of them). nats, best: [n][heads].
BL_API int BL_EXPORT(score_window)(Session* s, Cache* c, const int32_t* ids, int n, int known, int heads, float* nats,
                             int32_t* best) {
  const Shape& h = s->model->shape;
  if (n < 1 || known < n || n > c->capacity || c->capacity > s->most_slots || heads < 1 || heads > h.head_count ||
      (heads > 1 && heads_attend(h)) || !ids_are_valid(s, ids, known))
    return WRONG_ARGUMENT;
  const int wide = round_up(h.width, PANEL), V = h.vocabulary;
  truncate(c, 0);
  for (int done = 0; done < n;) {
    const int rows = n - done < s->most_rows ? n - done : s->most_rows;
    Part part{c, 0, rows, done, nullptr, {}};
    run_trunk(s, &part, 1, rows, ids + done);
    for (int head = 0; head < heads; head++) {
      if (head == 0) {
        const int status = head0_logits(s, &part, 1, rows, s->logits);
        if (status != OK) return status;
      } else {
        norm_rows(s, s->hidden, rows);
        if (h.family == MLP) mlp_state(s, head, s->normed, rows);
        const int first = h.family == LINEAR ? head * V : 0;
        product(s, columns_of(s->model->unembedding, first, V), h.family == MLP ? s->mixed : s->normed, wide, s->logits, V,
                rows, false);
        if (!finite_rows(s->logits, h.choices, V, rows)) return NOT_FINITE;
      }
      for (int r = 0; r < rows; r++) {
        const int target = done + r + 1 + head;
        score_row(s->logits + (size_t)r * V, V, h.choices, target < known ? ids[target] : -1,
                  nats + (size_t)(done + r) * heads + head, best + (size_t)(done + r) * heads + head);
      }
    }
    accept(s, part, nullptr, rows);
    done += rows;
  }
  return OK;
}
