// The next byte from logits. In this order:
//
//   repetition penalty   logits of the last bytes move towards unlikely
//   UTF-8                what is no UTF-8 here is excluded, also a character that would not fit into the bytes left
//   temperature, top_k, top_p, min_p, Gumbel noise: an exact draw of the distribution; greedy: the highest logit
//
// The noise is a pure function of seed, sequence and position. So a choice depends on the logits and the bytes before,
// and on nothing else: whoever asks, in whatever order, with whatever neighbours, gets the same id.
//
// Source: Gumbel-max trick, Maddison et al. 2014, section 2; Philox counters, Salmon et al. 2011; UTF-8, The Unicode
// Standard 16.0, table 3-7.
#include "decode.h"
#include "dmath.h"
#include "export.h"

namespace BL_NS {

// The room of a chooser's arrays is a multiple of 16.
static size_t rounded_up(size_t n) { return (n + 15) / 16 * 16; }

template <typename T> static bool allocate(T** p, size_t count) {
  void* found = nullptr;
  if (posix_memalign(&found, 64, rounded_up(count) * sizeof(T))) return false;
  *p = (T*)found;
  return true;
}

static bool restricted(const Settings& s) { return s.top_k > 0 || s.top_p >= 0.0 || s.min_p >= 0.0; }

int chooser_init(Chooser* c, const Settings* settings, int choices) {
  memset(c, 0, sizeof *c);
  c->settings = *settings;
  c->choices = choices;
  for (int64_t& position : c->noise_position) position = -1;
  if (choices < 1) return WRONG_ARGUMENT;
  bool fits = allocate(&c->changed, choices);
  // Behind the scores lie the weights of ids for top_k and top_p.
  fits = fits && allocate(&c->scores, 2 * rounded_up(choices)) && allocate(&c->ranks, choices);
  if (settings->temperature > 0.0) fits = fits && allocate(&c->noise, (size_t)NOISE_ROWS * choices);
  if (fits) return OK;
  chooser_free(c);
  return OUT_OF_MEMORY;
}

void chooser_free(Chooser* c) {
  free(c->noise), free(c->changed), free(c->scores), free(c->ranks);
  c->noise = nullptr, c->changed = nullptr, c->scores = nullptr, c->ranks = nullptr;
}

// UTF-8 ---------------------------------------------------------------------------------------------------------------

// Between characters, 1 … 3 continuation bytes due, after E0, ED, F0, F4 (where the next byte is limited), rejected.
constexpr int UTF8_START = 0, UTF8_REJECTED = 8;
struct Follow { uint8_t first, last, after; };
constexpr Follow FOLLOW[8] = {{},           {128, 191, 0}, {128, 191, 1}, {128, 191, 2},
                              {160, 191, 1}, {128, 159, 1}, {144, 191, 2}, {128, 143, 2}};

static int utf8_after(int state, int byte) {
  if (state == UTF8_REJECTED) return UTF8_REJECTED;
  if (state != UTF8_START) {
    const Follow& f = FOLLOW[state];
    return byte >= f.first && byte <= f.last ? f.after : UTF8_REJECTED;
  }
  if (byte < 0x80) return UTF8_START;
  if (byte < 0xc2) return UTF8_REJECTED;
  if (byte < 0xe0) return 1;
  if (byte < 0xf0) return byte == 0xe0 ? 4 : byte == 0xed ? 5 : 2;
  if (byte < 0xf5) return byte == 0xf0 ? 6 : byte == 0xf4 ? 7 : 3;
  return UTF8_REJECTED;
}

// First byte that may not begin a character for which there is so much room.
static int end_of_begins(int64_t room) { return room >= 4 ? 0xf5 : room == 3 ? 0xf0 : room == 2 ? 0xe0 : 0x80; }

// Whether an id may come next with room for so many bytes, this one included. A character that has begun goes on even
// where it does not fit any more. Ids that stand for several bytes are not looked at.
static bool utf8_permits(int state, int64_t room, int id) {
  if (id > EOD) return true;
  if (state == UTF8_START || state == UTF8_REJECTED)
    return id == EOD || id < 0x80 || (id >= 0xc2 && id < end_of_begins(room));
  return id >= FOLLOW[state].first && id <= FOLLOW[state].last;
}

static void exclude(float* logits, int from, int to, int n) {
  for (int i = from; i < to && i < n; i++) logits[i] = -INFINITY;
}

// The same for all of n ids at once.
static void utf8_exclude(int state, int64_t room, float* logits, int n) {
  if (state == UTF8_START || state == UTF8_REJECTED) {
    exclude(logits, 0x80, 0xc2, n);
    exclude(logits, room < 2 ? 0xc2 : end_of_begins(room), EOD, n);
  } else {
    exclude(logits, 0, FOLLOW[state].first, n);
    exclude(logits, FOLLOW[state].last + 1, EOD + 1, n);
  }
}

// Context -------------------------------------------------------------------------------------------------------------

Context first_context(const uint8_t* prompt, int64_t n) {
  Context c;
  c.position = 0;
  c.utf8_state = UTF8_START;
  // Four bytes tell the state: a character has at most four, and a byte that is no continuation resets it.
  for (int64_t i = n > 4 ? n - 4 : 0; i < n; i++) {
    int state = utf8_after(c.utf8_state, prompt[i]);
    if (state == UTF8_REJECTED) state = utf8_after(UTF8_START, prompt[i]);  // the byte may begin a character itself
    c.utf8_state = state == UTF8_REJECTED ? UTF8_START : state;
  }
  c.count = (int32_t)(n < PENALTY_BYTES ? n : PENALTY_BYTES);
  memset(c.recent, 0, PENALTY_BYTES);
  if (c.count) memcpy(c.recent, prompt + n - c.count, (size_t)c.count);
  return c;
}

Context context_after(const Context& before, int id) {
  Context c = before;
  c.position++;
  if (id >= EOD) {
    c.utf8_state = UTF8_START;
    return c;
  }
  c.utf8_state = utf8_after(c.utf8_state, id);
  if (c.count == PENALTY_BYTES) memmove(c.recent, c.recent + 1, PENALTY_BYTES - 1);
  else c.count++;
  c.recent[c.count - 1] = (uint8_t)id;
  return c;
}

bool constrained(const Chooser* c) { return c->settings.utf8 || c->settings.repetition_penalty != 1.0; }

static int64_t room_at(const Chooser* c, const Context& at) {
  int64_t room = c->settings.max_ids - at.position;
  return room < 1 ? 1 : room;
}

bool permits(const Chooser* c, int id, const Context& at) {
  return !c->settings.utf8 || utf8_permits(at.utf8_state, room_at(c, at), id);
}

// Logits of the first n ids with penalty and exclusions; the given ones where there are none.
static const float* constrain(Chooser* c, const float* logits, int n, const Context& at) {
  if (!constrained(c)) return logits;
  float* y = c->changed;
  memcpy(y, logits, (size_t)n * sizeof(float));
  const float penalty = (float)c->settings.repetition_penalty;
  if (c->settings.repetition_penalty != 1.0) {
    uint64_t seen[4] = {0, 0, 0, 0};
    for (int i = 0; i < at.count; i++) {
      const int byte = at.recent[i];
      if (byte >= n || seen[byte / 64] >> byte % 64 & 1) continue;
      seen[byte / 64] |= 1ull << byte % 64;
      y[byte] = y[byte] > 0.0f ? y[byte] / penalty : y[byte] * penalty;
    }
  }
  if (c->settings.utf8) utf8_exclude(at.utf8_state, room_at(c, at), y, n);
  return y;
}

// Noise ---------------------------------------------------------------------------------------------------------------

__extension__ typedef unsigned __int128 Wide;

// Blocks number … number + AT_ONCE - 1 of Philox-4x64 with 10 rounds, side by side to keep the multiplier busy. The
// noise of a position takes blocks 1, 2, …: as in numpy, where the generator's counter is raised before it is used.
constexpr int AT_ONCE = 2;
BL_INLINE void philox(uint64_t seed, uint64_t number, uint64_t position, uint64_t sequence, uint64_t* out) {
  uint64_t a[AT_ONCE], b[AT_ONCE], c[AT_ONCE], d[AT_ONCE], k = seed, l = 0;
  for (int j = 0; j < AT_ONCE; j++) a[j] = number + (uint64_t)j, b[j] = position, c[j] = sequence, d[j] = 0;
  for (int round = 0; round < 10; round++) {
    for (int j = 0; j < AT_ONCE; j++) {
      const Wide p = (Wide)0xd2e7470ee14c6c93 * a[j], q = (Wide)0xca5a826395121157 * c[j];
      a[j] = (uint64_t)(q >> 64) ^ b[j] ^ k, b[j] = (uint64_t)q;
      c[j] = (uint64_t)(p >> 64) ^ d[j] ^ l, d[j] = (uint64_t)p;
    }
    k += 0x9e3779b97f4a7c15, l += 0xbb67ae8584caa73b;
  }
  for (int j = 0; j < AT_ONCE; j++, out += 4) out[0] = a[j], out[1] = b[j], out[2] = c[j], out[3] = d[j];
}

// A number in (0, 1): 52 random bits and a half fit a double exactly, so that no rounding reaches an end.
BL_INLINE double uniform(uint64_t random) {
  return (from_bits(random >> 12 | 0x4330000000000000) - 4503599627370496.0 + 0.5) * 0x1p-52;
}

static void gumbel(const Settings& s, int64_t position, int n, double* noise) {
  constexpr int NUMBERS = 4 * AT_ONCE;
  uint64_t random[NUMBERS];
  for (int i = 0; i < n; i += NUMBERS) {
    philox(s.seed, (uint64_t)(i / 4 + 1), (uint64_t)position, s.sequence, random);
    const int some = n - i < NUMBERS ? n - i : NUMBERS;
    for (int j = 0; j < some; j++) noise[i + j] = uniform(random[j]);
  }
  for (int i = 0; i < n; i++) noise[i] = -log(-log(noise[i]));
}

const double* noise_at(Chooser* c, int64_t position) {
  const int row = (int)((uint64_t)position % NOISE_ROWS);
  double* noise = c->noise + (size_t)row * c->choices;
  if (c->noise_position[row] != position) {
    gumbel(c->settings, position, c->choices, noise);
    c->noise_position[row] = position;
  }
  return noise;
}

// Choice --------------------------------------------------------------------------------------------------------------

static float highest(const float* x, int n) {
  if (n < LANES) {
    float most = x[0];
    for (int i = 1; i < n; i++) most = x[i] > most ? x[i] : most;
    return most;
  }
  Floats most = load(x + n - LANES);  // the last ones twice
  for (int i = 0; i + LANES <= n; i += LANES) most = larger(most, load(x + i));
  return largest(most);
}

static double highest(const double* x, int n) {
  double most[LANES];
  for (int l = 0; l < LANES; l++) most[l] = x[l < n ? l : 0];
  int i = LANES;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; l++) most[l] = x[i + l] > most[l] ? x[i + l] : most[l];
  for (; i < n; i++) most[0] = x[i] > most[0] ? x[i] : most[0];
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) most[l] = most[l] > most[l + half] ? most[l] : most[l + half];
  return most[0];
}

