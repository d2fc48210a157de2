// Sequences side by side: draft, verify, accept, again. What each gets is what it would get alone, without drafts: an
// id is chosen from the trunk's logits and the ids before it, and no row of a pass depends on the rows beside it.
//
//   begin    a prompt takes a slot; what a cache already holds of it is kept
//   prefill  the trunk reads the rest, all but the last id
//   step     one pass over [last id | drafts] of all sequences; head 0 chooses along the drafts as far as they agree
//
// The context is `capacity` ids. A sequence that has filled them goes on with its last half, read afresh; a prompt that
// is longer begins with its last half. Where this happens depends on positions alone, never on drafts.
//
// The signatures of what is exported are in decode.h.
#include <math.h>
#include <time.h>

#include "decode.h"
#include "export.h"

namespace BL_NS {

constexpr double RATE_DECAY = 0.95;
constexpr int READ_PIECE = 256;              // ids that are read between two looks at the clock
constexpr int64_t RESERVED_IDS = 1 << 16;    // room for so many ids of the output is made at the beginning

static int64_t microseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

// Decoder -------------------------------------------------------------------------------------------------------------

template <typename T> static bool make(T** array, size_t count) {
  void* memory = nullptr;
  const size_t bytes = (count ? count : 1) * sizeof(T);
  if (posix_memalign(&memory, 64, (bytes + 63) / 64 * 64)) return false;
  memset(memory, 0, bytes);
  *array = (T*)memory;
  return true;
}

static bool valid(const Costs* c) {
  if (!c || c->pasts < 1 || c->pasts > 4 || c->row_counts < 2 || c->row_counts > 12) return false;
  if (!(c->head >= 0.0 && c->head < HUGE_VAL && c->sequence >= 0.0 && c->sequence < HUGE_VAL)) return false;
  for (int i = 0; i < c->row_counts; i++)
    if (c->rows[i] < 1 || c->rows[i] > 1 << 20 || (i && c->rows[i] <= c->rows[i - 1])) return false;
  for (int p = 0; p < c->pasts; p++) {
    if (c->past[p] < 0 || (p && c->past[p] <= c->past[p - 1])) return false;
    for (int i = 0; i < c->row_counts; i++)
      if (!(c->seconds[p][i] > 0.0 && c->seconds[p][i] < HUGE_VAL)) return false;
  }
  return true;
}

static bool valid(const Calibration* c) {
  const Counter* counters = &c->head[0][0][0][0];
  static_assert(sizeof(Calibration) % sizeof(Counter) == 0, "counters lie one behind the other");
  for (size_t i = 0; i < sizeof(Calibration) / sizeof(Counter); i++)
    if (!(counters[i].right >= 0.0 && counters[i].total >= counters[i].right && counters[i].total < HUGE_VAL))
      return false;
  return true;
}

static void decoder_free(Decoder* d) {
  if (!d) return;
  for (int i = 0; d->sequence && i < d->slots; i++) {
    Sequence* q = d->sequence + i;
    cache_free(q->cache), free(q->ids), chooser_free(&q->chooser), lookup_free(&q->lookup);
  }
  free(d->sequence), free(d->parts), free(d->pass_ids), free(d->pass_parents), free(d->running);
  free(d->last), free(d->before), free(d->out), free(d->of_head), free(d->of_pair);
  free(d->head_logits), free(d->own_logits), free(d->log_probs), free(d->scores);
  free(d);
}

static bool copy_pairs(Decoder* d, const Pairs* p) {
  const int ids = EOD + 1, heads = d->session->model->shape.head_count - 1;
  const size_t rank = (size_t)p->rank;
  if (!make(&d->last, ids * rank) || !make(&d->before, ids * rank) || !make(&d->out, rank * 256) ||
      !make(&d->of_head, (size_t)heads) || !make(&d->of_pair, (size_t)heads))
    return false;
  memcpy(d->last, p->last, ids * rank * sizeof(float)), memcpy(d->before, p->before, ids * rank * sizeof(float));
  for (size_t r = 0; r < rank; r++) memcpy(d->out + r * 256, p->out + r * ids, 256 * sizeof(float));
  memcpy(d->of_head, p->of_head, heads * sizeof(float)), memcpy(d->of_pair, p->of_pair, heads * sizeof(float));
  d->rank = p->rank;
  return true;
}

static int decoder_new(Session* s, int slots, int capacity, int cache_kind, bool trees, const Costs* costs,
                       const Calibration* calibration, const Pairs* pairs, Decoder** out) {
  const Shape& h = s->model->shape;
  Decoder* d = (Decoder*)calloc(1, sizeof(Decoder));
  if (!d) return OUT_OF_MEMORY;
  d->session = s, d->slots = slots, d->capacity = capacity, d->cache_kind = cache_kind;
  d->bytes = h.choices == EOD + 1, d->trees = trees;
  d->costs = *costs, d->calibration = *calibration;
  d->columns = d->bytes ? 256 : h.vocabulary;
  const size_t columns = (size_t)d->columns;
  bool fits = make(&d->sequence, (size_t)slots) && make(&d->parts, (size_t)slots) && make(&d->running, (size_t)slots) &&
              make(&d->pass_ids, (size_t)s->most_rows) && make(&d->pass_parents, (size_t)s->most_rows) &&
              make(&d->head_logits, (size_t)h.head_count * columns) && make(&d->own_logits, columns) &&
              make(&d->log_probs, columns) && make(&d->scores, columns);
  if (fits && pairs) fits = copy_pairs(d, pairs);
  if (!fits) return decoder_free(d), OUT_OF_MEMORY;
  *out = d;
  return OK;
}

// Sequences -----------------------------------------------------------------------------------------------------------

static int64_t left_to_read(const Sequence* q) { return q->count - 1 - q->first - q->cache->length; }

static int reserve_ids(Sequence* q, int64_t room) {
  if (room <= q->room) return OK;
  int32_t* ids = room > INT32_MAX ? nullptr : (int32_t*)realloc(q->ids, (size_t)room * sizeof(int32_t));
  if (!ids) return OUT_OF_MEMORY;
  q->ids = ids, q->room = room;
  return OK;
}

// An id that is certain.
static int add_id(Sequence* q, int id) {
  if (q->count == q->room) {
    const int status = reserve_ids(q, q->room * 2);
    if (status != OK) return status;
  }
  q->ids[q->count++] = id;
  return q->has_lookup ? lookup_add(&q->lookup, id) : OK;
}

static int equal_ids(const Cache* c, const int32_t* ids, int64_t n) {
  int same = 0;
  while (same < n && same < c->length && c->ids[same] == ids[same]) same++;
  return same;
}

// Keeps of the caches what the context begins with. One id at least is read again, for the heads ask for its state.
static void reuse_prefix(Decoder* d, Sequence* q) {
  const int32_t* ids = q->ids + q->first;
  const int64_t most = q->count - q->first - 2;
  int longest = most > 0 ? equal_ids(q->cache, ids, most) : 0;
  const Sequence* from = q;
  for (int i = 0; most > 0 && i < d->slots; i++) {
    const Sequence* other = d->sequence + i;
    const int same = other->cache ? equal_ids(other->cache, ids, most) : 0;
    if (same > longest) longest = same, from = other;
  }
  if (from == q) truncate(q->cache, longest);
  else copy_prefix(d->session->model, q->cache, from->cache, longest);
}

static bool valid(const Decoder* d, const Settings* s) {
  if (s->policy < NONE || s->policy > NGRAM || s->max_ids < 1 || s->top_k < 0) return false;
  if (!(s->temperature >= 0.0 && s->temperature < HUGE_VAL && s->repetition_penalty >= 1.0)) return false;
  if (!(s->top_p <= 1.0 && s->min_p <= 1.0 && s->repetition_penalty < HUGE_VAL)) return false;
  // The rest looks at bytes.
  return d->bytes || (!s->utf8 && s->repetition_penalty == 1.0 && s->policy != NGRAM);
}

static int set_context(Sequence* q, const int32_t* ids, int64_t n, bool bytes) {
  uint8_t* prompt = (uint8_t*)malloc((size_t)n);
  if (!prompt) return OUT_OF_MEMORY;
  const int64_t some = bytes ? n - 1 : 0;
  for (int64_t i = 0; i < some; i++) prompt[i] = (uint8_t)ids[1 + i];
  q->context = first_context(prompt, some);
  free(prompt);
  return OK;
}

// The slot is left free where memory is short.
static int begin(Decoder* d, Sequence* q, const int32_t* ids, int64_t n, const Settings* settings) {
  q->state = FREE;
  if (!q->cache && !(q->cache = cache_new(d->session->model, d->capacity, d->cache_kind))) return OUT_OF_MEMORY;
  chooser_free(&q->chooser);
  int status = chooser_init(&q->chooser, settings, d->session->model->shape.choices);
  if (status != OK) return status;
  const int64_t kept = n <= d->capacity ? n : d->capacity / 2;
  const int64_t more = settings->max_ids < RESERVED_IDS ? settings->max_ids : RESERVED_IDS;
  status = reserve_ids(q, kept + more);
  if (status != OK) return status;
  memcpy(q->ids, ids + n - kept, (size_t)kept * sizeof(int32_t));
  q->count = kept, q->first = 0, q->produced = 0;
  status = set_context(q, ids, n, d->bytes);
  if (status != OK) return status;
  q->has_lookup = d->bytes && (settings->policy == ADAPTIVE || settings->policy == NGRAM);
  if (q->has_lookup) {
    const int64_t seen = n - 1 < d->capacity ? n - 1 : d->capacity;
    status = lookup_init(&q->lookup, seen + more);
    for (int64_t i = n - seen; i < n && status == OK; i++) status = lookup_add(&q->lookup, ids[i]);
    if (status != OK) return status;
  }
  q->candidates = q->drafted = q->asked = 0;
  q->gain = 1.0, q->spent = 0.0, q->pause = q->wait = 0;
  reuse_prefix(d, q);
  const int family = d->session->model->shape.family;
  q->heads_ready = false;
  q->state = left_to_read(q) ? READING : RUNNING;
  if (q->state == RUNNING) q->heads_ready = family <= TRANSFORMER && q->cache->length > 0;
  return OK;
}

// Reads up to `most` ids of what is left. A sequence whose numbers are not finite is finished.
static int read_some(Decoder* d, Sequence* q, int64_t most) {
  const int64_t left = left_to_read(q), n = left < most ? left : most;
  if (n > 0) {
    const int status = prefill(d->session, q->cache, q->ids + q->first + q->cache->length, (int)n);
    if (status != OK) {
      truncate(q->cache, 0);
      q->state = FINISHED;
      return status;
    }
  }
  if (n < left) return OK;
  q->state = RUNNING;
  // Heads in a chain begin with head 0, which has not run at what was only read.
  q->heads_ready = d->session->model->shape.family <= TRANSFORMER && q->cache->length > 0;
  return OK;
}

// A sequence that has filled its context goes on with the last half.
static void slide(Decoder* d, Sequence* q) {
  q->first = q->count - d->capacity / 2;
  truncate(q->cache, 0);
  q->state = READING;
}

// Steps ---------------------------------------------------------------------------------------------------------------

// One pass of some sequences with their drafts. The status of head 0.
static int run_pass(Decoder* d, Sequence** sequences, int count) {
  int rows = 0;
  for (int n = 0; n < count; n++) {
    Sequence* q = sequences[n];
    Part* part = d->parts + n;
    part->cache = q->cache, part->first = rows, part->rows = 1 + q->drafted, part->start = q->cache->length;
    d->pass_ids[rows] = q->ids[q->count - 1], d->pass_parents[rows] = -1;
    bool chain = true;
    int row_of[MOST_CANDIDATES];
    for (int i = 0; i < q->drafted; i++) {
      const Node& node = q->nodes[q->chosen[i]];
      row_of[q->chosen[i]] = i + 1;
      const int parent = node.parent < 0 ? 0 : row_of[node.parent];
      chain = chain && parent == i;
      d->pass_ids[rows + 1 + i] = node.id, d->pass_parents[rows + 1 + i] = parent;
    }
    part->parents = chain ? nullptr : d->pass_parents + rows;
    rows += part->rows;
  }
  run_trunk(d->session, d->parts, count, rows, d->pass_ids);
  return head0_logits(d->session, d->parts, count, rows, d->session->logits);
}

// What every record says; the rest is the caller's.
static Record* add_record(Decoder* d, Sequence* q, Block* b) {
  Record* r = b->record + b->records++;
  *r = Record();
  r->slot = (int32_t)(q - d->sequence);
  r->first = b->id_count, r->drafted_first = b->drafted_count;
  r->rows = 1 + q->drafted, r->asked = q->asked, r->drafted = q->drafted;
  return r;
}

// Follows head 0 through the draft of a sequence, as far as they agree, and makes that certain.
static int verify(Decoder* d, Sequence* q, const Part& part, int past, Block* b, int* gained) {
  const int V = d->session->model->shape.vocabulary;
  const float* logits = d->session->logits + (size_t)part.first * V;
  const Settings& settings = q->chooser.settings;
  Context at = q->context;
  int32_t choices[1 + MOST_NODES], rows[1 + MOST_NODES] = {0};
  int path[MOST_NODES], accepted = 0;
  Record* r = add_record(d, q, b);
  bool goes_on = true;
  while (goes_on) {
    const float* own = logits + (size_t)rows[accepted] * V;
    const int id = choose(&q->chooser, own, at);
    choices[accepted] = id;
    if (id != EOD) {
      const int place = b->id_count + accepted;
      b->ids[place] = id, b->sources[place] = TRUNK;
      if (b->logprobs) b->logprobs[place] = settings.logprobs ? log_probability(own, V, id) : 0.0;
      at = context_after(at, id);
    }
    goes_on = false;
    if (id == EOD || q->produced + accepted + 1 == settings.max_ids) break;
    const int parent = accepted ? path[accepted - 1] : -1;
    for (int i = 0; i < q->drafted && !goes_on; i++) {
      const Node& node = q->nodes[q->chosen[i]];
      if (node.parent != parent || node.id != id) continue;
      b->sources[b->id_count + accepted] = (int8_t)node.source;
      path[accepted++] = q->chosen[i], rows[accepted] = i + 1, goes_on = true;
    }
  }
  const bool ends = choices[accepted] == EOD;
  r->accepted = accepted, r->count = accepted + !ends, r->expected = 1.0f;
  accept(d->session, part, part.parents ? rows : nullptr, accepted + 1);
  q->heads_ready = true;
  // Those that were right come first.
  bool right[MOST_CANDIDATES] = {false};
  for (int i = 0; i < accepted; i++) {
    right[path[i]] = true;
    b->drafted[b->drafted_count++] = (int8_t)q->nodes[path[i]].source;
  }
  for (int i = 0; i < q->drafted; i++) {
    const Node& node = q->nodes[q->chosen[i]];
    r->expected += (float)node.path_probability;
    if (!right[q->chosen[i]]) b->drafted[b->drafted_count++] = (int8_t)node.source;
  }
  observe(d, q, path, accepted, choices, past);
  q->context = at;
  int status = OK;
  for (int i = 0; i < r->count && status == OK; i++) status = add_id(q, choices[i]);
  b->id_count += r->count, q->produced += r->count, *gained += accepted + 1;
  r->finish = ends ? END_OF_DOCUMENT : q->produced == settings.max_ids ? MAX_IDS : GOES_ON;
  if (r->finish != GOES_ON) q->state = FINISHED;
  return status;
}

// Of what was drafted nothing was verified.
static void finish_not_finite(Decoder* d, Sequence* q, Block* b) {
  q->drafted = q->asked = 0;
  add_record(d, q, b)->finish = LOGITS_NOT_FINITE;
  truncate(q->cache, 0);
  q->state = FINISHED;
}

// One pass for all running sequences, and what it gave to each.
static int step(Decoder* d, Sequence** sequences, int count, Block* b) {
  int past = 0, limits[MOST_SEQUENCES], asked = 0, rows = 0, gained = 0;
  for (int n = 0; n < count; n++)
    if (sequences[n]->cache->length > past) past = sequences[n]->cache->length;
  // At first as if nothing were accepted; then at the rate of the last steps.
  const double rate = (d->gained + count) / (d->spent + cost_of(d->costs, past, count, count));
  for (int n = 0; n < count; n++) {
    Sequence* q = sequences[n];
    int limit = d->capacity - q->cache->length - 1;
    if (limit > d->session->most_rows / count - 1) limit = d->session->most_rows / count - 1;
    if (limit > MOST_NODES) limit = MOST_NODES;
    const int64_t wanted = q->chooser.settings.max_ids - q->produced - 1;
    limits[n] = limit;
    propose(d, q, wanted < limit ? (int)wanted : limit, past, count, rate);
    asked += q->asked;
  }
  plan(d, sequences, limits, count, past, rate);
  for (int n = 0; n < count; n++) rows += 1 + sequences[n]->drafted;
  int status = run_pass(d, sequences, count);
  if (status == OK) {
    for (int n = 0; n < count && status == OK; n++) status = verify(d, sequences[n], d->parts[n], past, b, &gained);
  } else if (status == NOT_FINITE) {
    // Whose numbers they are, and whether they stand in a row that counts: each sequence alone, without drafts.
    status = OK;
    for (int n = 0; n < count && status == OK; n++) {
      Sequence* q = sequences[n];
      q->candidates = q->drafted = 0;
      status = run_pass(d, &q, 1);
      if (status == OK) status = verify(d, q, d->parts[0], past, b, &gained);
      else if (status == NOT_FINITE) finish_not_finite(d, q, b), status = OK;
    }
  }
  const double spent = cost_of(d->costs, past, rows, count) + asked * d->costs.head;
  d->gained = d->gained * RATE_DECAY + gained, d->spent = d->spent * RATE_DECAY + spent;
  return status;
}

// Whether one step of so many sequences fits what is left of a block.
static bool fits(const Block* b, int count, int most_rows) {
  const int rows = most_rows / count < 1 + MOST_NODES ? most_rows / count : 1 + MOST_NODES;
  return b->records + count <= b->most_records && b->id_count + count * rows <= b->most_ids &&
         b->drafted_count + count * (rows - 1) <= b->most_drafted;
}

static int run(Decoder* d, int most_steps, int64_t most_microseconds, Block* b) {
  const int64_t end = most_microseconds > 0 ? microseconds() + most_microseconds : INT64_MAX;
  Sequence* sequences[MOST_SEQUENCES];
  b->records = b->id_count = b->drafted_count = b->steps = 0;
  bool room = false;
  while (true) {
    int count = 0, finished = 0;
    for (int i = 0; i < d->slots; i++) {
      Sequence* q = d->sequence + i;
      if (q->state == RUNNING && q->cache->length == d->capacity) slide(d, q);
      if (q->state == READING || q->state == RUNNING) sequences[count++] = q;
    }
    if (!count) return b->ended = NOTHING_RUNS, OK;
    if (b->steps == most_steps) return b->ended = STEPS_DONE, OK;
    if (!fits(b, count, d->session->most_rows)) {
      if (!room) return WRONG_ARGUMENT;
      return b->ended = BLOCK_FULL, OK;
    }
    room = true;
    for (int n = 0; n < count; n++) {
      Sequence* q = sequences[n];
      while (q->state == READING) {
        const int status = read_some(d, q, READ_PIECE);
        if (status == NOT_FINITE) finish_not_finite(d, q, b), finished++;
        else if (status != OK) return status;
        else if (q->state == READING && microseconds() >= end) return b->ended = TIME_OVER, OK;
      }
    }
    if (finished) return b->ended = SEQUENCE_FINISHED, OK;
    const int status = step(d, sequences, count, b);
    b->steps++;
    if (status != OK) return status;
    for (int n = 0; n < count; n++) finished += sequences[n]->state == FINISHED;
    if (finished) return b->ended = SEQUENCE_FINISHED, OK;
    if (end != INT64_MAX && microseconds() >= end) return b->ended = TIME_OVER, OK;
  }
}

}  // namespace BL_NS

