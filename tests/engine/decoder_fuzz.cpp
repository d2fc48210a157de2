// Drafts, blocks, slots and caches must not change a byte: random decodings are compared with a decoder of a few lines,
// which reads the whole context anew for every id. The model is not a transformer but a function of the ids before, so
// that its draft heads can be right as often as wanted. What it keeps of a sequence lies in the cache, slot by slot,
// like keys: a row that is copied, kept or overwritten wrongly changes all that follows.
//
// test_decoder_fuzz.py compiles it with sanitizers and runs it; by hand: ./decoder_fuzz [rounds [first seed]].
#include <stdio.h>

#include "export.h"

#include "engine.h"

namespace BL_NS {

BL_INLINE int round_up(int x, int to) { return (x + to - 1) / to * to; }
BL_INLINE Floats load_some(const float* p, int n) {
  float t[LANES] = {0};
  memcpy(t, p, (size_t)(n < LANES ? n : LANES) * 4);
  return load(t);
}

}  // namespace BL_NS

#include "choose.cpp"
#include "draft.cpp"
#include "decode.cpp"

namespace BL_NS {

// Model ---------------------------------------------------------------------------------------------------------------

static uint64_t mixed(uint64_t x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdull, x ^= x >> 33, x *= 0xc4ceb9fe1a85ec53ull;
  return x ^ x >> 33;
}

struct Fake {
  uint64_t seed;
  int alphabet;        // ids that mostly come
  int skill;           // of 16: how often a head sees what the trunk sees
  int broken;          // one of so many states has logits that are not finite; 0: none
  int broken_heads;    // 1: heads sometimes give numbers that are not finite
};
static Fake fake;

// State after an id: a function of all ids of the context, but mostly of the last two.
static uint64_t state_after(uint64_t before, int id) { return mixed(before * 31 + (uint64_t)id + fake.seed); }

// Logits after some ids.
static bool trunk_logits(uint64_t state, int last, int before, int V, float* logits) {
  if (fake.broken && state % (uint64_t)fake.broken == 7) {
    for (int i = 0; i < V; i++) logits[i] = i % 2 ? NAN : 1.0f;
    return false;
  }
  const uint64_t near = mixed(fake.seed ^ ((uint64_t)last << 20 | (uint64_t)before));
  for (int i = 0; i < V; i++) logits[i] = -4.0f + (float)(mixed(near + (uint64_t)i) % 1000) / 1000.0f;
  for (int i = 0; i < 4; i++) {
    const int id = 97 + (int)(mixed(near + 1000 + (uint64_t)i) % (uint64_t)fake.alphabet);
    logits[id] = 4.0f - 1.5f * (float)i + (state % 8 == 0 ? (float)(mixed(state + (uint64_t)i) % 700) / 100.0f : 0.0f);
  }
  if (state % 97 == 3) logits[EOD] = 6.0f;
  if (state % 13 == 3) logits[0xc3] = 9.0f, logits[200 + state % 50] = 8.0f;
  return true;
}

static uint64_t* states_of(const Cache* c) { return (uint64_t*)c->keys; }
static uint64_t row_state[8192];
static int row_last[8192], row_before[8192];
static int running_rows;

void run_trunk(Session* s, Part* parts, int count, int rows, const int32_t* ids, int) {
  if (rows > s->most_rows) abort();
  running_rows = rows;
  for (int n = 0; n < count; n++) {
    Part& p = parts[n];
    if (p.rows > p.cache->capacity - p.start || p.start != p.cache->length) abort();
    for (int r = 0; r < p.rows; r++) {
      const int slot = p.start + r, id = ids[p.first + r];
      const int parent = p.parents ? p.parents[r] : r - 1;
      if (p.parents && (parent >= r || (r > 0) != (parent >= 0))) abort();
      const int before = parent >= 0 ? p.start + parent : p.start - 1;
      p.cache->ids[slot] = id;
      states_of(p.cache)[slot] = state_after(before >= 0 ? states_of(p.cache)[before] : 0, id);
      row_state[p.first + r] = states_of(p.cache)[slot];
      row_last[p.first + r] = id, row_before[p.first + r] = before >= 0 ? p.cache->ids[before] : -1;
    }
  }
}

int head0_logits(Session* s, Part*, int, int rows, float* logits) {
  const int V = s->model->shape.vocabulary;
  bool fine = true;
  for (int r = 0; r < rows; r++)
    fine = trunk_logits(row_state[r], row_last[r], row_before[r], V, logits + (size_t)r * V) && fine;
  if (!fine)
    for (size_t i = 0; i < (size_t)rows * V; i++) logits[i] = NAN;  // nothing is promised then
  return fine ? OK : NOT_FINITE;
}

static int asked_of_cache;  // the head that was asked last since something was accepted

void draft_logits(Session* s, Cache* c, int head, int columns, float* logits) {
  if (c->length < 1 || (head != 1 && head != asked_of_cache + 1) || head >= s->model->shape.head_count) abort();
  asked_of_cache = head;
  float* own = (float*)malloc((size_t)s->model->shape.vocabulary * 4);
  uint64_t state = states_of(c)[c->length - 1];
  int last = c->ids[c->length - 1], before = c->length > 1 ? c->ids[c->length - 2] : -1;
  for (int k = 0;; k++) {
    if (!trunk_logits(state, last, before, s->model->shape.vocabulary, own)) memset(own, 0, (size_t)columns * 4);
    if (k == head) break;
    int best = 0;
    for (int i = 1; i < 256; i++)
      if (own[i] > own[best]) best = i;
    state = state_after(state, best), before = last, last = best;
  }
  memcpy(logits, own, (size_t)columns * 4);
  free(own);
  const uint64_t luck = mixed(state + 5);
  if ((int)(luck % 16) >= fake.skill) logits[97 + luck / 16 % 20] = 12.0f;
  if (fake.broken_heads && luck % 11 == 0) logits[luck / 16 % 256] = luck % 2 ? NAN : INFINITY;
}

void accept(Session*, const Part& part, const int32_t* path, int n) {
  Cache* c = part.cache;
  for (int i = 0; i < n; i++) {
    const int row = path ? path[i] : i;
    if (row < i || row >= part.rows || (i && path && path[i - 1] >= row)) abort();
    c->ids[part.start + i] = c->ids[part.start + row];
    states_of(c)[part.start + i] = states_of(c)[part.start + row];
  }
  c->length = part.start + n;
  for (int i = c->length; i < c->capacity; i++) c->ids[i] = -9, states_of(c)[i] = 0;  // nobody may look there
  asked_of_cache = 0;
}

void truncate(Cache* c, int length) {
  if (length < c->length) c->length = length;
  asked_of_cache = 0;
}

int prefill(Session* s, Cache* c, const int32_t* ids, int n) {
  if (n < 0 || n > c->capacity - c->length) return WRONG_ARGUMENT;
  for (int done = 0; done < n;) {
    const int rows = n - done < s->most_rows ? n - done : s->most_rows;
    Part part{c, 0, rows, c->length, nullptr, {}};
    run_trunk(s, &part, 1, rows, ids + done);
    accept(s, part, nullptr, rows);
    done += rows;
  }
  return OK;
}

void copy_prefix(const Model*, Cache* to, const Cache* from, int n) {
  if (n > from->length) abort();
  memcpy(to->ids, from->ids, (size_t)n * 4), memcpy(to->keys, from->keys, (size_t)n * 8);
  to->length = n;
  asked_of_cache = 0;
}

Cache* cache_new(const Model*, int capacity, int kind) {
  Cache* c = (Cache*)calloc(1, sizeof(Cache));
  c->capacity = c->slots = capacity, c->kind = kind;
  c->ids = (int32_t*)malloc((size_t)capacity * 4), c->keys = malloc((size_t)capacity * 8);
  return c;
}

void cache_free(Cache* c) {
  if (!c) return;
  free(c->ids), free(c->keys), free(c);
}

// The decoder of a few lines ------------------------------------------------------------------------------------------

struct Output { int32_t* ids; double* logprobs; int count, finish; };

static Output plain(const int32_t* prompt, int n, const Settings& settings, int capacity, int V, int choices) {
  Output out = {(int32_t*)malloc((size_t)settings.max_ids * 4), (double*)malloc((size_t)settings.max_ids * 8), 0, 0};
  int32_t* ids = (int32_t*)malloc((size_t)(n + settings.max_ids) * 4);
  memcpy(ids, prompt, (size_t)n * 4);
  uint8_t* bytes = (uint8_t*)malloc((size_t)n);
  for (int i = 1; i < n; i++) bytes[i - 1] = (uint8_t)prompt[i];
  float* logits = (float*)malloc((size_t)V * 4);
  Chooser chooser;
  chooser_init(&chooser, &settings, choices);
  Context at = first_context(bytes, choices == 257 ? n - 1 : 0);
  int start = n <= capacity ? 0 : n - capacity / 2;
  while (!out.finish) {
    if (n - 1 - start == capacity) start = n - capacity / 2;
    uint64_t state = 0;
    for (int i = start; i < n; i++) state = state_after(state, ids[i]);
    if (!trunk_logits(state, ids[n - 1], n - 1 > start ? ids[n - 2] : -1, V, logits)) {
      out.finish = LOGITS_NOT_FINITE;
      break;
    }
    const int id = choose(&chooser, logits, at);
    if (id == EOD) {
      out.finish = END_OF_DOCUMENT;
      break;
    }
    out.logprobs[out.count] = log_probability(logits, V, id);
    out.ids[out.count++] = ids[n++] = id, at = context_after(at, id);
    if (out.count == settings.max_ids) out.finish = MAX_IDS;
  }
  chooser_free(&chooser);
  free(ids), free(bytes), free(logits);
  return out;
}

// Rounds --------------------------------------------------------------------------------------------------------------

static uint64_t random_state;
static uint64_t draw() { return mixed(random_state += 0x9e3779b97f4a7c15ull); }
static int below(int n) { return (int)(draw() % (uint64_t)n); }
static int between(int a, int b) { return a + below(b - a + 1); }

static Settings random_settings(int policy, bool bytes) {
  Settings s = {};
  s.top_p = s.min_p = -1.0, s.repetition_penalty = 1.0;
  s.seed = draw() >> 1, s.sequence = (uint64_t)below(3), s.max_ids = between(1, 160);
  s.policy = policy, s.logprobs = below(2);
  if (below(2)) s.temperature = 0.3 + 0.1 * below(10);
  if (s.temperature != 0.0 && below(3) == 0) s.top_k = between(1, 20);
  if (s.temperature != 0.0 && below(3) == 0) s.top_p = 0.1 * between(1, 10);
  if (s.temperature != 0.0 && below(3) == 0) s.min_p = 0.05 * below(5);
  if (bytes && below(3) == 0) s.repetition_penalty = 1.0 + 0.2 * below(5);
  if (bytes && below(3) == 0) s.utf8 = 1;
  return s;
}

static Costs random_costs() {
  Costs c = {};
  c.pasts = between(1, 3), c.row_counts = between(2, 6);
  for (int p = 0; p < c.pasts; p++) c.past[p] = 20 * p;
  for (int i = 0; i < c.row_counts; i++) c.rows[i] = i ? c.rows[i - 1] + between(1, 12) : 1;
  const double slope = 0.002 * between(1, 100);
  for (int p = 0; p < c.pasts; p++)
    for (int i = 0; i < c.row_counts; i++) c.seconds[p][i] = 1.0 + slope * c.rows[i] * (0.5 + 0.01 * below(100));
  c.head = 0.001 * below(40), c.sequence = 0.01 * below(5);
  return c;
}

struct Totals { int64_t ids, steps, drafted, accepted, asked, sequences, broken; };
static Totals totals;

#define CHECK(what)                                                                    \
  if (!(what)) {                                                                       \
    printf("seed %llu: %s is not so (line %d)\n", (unsigned long long)seed, #what, __LINE__); \
    abort();                                                                           \
  }

struct Wanted { int32_t* ids; int n; Settings settings; Output output; int got; bool started, done; };

static void one_round(uint64_t seed) {
  random_state = seed * 7919;
  const bool bytes = below(5) > 0;
  Model model;
  memset((void*)&model, 0, sizeof model);
  Shape& h = model.shape;
  h.choices = bytes ? 257 : 600, h.vocabulary = bytes ? 320 : 640;
  h.head_count = between(1, 9), h.family = below(6), h.width = 4;
  fake = {draw(), between(2, 20), between(0, 16), below(4) ? 0 : between(20, 300), below(2)};
  Session session;
  memset((void*)&session, 0, sizeof session);
  const int slots = between(1, 5), capacity = below(3) ? between(2, 60) : between(60, 400);
  session.model = &model, session.most_rows = slots * between(1, 48) + below(3), session.most_slots = capacity;
  session.logits = (float*)malloc((size_t)session.most_rows * h.vocabulary * 4);

  const bool trees = below(2);
  const int heads = h.head_count - 1;
  float* tables = (float*)malloc(sizeof(float) * (size_t)(3 * 257 * 8 + 2 * heads + 1));
  for (int i = 0; i < 3 * 257 * 8; i++) tables[i] = 0.002f * (float)(below(1000) - 500);
  for (int i = 0; i < 2 * heads; i++) tables[3 * 257 * 8 + i] = 1.0f;
  Pairs pairs = {8, tables, tables + 257 * 8, tables + 2 * 257 * 8, tables + 3 * 257 * 8, tables + 3 * 257 * 8 + heads};
  const bool corrected = bytes && heads && below(2);
  const Costs costs = random_costs();
  Calibration calibration;
  memset((void*)&calibration, 0, sizeof calibration);
  Decoder* d = nullptr;
  CHECK(BL_EXPORT(decoder_new)(&session, slots, capacity, F32, trees, &costs, &calibration,
                               corrected ? &pairs : nullptr, &d) == OK);
  free(tables);

  // Prompts that begin with the same ids, also those of others with their output.
  const int count = between(1, 10);
  Wanted* wanted = (Wanted*)calloc((size_t)count, sizeof(Wanted));
  int32_t common[400];
  for (int32_t& id : common) id = 97 + below(fake.alphabet);
  for (int i = 0; i < count; i++) {
    Wanted& w = wanted[i];
    const Wanted* before = i && below(3) == 0 ? wanted + below(i) : nullptr;
    const int some = below(4) ? below(60) : below(400), same = below(some + 1);
    const int begin = before ? before->n + below(before->output.count + 1) : 1 + some;
    w.ids = (int32_t*)malloc(sizeof(int32_t) * (size_t)(begin + 30));
    if (before) {
      memcpy(w.ids, before->ids, (size_t)before->n * 4);
      memcpy(w.ids + before->n, before->output.ids, (size_t)(begin - before->n) * 4);
    } else {
      w.ids[0] = EOD;
      for (int k = 0; k < some; k++)
        w.ids[1 + k] = k < same ? common[k] : below(10) ? 97 + below(fake.alphabet) : below(256);
    }
    w.n = begin;
    for (int more = below(30); more > 0; more--) w.ids[w.n++] = below(20) ? 97 + below(fake.alphabet) : below(256);
    const int policies[] = {NONE, ADAPTIVE, ADAPTIVE, HEADS, bytes ? NGRAM : NONE};
    w.settings = random_settings(policies[below(5)], bytes);
    w.output = plain(w.ids, w.n, w.settings, capacity, h.vocabulary, h.choices);
  }

  const int most_records = slots + below(40);
  const int most_ids = slots * 48 + below(400), most_drafted = slots * 47 + below(400);
  Block b = {};
  b.most_records = most_records, b.most_ids = most_ids, b.most_drafted = most_drafted;
  b.record = (Record*)malloc(sizeof(Record) * (size_t)most_records);
  b.ids = (int32_t*)malloc((size_t)most_ids * 4), b.sources = (int8_t*)malloc((size_t)most_ids);
  b.logprobs = below(4) ? (double*)malloc((size_t)most_ids * 8) : nullptr;
  b.drafted = (int8_t*)malloc((size_t)most_drafted);
  int holds[MOST_SEQUENCES], next = 0, finished = 0;
  for (int i = 0; i < slots; i++) holds[i] = -1;
  while (finished < count) {
    for (int slot = 0; slot < slots && next < count; slot++) {
      if (holds[slot] >= 0 || below(4) == 0) continue;
      const Wanted& w = wanted[next];
      int64_t left = BL_EXPORT(decoder_begin)(d, slot, w.ids, w.n, &w.settings);
      CHECK(left >= 0 && left <= capacity);
      while (left > 0 && below(5)) {
        const int64_t most = between(1, 50), now = BL_EXPORT(decoder_prefill)(d, slot, most);
        CHECK(now == (left > most ? left - most : 0));
        left = now;
      }
      holds[slot] = next++;
    }
    bool any = false;
    for (int i = 0; i < slots; i++) any = any || holds[i] >= 0;
    if (below(30) == 0) BL_EXPORT(decoder_set_costs)(d, &costs);
    CHECK(BL_EXPORT(decoder_run)(d, between(1, 20), below(3) ? 0 : 1 + below(200), &b) == OK);
    CHECK(any || b.ended == NOTHING_RUNS);
    CHECK(b.records <= most_records && b.id_count <= most_ids && b.drafted_count <= most_drafted);
    int ids = 0, drafted = 0, ends = 0;
    for (int i = 0; i < b.records; i++) {
      const Record& r = b.record[i];
      CHECK(r.slot >= 0 && r.slot < slots && holds[r.slot] >= 0 && r.first == ids && r.drafted_first == drafted);
      ids += r.count, drafted += r.drafted;
      Wanted& w = wanted[holds[r.slot]];
      CHECK(!w.done && r.accepted <= r.drafted && r.rows == r.drafted + 1 && r.asked < h.head_count);
      CHECK(r.count == (r.finish == LOGITS_NOT_FINITE ? 0 : r.accepted + (r.finish != END_OF_DOCUMENT)));
      CHECK(w.got + r.count <= w.output.count);
      for (int k = 0; k < r.count; k++) {
        CHECK(b.ids[r.first + k] == w.output.ids[w.got]);
        if (b.logprobs) CHECK(b.logprobs[r.first + k] == (w.settings.logprobs ? w.output.logprobs[w.got] : 0.0));
        CHECK(b.sources[r.first + k] == (k < r.accepted ? b.drafted[r.drafted_first + k] : TRUNK));
        w.got++;
      }
      for (int k = 0; k < r.drafted; k++) {
        const int source = b.drafted[r.drafted_first + k];
        CHECK(source == LOOKUP ? w.settings.policy == ADAPTIVE || w.settings.policy == NGRAM
                               : source >= 1 && source < h.head_count && w.settings.policy != NGRAM);
      }
      CHECK(w.settings.policy != NONE || r.drafted == 0);
      totals.steps++, totals.drafted += r.drafted, totals.accepted += r.accepted, totals.asked += r.asked;
      if (r.finish == GOES_ON) continue;
      CHECK(r.finish == w.output.finish && w.got == w.output.count);
      w.done = true, holds[r.slot] = -1, finished++, ends++;
      totals.sequences++, totals.ids += w.got, totals.broken += r.finish == LOGITS_NOT_FINITE;
      if (below(2)) BL_EXPORT(decoder_end)(d, r.slot);
    }
    CHECK(ids == b.id_count && drafted == b.drafted_count);
    CHECK(!ends || b.ended == SEQUENCE_FINISHED);
    for (int slot = 0; slot < slots; slot++) {  // some are given up
      if (holds[slot] < 0 || below(200)) continue;
      CHECK(BL_EXPORT(decoder_end)(d, slot) == OK);
      holds[slot] = -1, finished++;
    }
  }
  BL_EXPORT(decoder_calibration)(d, &calibration);
  CHECK(BL_EXPORT(decoder_set_calibration)(d, &calibration) == OK);
  BL_EXPORT(decoder_free)(d);
  for (int i = 0; i < count; i++) free(wanted[i].ids), free(wanted[i].output.ids), free(wanted[i].output.logprobs);
  free(wanted), free(b.record), free(b.ids), free(b.sources), free(b.logprobs), free(b.drafted), free(session.logits);
}

}  // namespace BL_NS

int main(int count, char** arguments) {
  const int rounds = count > 1 ? atoi(arguments[1]) : 2000;
  const uint64_t first = count > 2 ? strtoull(arguments[2], nullptr, 10) : 1;
  for (int i = 0; i < rounds; i++) one_round(first + (uint64_t)i);
  const Totals& t = totals;
  printf("%d rounds: %lld sequences, %lld of them not finite; ", rounds, (long long)t.sequences, (long long)t.broken);
  printf("%lld ids in %lld steps, ", (long long)t.ids, (long long)t.steps);
  printf("%lld drafted, %lld accepted, %lld heads\n", (long long)t.drafted, (long long)t.accepted, (long long)t.asked);
  // A round that drafts nothing proves nothing.
  return t.accepted > t.steps / 20 && t.broken > 0 ? 0 : 1;
}