// The first of the highest; some id where a number is NaN.
template <typename T> static int argmax(const T* x, int n) {
  const T most = highest(x, n);
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    int found = 0;
    for (int l = 0; l < LANES; l++) found |= x[i + l] == most;
    if (found) break;
  }
  for (; i < n; i++)
    if (x[i] == most) return i;
  return 0;
}

// Whole numbers in the order of the logits; both zeros are one number.
static void rank(const float* x, int n, int32_t* ranks) {
  for (int i = 0; i < n; i++) {
    const float value = x[i] + 0.0f;
    int32_t bits;
    memcpy(&bits, &value, 4);
    ranks[i] = bits ^ (bits >> 31 & 0x7fffffff);
  }
}

// Weight of the ids that rank least or higher, and how many there are.
struct Above { uint64_t weight; int64_t count; };
static Above above(const int32_t* ranks, const uint64_t* weights, int n, int32_t least) {
  uint64_t weight = 0;
  int32_t count = 0;
  for (int i = 0; i < n; i++) weight += ranks[i] >= least ? weights[i] : 0;
  for (int i = 0; i < n; i++) count += ranks[i] >= least;
  return {weight, count};
}

// Of ids by descending logit, equal ones by ascending id, those stay whose predecessors weigh less than `wanted`.
// The last that stays is found by halving the range of ranks, without sorting.
static void keep(const int32_t* ranks, const uint64_t* weights, int n, double wanted, double* y) {
  int64_t low = INT32_MIN, high = (int64_t)INT32_MAX + 1;  // from low on they weigh enough, from high on too little
  uint64_t before = 0;                                     // weight from high on
  int64_t count = 0, more = n;                             // ids from high on, and from low up to high
  while (high - low > 1 && more > 1) {
    const int64_t middle = low + (high - low) / 2;
    const Above found = above(ranks, weights, n, (int32_t)middle);
    if ((double)found.weight >= wanted) {
      low = middle, more = found.count - count;
    } else {
      high = middle, more -= found.count - count, count = found.count, before = found.weight;
    }
  }
  // What ranks from low up to high is one id, or several with equal logits.
  for (int i = 0; i < n; i++) {
    if (ranks[i] >= high) continue;
    if (ranks[i] < low || (double)before >= wanted) y[i] = -INFINITY;
    else before += weights[i];
  }
}