// What Python calls ---------------------------------------------------------------------------------------------------

using namespace BL_NS;

BL_API int BL_EXPORT(decoder_new)(Session* session, int32_t slots, int32_t capacity, int32_t cache_kind, int32_t trees,
                                  const Costs* costs, const Calibration* calibration, const Pairs* pairs,
                                  Decoder** out) {
  if (!out) return WRONG_ARGUMENT;
  *out = nullptr;
  if (!session || slots < 1 || slots > MOST_SEQUENCES || slots > session->most_rows || capacity < 2 ||
      capacity > session->most_slots || (cache_kind != F32 && cache_kind != BF16) || !valid(costs) || !calibration ||
      !valid(calibration))
    return WRONG_ARGUMENT;
  const Shape& h = session->model->shape;
  if (h.choices < EOD + 1) return WRONG_ARGUMENT;
  if (pairs && (h.choices != EOD + 1 || h.head_count < 2 || pairs->rank < 1 || pairs->rank > 256 || !pairs->last ||
                !pairs->before || !pairs->out || !pairs->of_head || !pairs->of_pair))
    return WRONG_ARGUMENT;
  return BL_NS::decoder_new(session, slots, capacity, cache_kind, trees != 0, costs, calibration, pairs, out);
}

BL_API void BL_EXPORT(decoder_free)(Decoder* d) { BL_NS::decoder_free(d); }

BL_API int BL_EXPORT(decoder_set_costs)(Decoder* d, const Costs* costs) {
  if (!d || !valid(costs)) return WRONG_ARGUMENT;
  d->costs = *costs, d->gained = d->spent = 0.0;
  return OK;
}

BL_API int BL_EXPORT(decoder_calibration)(const Decoder* d, Calibration* out) {
  if (!d || !out) return WRONG_ARGUMENT;
  *out = d->calibration;
  return OK;
}

BL_API int BL_EXPORT(decoder_set_calibration)(Decoder* d, const Calibration* calibration) {
  if (!d || !calibration || !valid(calibration)) return WRONG_ARGUMENT;
  d->calibration = *calibration;
  // Branches begin without knowledge: a decoder that is used again drafts as a new one.
  memset(d->branch, 0, sizeof d->branch), memset(d->behind, 0, sizeof d->behind);
  return OK;
}

BL_API int64_t BL_EXPORT(decoder_begin)(Decoder* d, int32_t slot, const int32_t* ids, int64_t n,
                                        const Settings* settings) {
  if (!d || slot < 0 || slot >= d->slots || !ids || n < 1 || n > INT32_MAX || ids[0] != EOD || !settings ||
      !valid(d, settings))
    return -WRONG_ARGUMENT;
  const int choices = d->session->model->shape.choices;
  for (int64_t i = 1; i < n; i++)
    if (ids[i] < 0 || ids[i] >= choices || ids[i] == EOD) return -WRONG_ARGUMENT;
  Sequence* q = d->sequence + slot;
  if (q->state == READING || q->state == RUNNING) return -WRONG_ARGUMENT;
  const int status = begin(d, q, ids, n, settings);
  return status == OK ? left_to_read(q) : -(int64_t)status;
}