// Logits by the temperature, [n]; where there are restrictions, less the highest, and -infinity for what is left out.
// As float32 logits are divided in float64, their order stays, ties included.
static void scale(Chooser* c, const float* x, int n, double* y) {
  const Settings& s = c->settings;
  for (int i = 0; i < n; i++) y[i] = (double)x[i] / s.temperature;
  if (!restricted(s)) return;
  const double most = (double)highest(x, n) / s.temperature;
  for (int i = 0; i < n; i++) y[i] -= most;
  const bool top_k = s.top_k > 0 && s.top_k < n, top_p = s.top_p >= 0.0 && s.top_p < 1.0;
  double* behind = c->scores + rounded_up(c->choices);
  uint64_t* weights = (uint64_t*)behind;
  if (top_k || top_p) rank(x, n, c->ranks);
  if (top_k) {
    for (int i = 0; i < n; i++) weights[i] = 1;
    keep(c->ranks, weights, n, s.top_k, y);
  }
  if (top_p) {
    // Weights are whole multiples of 2^-44 of the highest: their sums are exact, in whatever order they are added.
    memcpy(behind, y, (size_t)n * sizeof(double));
    exp_many(behind, n);
    for (int i = 0; i < n; i++) weights[i] = bits_of(behind[i] * 0x1p44 + 0x1p52) - bits_of(0x1p52);
    keep(c->ranks, weights, n, s.top_p * (double)above(c->ranks, weights, n, INT32_MIN).weight, y);
  }
  if (s.min_p > 0.0) {
    const double least = log(s.min_p);
    for (int i = 0; i < n; i++) y[i] = y[i] < least ? -INFINITY : y[i];
  }
}