BL_API int64_t BL_EXPORT(decoder_prefill)(Decoder* d, int32_t slot, int64_t most_ids) {
  if (!d || slot < 0 || slot >= d->slots || most_ids < 1) return -WRONG_ARGUMENT;
  Sequence* q = d->sequence + slot;
  if (q->state == RUNNING) return 0;
  if (q->state != READING) return -WRONG_ARGUMENT;
  const int status = read_some(d, q, most_ids);
  return status == OK ? left_to_read(q) : -(int64_t)status;
}

BL_API int BL_EXPORT(decoder_run)(Decoder* d, int32_t most_steps, int64_t most_microseconds, Block* block) {
  if (!d || !block || most_steps < 1 || !block->record || !block->ids || !block->sources || !block->drafted)
    return WRONG_ARGUMENT;
  return run(d, most_steps, most_microseconds, block);
}

BL_API int BL_EXPORT(decoder_end)(Decoder* d, int32_t slot) {
  if (!d || slot < 0 || slot >= d->slots) return WRONG_ARGUMENT;
  d->sequence[slot].state = FREE;
  return OK;
}

// For tests -----------------------------------------------------------------------------------------------------------

BL_API int BL_EXPORT(lookup_test)(const uint8_t* text, int64_t n, const uint8_t* drafted, int32_t m, int32_t count,
                                  int32_t* place_and_length, uint8_t* following) {
  if (n < 0 || m < 0 || count < 0) return WRONG_ARGUMENT;
  Lookup lookup = Lookup();
  int status = lookup_init(&lookup, 0);
  for (int64_t i = 0; i < n && status == OK; i++) status = lookup_add(&lookup, text[i]);
  if (status == OK) {
    const Match match = lookup_find(lookup, drafted, m);
    place_and_length[0] = match.place, place_and_length[1] = match.length;
    for (int32_t i = 0; match.length && i < count; i++)
      following[i] = (uint8_t)lookup_following(lookup, match.place, i, drafted, m);
  }
  lookup_free(&lookup);
  return status;
}

BL_API int BL_EXPORT(plan_test)(const Costs* costs, int32_t past, double rate, int32_t sequences, const int32_t* nodes,
                                const double* path_probabilities, int32_t* taken) {
  if (!valid(costs) || sequences < 1 || sequences > MOST_SEQUENCES) return WRONG_ARGUMENT;
  Sequence* all_sequences = (Sequence*)calloc((size_t)sequences, sizeof(Sequence));
  Decoder* d = (Decoder*)calloc(1, sizeof(Decoder));
  int status = all_sequences && d ? OK : OUT_OF_MEMORY;
  Sequence* pointers[MOST_SEQUENCES];
  int limits[MOST_SEQUENCES];
  for (int n = 0; n < sequences && status == OK; n++) {
    Sequence* q = pointers[n] = all_sequences + n;
    if (nodes[n] < 0 || nodes[n] > MOST_CANDIDATES) status = WRONG_ARGUMENT;
    q->chooser.settings.policy = ADAPTIVE, limits[n] = MOST_NODES;
    for (; status == OK && q->candidates < nodes[n]; q->candidates++) {
      q->nodes[q->candidates].parent = q->candidates - 1;
      q->nodes[q->candidates].path_probability = *path_probabilities++;
    }
  }
  if (status == OK) {
    d->costs = *costs;
    plan(d, pointers, limits, sequences, past, rate);
    for (int n = 0; n < sequences; n++) taken[n] = pointers[n]->drafted;
  }
  free(all_sequences), free(d);
  return status;
}

BL_API double BL_EXPORT(cost_test)(const Costs* costs, int32_t past, int32_t rows, int32_t sequences) {
  return valid(costs) ? cost_of(*costs, past, rows, sequences) : -1.0;
}