int choose(Chooser* c, const float* logits, const Context& at) {
  const int n = c->choices;
  const float* x = constrain(c, logits, n, at);
  if (!(c->settings.temperature > 0.0)) return argmax(x, n);
  const double* noise = noise_at(c, at.position);
  scale(c, x, n, c->scores);
  for (int i = 0; i < n; i++) c->scores[i] += noise[i];
  return argmax(c->scores, n);
}

// Makes numbers of which the highest is 0 log-probabilities. They only steer drafting, so the sum is one of floats.
static void normalise(double* x, int n) {
  Floats sum = all(0.0f);
  float t[LANES];
  int i = 0;
  for (; i + LANES <= n; i += LANES) {
    for (int l = 0; l < LANES; l++) t[l] = (float)x[i + l];
    sum = add(sum, exponential(load(t)));
  }
  if (i < n) {
    for (int l = 0; l < LANES; l++) t[l] = i + l < n ? (float)x[i + l] : -INFINITY;
    sum = add(sum, exponential(load(t)));  // e^-87 for each that is not there: nothing beside the 1 of the highest
  }
  const double log_total = log((double)total(sum));
  for (i = 0; i < n; i++) x[i] -= log_total;
}

void draft_view(Chooser* c, const float* logits, int columns, const Context& at, double* log_probs, double* scores) {
  const int n = columns;
  const float* x = constrain(c, logits, n, at);
  if (!(c->settings.temperature > 0.0)) {
    const double most = (double)highest(x, n);
    for (int i = 0; i < n; i++) scores[i] = (double)x[i];
    for (int i = 0; i < n; i++) log_probs[i] = scores[i] - most;
    return normalise(log_probs, n);
  }
  scale(c, x, n, scores);
  const double* noise = noise_at(c, at.position);
  const double most = restricted(c->settings) ? 0.0 : (double)highest(x, n) / c->settings.temperature;
  for (int i = 0; i < n; i++) log_probs[i] = scores[i] - most;
  for (int i = 0; i < n; i++) scores[i] += noise[i];
  normalise(log_probs, n);
}

double log_probability(const float* logits, int vocabulary, int id) {
  constexpr int BLOCK = 256;
  const double most = (double)highest(logits, vocabulary);
  double sum[LANES] = {}, t[BLOCK];
  for (int i = 0; i < vocabulary; i += BLOCK) {
    const int some = vocabulary - i < BLOCK ? vocabulary - i : BLOCK;
    for (int j = 0; j < some; j++) t[j] = (double)logits[i + j] - most;
    for (int j = some; j % LANES; j++) t[j] = -INFINITY;
    exp_many(t, (int)rounded_up(some));
    for (int j = 0; j < some; j += LANES)
      for (int l = 0; l < LANES; l++) sum[l] += t[j + l];
  }
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) sum[l] += sum[l + half];
  return (double)logits[id] - most - log(sum[0]);
}

// For tests, of single rows -----------------------------------------------------------------------------------------

static Context context_behind(const uint8_t* prompt, int64_t prompt_bytes, const uint8_t* output, int64_t n) {
  Context at = first_context(prompt, prompt_bytes);
  for (int64_t i = 0; i < n; i++) at = context_after(at, output[i]);
  return at;
}

// The id that is chosen after a prompt and the output so far, and its log-probability; below 0: minus a Status.
BL_API int32_t BL_EXPORT(choose_rows)(const Settings* settings, int32_t choices, const uint8_t* prompt,
                                      int64_t prompt_bytes, const uint8_t* output, int64_t output_bytes,
                                      const float* logits, int32_t vocabulary, double* log_prob) {
  if (vocabulary < choices) return -WRONG_SIZE;
  Chooser c;
  if (int status = chooser_init(&c, settings, choices)) return -status;
  const int id = choose(&c, logits, context_behind(prompt, prompt_bytes, output, output_bytes));
  *log_prob = log_probability(logits, vocabulary, id);
  chooser_free(&c);
  return id;
}

// What draft_view says of a row of logits.
BL_API int32_t BL_EXPORT(draft_view_row)(const Settings* settings, int32_t choices, const uint8_t* prompt,
                                         int64_t prompt_bytes, const uint8_t* output, int64_t output_bytes,
                                         const float* logits, int32_t columns, double* log_probs, double* scores) {
  if (columns < 1 || columns > choices) return WRONG_SIZE;
  Chooser c;
  if (int status = chooser_init(&c, settings, choices)) return status;
  draft_view(&c, logits, columns, context_behind(prompt, prompt_bytes, output, output_bytes), log_probs, scores);
  chooser_free(&c);
  return OK;
}

BL_API int32_t BL_EXPORT(noise_row)(const Settings* settings, int32_t choices, int64_t position, double* out) {
  if (!(settings->temperature > 0.0) || position < 0) return WRONG_ARGUMENT;
  Chooser c;
  if (int status = chooser_init(&c, settings, choices)) return status;
  memcpy(out, noise_at(&c, position), (size_t)choices * sizeof(double));
  chooser_free(&c);
  return OK;
}

// For each of 257 ids: 1 if `choose` excludes it in this state of the automaton, 0 … 7, plus 2 if `permits` does.
BL_API void BL_EXPORT(utf8_forbidden)(int32_t state, int64_t room, uint8_t* out) {
  float logits[EOD + 1] = {};
  utf8_exclude(state, room, logits, EOD + 1);
  for (int id = 0; id <= EOD; id++) out[id] = (uint8_t)((logits[id] != 0.0f) + 2 * !utf8_permits(state, room, id));
}

// 0 exp, 1 log, 2 sin, 3 cos, 4 log_many of n numbers, 5 power of n pairs.
BL_API int32_t BL_EXPORT(dmath)(int32_t what, const double* x, int32_t n, double* out) {
  if (what == 4) {
    memcpy(out, x, (size_t)n * sizeof(double));
    log_many(out, n);
    return OK;
  }
  for (int i = 0; i < n; i++) {
    switch (what) {
      case 0: out[i] = exp(x[i]); break;
      case 1: out[i] = log(x[i]); break;
      case 2: out[i] = sin(x[i]); break;
      case 3: out[i] = cos(x[i]); break;
      case 5: out[i] = power(x[2 * i], x[2 * i + 1]); break;
      default: return WRONG_ARGUMENT;
    }
  }
  return OK;
}

}  // namespace BL_NS
