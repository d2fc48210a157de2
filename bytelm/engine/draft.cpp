// Who proposes the next ids, and how many proposals are worth their rows. Nothing here can change a byte: what is
// proposed is only ever compared with what the trunk chooses.
//
//   heads    one draft head after another, each corrected by the two bytes before it; asked as long as that can pay
//   lookup   what followed the last time the same bytes stood; it goes on where the heads end
//
// Source: prompt lookup, Saxena 2023; rows by expected gain over cost, Dinkelbach 1967; heads rescored by the bytes
// before, Kim et al. 2024, arXiv 2404.09221.
#include <math.h>

#include "decode.h"
#include "dmath.h"

namespace BL_NS {

// Prompt lookup -------------------------------------------------------------------------------------------------------

constexpr int LEAST_MATCH = 4, LONGEST_MATCH = 64;
constexpr int MOST_PLACES = 8;    // with the same four bytes that are compared
constexpr int MOST_VISITS = 32;   // places of the same hash that are looked at
constexpr int FEWEST_BITS = 10, MOST_BITS = 20;

BL_INLINE uint32_t hash_of(const uint8_t* four, int bits) {
  uint32_t word;
  memcpy(&word, four, 4);
  return word * 2654435761u >> (32 - bits);
}

static void lookup_insert(Lookup* l, int32_t place) {
  int32_t* newest = l->newest + hash_of(l->bytes + place - LEAST_MATCH, l->bits);
  l->previous[place] = *newest, *newest = place;
}

// Room for so many bytes; the hash table grows with them and is filled anew.
static int lookup_reserve(Lookup* l, int64_t room) {
  if (room > INT32_MAX - 1) return OUT_OF_MEMORY;
  int bits = FEWEST_BITS;
  while (bits < MOST_BITS && ((int64_t)1 << bits) < room) bits++;
  uint8_t* bytes = (uint8_t*)realloc(l->bytes, (size_t)room);
  if (!bytes) return OUT_OF_MEMORY;
  l->bytes = bytes;
  int32_t* previous = (int32_t*)realloc(l->previous, (size_t)room * sizeof(int32_t));
  if (!previous) return OUT_OF_MEMORY;
  l->previous = previous;
  if (bits != l->bits || !l->newest) {
    int32_t* newest = (int32_t*)realloc(l->newest, sizeof(int32_t) << bits);
    if (!newest) return OUT_OF_MEMORY;
    l->newest = newest, l->bits = bits;
    for (int64_t i = 0; i < (int64_t)1 << bits; i++) newest[i] = -1;
    for (int32_t place = LEAST_MATCH; place < l->count; place++) lookup_insert(l, place);
  }
  l->room = (int32_t)room;
  return OK;
}

// Takes the place of what the index held before; its memory is used again.
int lookup_init(Lookup* l, int64_t expected) {
  l->count = 0;
  if (l->newest)
    for (int64_t i = 0; i < (int64_t)1 << l->bits; i++) l->newest[i] = -1;
  if (expected < 256) expected = 256;
  return expected <= l->room && l->newest ? OK : lookup_reserve(l, expected);
}

void lookup_free(Lookup* l) {
  free(l->bytes), free(l->previous), free(l->newest);
  *l = Lookup();
}

int lookup_add(Lookup* l, int byte) {
  if (l->count == l->room) {
    const int status = lookup_reserve(l, (int64_t)l->room * 2);
    if (status != OK) return status;
  }
  const int32_t place = l->count++;
  l->bytes[place] = (uint8_t)byte;
  if (place >= LEAST_MATCH) lookup_insert(l, place);
  return OK;
}

Match lookup_find(const Lookup& l, const uint8_t* drafted, int n) {
  Match best = {-1, 0};
  const int64_t all_bytes = (int64_t)l.count + n;
  if (all_bytes < LEAST_MATCH || l.count <= LEAST_MATCH) return best;
  uint8_t tail[LONGEST_MATCH];  // the last bytes, the last one first
  const int longest = all_bytes < LONGEST_MATCH ? (int)all_bytes : LONGEST_MATCH;
  for (int i = 0; i < longest; i++) tail[i] = i < n ? drafted[n - 1 - i] : l.bytes[l.count - 1 - (i - n)];
  const uint8_t four[LEAST_MATCH] = {tail[3], tail[2], tail[1], tail[0]};
  int places = 0, visits = 0;
  for (int32_t place = l.newest[hash_of(four, l.bits)]; place >= 0; place = l.previous[place]) {
    if (places == MOST_PLACES || visits++ == MOST_VISITS) break;
    const int most = place < longest ? place : longest;
    int length = 0;
    while (length < most && l.bytes[place - 1 - length] == tail[length]) length++;
    if (length < LEAST_MATCH) continue;  // another four bytes with the same hash
    places++;
    if (length > best.length) best = {place, length};
    if (length == longest) break;
  }
  return best;
}

int lookup_following(const Lookup& l, int32_t place, int64_t i, const uint8_t* drafted, int n) {
  const int64_t own = l.count - place, at = i % (own + n);
  return at < own ? l.bytes[place + at] : drafted[at - own];
}

// Calibration ---------------------------------------------------------------------------------------------------------

constexpr double PRIOR_WEIGHT = 6.0, DECAY = 0.98;
constexpr double SHARPER = 0.6;     // the trunk takes its highest byte more often than it would draw it
constexpr int DEEPEST_KIND = 8;
constexpr int LONGEST_PAUSE = 32;
constexpr double HOPED_SHARE = 0.8;  // a head is asked as if it were right so often
constexpr int LEAST_OF_BIN[8] = {4, 6, 8, 12, 16, 24, 32, 64};
// Share of right bytes after a match of so many bytes, before anything was seen.
constexpr double PRIOR_OF_BIN[8] = {0.35, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98};
// The same where the head says another byte, which is then likelier to be right than it is else.
constexpr double PRIOR_AGAINST[8] = {0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7};

int match_bin(int length) {
  int bin = 0;
  while (bin < 7 && length >= LEAST_OF_BIN[bin + 1]) bin++;
  return bin;
}

int probability_bin(double probability) {
  const double bin = -2.0 * log(1.0 - probability + 1e-4);
  return bin >= 12.0 ? 12 : bin > 0.0 ? (int)bin : 0;
}

static double share(const Counter& c, double prior) {
  return (c.right + PRIOR_WEIGHT * prior) / (c.total + PRIOR_WEIGHT);
}

static void count_one(Counter* c, bool right) {
  c->right = c->right * DECAY + (right ? 1.0 : 0.0), c->total = c->total * DECAY + 1.0;
}

// Costs ---------------------------------------------------------------------------------------------------------------

// The row of the table after so many ids: a straight line between two pasts, the nearest one outside of them.
struct Seconds { double of[12]; };

static Seconds seconds_at(const Costs& c, int past) {
  int next = 0;
  while (next < c.pasts && c.past[next] < past) next++;
  const int after = next < c.pasts ? next : c.pasts - 1, before = next > 0 ? next - 1 : 0;
  const double share = after == before ? 0.0 : (double)(past - c.past[before]) / (c.past[after] - c.past[before]);
  Seconds found;
  for (int i = 0; i < c.row_counts; i++)
    found.of[i] = c.seconds[before][i] + share * (c.seconds[after][i] - c.seconds[before][i]);
  return found;
}

static double seconds_of(const Costs& c, const double* seconds, int rows) {
  int i = 1;
  while (i + 1 < c.row_counts && c.rows[i] < rows) i++;
  const double slope = (seconds[i] - seconds[i - 1]) / (c.rows[i] - c.rows[i - 1]);
  return seconds[i - 1] + slope * (rows - c.rows[i - 1]);
}

double cost_of(const Costs& c, int past, int rows, int sequences) {
  return seconds_of(c, seconds_at(c, past).of, rows) + c.sequence * (sequences - 1);
}

// What a row beyond `rows` costs at least, however many are added: between two entries of the table costs are a
// straight line, so the least mean is met at an entry, or on the way to the next one or beyond the last.
static double least_row_cost(const Costs& c, const double* seconds, int rows) {
  const double now = seconds_of(c, seconds, rows);
  double least = seconds_of(c, seconds, rows + 1) - now;
  for (int i = 0; i < c.row_counts; i++) {
    if (c.rows[i] <= rows) continue;
    const double mean = (seconds[i] - now) / (c.rows[i] - rows);
    if (mean < least) least = mean;
  }
  const int last = c.row_counts - 1;
  const double beyond = (seconds[last] - seconds[last - 1]) / (c.rows[last] - c.rows[last - 1]);
  return beyond < least ? beyond : least;
}

// Heads ---------------------------------------------------------------------------------------------------------------

// Logits of a draft head with what the last two bytes say of the next.
static void correct(const Decoder* d, int head, const float* logits, const Context& at, float* out) {
  const int last = at.count > 0 ? at.recent[at.count - 1] : EOD, before = at.count > 1 ? at.recent[at.count - 2] : EOD;
  const float *x = d->last + (size_t)last * d->rank, *y = d->before + (size_t)before * d->rank;
  const Floats of_head = all(d->of_head[head - 1]), of_pair = all(d->of_pair[head - 1]);
  for (int column = 0; column < 256; column += 4 * LANES) {
    Floats sum[4];
    for (int v = 0; v < 4; v++) sum[v] = all(0.0f);
    const float* w = d->out + column;
    for (int r = 0; r < d->rank; r++, w += 256) {
      const Floats b = all(x[r] + y[r]);
      for (int v = 0; v < 4; v++) sum[v] = fma(load(w + v * LANES), b, sum[v]);
    }
    for (int v = 0; v < 4; v++) {
      const int i = column + v * LANES;
      store(out + i, fma(sum[v], of_pair, mul(load(logits + i), of_head)));
    }
  }
}

// A multiple of 64 numbers. x - x is 0 where x is finite, else it is no number.
static bool all_finite(const float* x, int n) {
  Floats sum = all(0.0f);
  for (int i = 0; i < n; i += LANES) {
    const Floats v = load(x + i);
    sum = add(sum, sub(v, v));
  }
  return total(sum) == 0.0f;
}

// What one head says of one byte, in d->log_probs and d->scores: the best id, or -1 where it says nothing.
static int head_view(Decoder* d, Sequence* q, int head, const Context& at) {
  const float* logits = d->head_logits + (size_t)head * d->columns;
  if (d->rank) correct(d, head, logits, at, d->own_logits), logits = d->own_logits;
  if (!all_finite(logits, d->columns)) return -1;  // a head that has diverged costs speed, not the output
  const int n = d->bytes ? 256 : d->session->model->shape.choices;
  draft_view(&q->chooser, logits, n, at, d->log_probs, d->scores);
  int best = 0;
  for (int i = 1; i < n; i++)
    if (d->scores[i] > d->scores[best]) best = i;
  return d->scores[best] > -HUGE_VAL ? best : -1;
}

static int second_best(const Decoder* d, int best) {
  const int n = d->bytes ? 256 : d->session->model->shape.choices;
  int second = -1;
  for (int i = 0; i < n; i++)
    if (i != best && i != EOD && (second < 0 || d->scores[i] > d->scores[second])) second = i;
  return second;
}

// Proposals -----------------------------------------------------------------------------------------------------------

// A way through the draft: what has been proposed so far, and what prompt lookup says of the rest.
struct Way {
  Context at;
  uint8_t drafted[MOST_NODES];
  int count;         // of drafted
  Match match;       // of prompt lookup; length 0: none
  int64_t said;      // bytes behind its place that were taken
  int said_drafted;  // drafted bytes when it was found
};

// What prompt lookup says of the next byte, or -1. A new place is looked for where the last one was wrong.
static int next_guess(const Sequence* q, Way* w, bool look) {
  if (w->match.length == 0 && look) {
    w->match = lookup_find(q->lookup, w->drafted, w->count);
    w->said = 0, w->said_drafted = w->count;
  }
  if (w->match.length == 0) return -1;
  const int guess = lookup_following(q->lookup, w->match.place, w->said, w->drafted, w->said_drafted);
  if (permits(&q->chooser, guess, w->at)) return guess;
  w->match.length = 0;  // what can never be chosen
  return -1;
}

static void go_on(Way* w, const Decoder* d, int id, int guess) {
  w->at = context_after(w->at, id);
  if (d->bytes) w->drafted[w->count++] = (uint8_t)id;
  if (id == guess) w->said++, w->match.length++;
  else w->match.length = 0;
}

// Whether the rule of choice takes the first of two ids with these probabilities.
static bool scores_more(Sequence* q, int one, double of_one, int other, double of_other, const Context& at) {
  if (q->chooser.settings.temperature == 0.0) return of_one > of_other;
  const double* noise = noise_at(&q->chooser, at.position);
  const double least = 1e-300;
  return log(of_one > least ? of_one : least) + noise[one] > log(of_other > least ? of_other : least) + noise[other];
}

static void set_head_node(Decoder* d, Sequence* q, Node* node, double mixed, double path, bool agree) {
  const int rule = q->chooser.settings.temperature != 0.0;
  const int depth = node->depth < DEEPEST_KIND ? node->depth : DEEPEST_KIND;
  node->counter = &d->calibration.head[rule][agree][depth][probability_bin(mixed)];
  double prior = rule ? mixed : mixed > 0.0 ? exp(SHARPER * log(mixed)) : 0.0;
  prior = prior < 1e-4 ? 1e-4 : prior > 0.999 ? 0.999 : prior;
  node->probability = share(*node->counter, prior);
  node->path_probability = path * node->probability;
}

// Runs all draft heads up to this one; they must be asked one after another.
static void ask_heads(Decoder* d, Sequence* q, int head) {
  while (q->asked < head) {
    q->asked++;
    draft_logits(d->session, q->cache, q->asked, d->columns, d->head_logits + (size_t)q->asked * d->columns);
  }
}

static bool wants_heads(Sequence* q) {
  if (q->chooser.settings.policy != ADAPTIVE || q->wait == 0) return true;
  q->wait--;
  return false;
}

// What could stand beside a node of the chain: the second-best byte of its head. Id -1: nothing.
struct Alternative { int id; double probability; Context at; };

// Makes a tree of the chain: alternatives as branches, each with the next head's best byte behind it.
static void add_branches(Decoder* d, Sequence* q, const Alternative* alternatives, int limit, double least) {
  const int rule = q->chooser.settings.temperature != 0.0;
  const int chain = q->candidates < MOST_HEADS ? q->candidates : MOST_HEADS;
  if (least < LEAST_PATH) least = LEAST_PATH;
  for (int depth = 0; depth < chain; depth++) {
    const Alternative& a = alternatives[depth];
    if (a.id < 0) continue;
    const int kind = depth < DEEPEST_KIND ? depth : DEEPEST_KIND;
    Counter* counter = &d->branch[rule][kind][probability_bin(a.probability)];
    double own = share(*counter, a.probability), path = (depth ? q->nodes[depth - 1].path_probability : 1.0) * own;
    if (path < least) continue;
    const int parent = q->candidates;
    q->nodes[q->candidates++] = {depth - 1, depth, a.id, depth + 1, own, path, counter, -1, nullptr, nullptr};
    if (depth + 2 > q->asked || depth + 1 >= limit) continue;
    const int best = head_view(d, q, depth + 2, context_after(a.at, a.id));
    if (best < 0 || best == EOD) continue;
    counter = &d->behind[rule][kind];
    own = share(*counter, 0.8 * exp(d->log_probs[best])), path *= own;
    if (path < least) continue;
    q->nodes[q->candidates++] = {parent, depth + 1, best, depth + 2, own, path, counter, -1, nullptr, nullptr};
  }
}

void propose(Decoder* d, Sequence* q, int limit, int past, int rows, double rate) {
  const int policy = q->chooser.settings.policy, rule = q->chooser.settings.temperature != 0.0;
  q->candidates = q->asked = 0;
  if (policy == NONE || limit < 1) return;
  if (limit > MOST_NODES) limit = MOST_NODES;
  if (policy == NGRAM && limit > LOOKUP_NODES) limit = LOOKUP_NODES;
  int heads = policy == NGRAM || !q->heads_ready ? 0 : d->session->model->shape.head_count - 1;
  if (heads && !wants_heads(q)) heads = 0;
  const bool adaptive = policy == ADAPTIVE, lookup = q->has_lookup && policy != HEADS;
  const Seconds table = seconds_at(d->costs, past);
  const double* seconds = table.of;
  Way way;
  way.at = q->context, way.count = 0, way.match = {-1, 0};
  double path = 1.0;
  Alternative alternative[MOST_HEADS];
  for (int depth = 0; depth < limit; depth++) {
    // Where a head stops paying, prompt lookup still begins anew at the places that heads predict.
    const int guess = lookup ? next_guess(q, &way, depth == 0 || depth < heads) : -1;
    Counter* guess_counter = guess < 0 ? nullptr : &d->calibration.lookup[rule][match_bin(way.match.length)];
    const double weight = guess < 0 ? 0.0 : share(*guess_counter, PRIOR_OF_BIN[match_bin(way.match.length)]);
    const double least = adaptive ? rate * least_row_cost(d->costs, seconds, rows + depth) : 0.0;
    bool ask = depth < heads;
    if (ask && adaptive) {
      // A head can give what prompt lookup does not, and no more than the way there is worth.
      const double price = rate * d->costs.head * (depth + 1 - q->asked);
      ask = path * (1.0 - weight) > price && path * HOPED_SHARE > price + least;
    }
    int best = -1;
    if (ask) {
      ask_heads(d, q, depth + 1);
      best = head_view(d, q, depth + 1, way.at);
      if (best < 0) heads = depth;
    }
    if (best < 0 && guess < 0) break;
    Node* node = q->nodes + q->candidates;
    *node = {depth - 1, depth, guess, LOOKUP, weight, path * weight, nullptr, guess, guess_counter, nullptr};
    if (best >= 0) {
      double believed = weight;
      if (guess >= 0 && best != guess) {
        const int bin = match_bin(way.match.length);
        node->against_counter = &d->calibration.against[rule][bin];
        believed = share(*node->against_counter, PRIOR_AGAINST[bin]);
      }
      const double rest = 1.0 - believed;
      // The two views as a mixture: what prompt lookup says with its weight, else the head's distribution.
      double mixed = rest * exp(d->log_probs[best]) + (best == guess ? believed : 0.0);
      int other = -1;
      double of_other = 0.0;
      if (guess >= 0 && best != guess) {
        other = guess, of_other = believed + rest * exp(d->log_probs[guess]);
        if (scores_more(q, guess, of_other, best, mixed, way.at)) {
          const int id = best;
          const double of_id = mixed;
          best = guess, mixed = of_other, other = id, of_other = of_id;
        }
      }
      if (best == EOD) break;
      node->id = best;
      set_head_node(d, q, node, mixed, path, best == guess);
      if (best != guess || exp(d->log_probs[best]) >= believed) node->source = depth + 1;
      if (d->trees) {
        if (other < 0 && (other = second_best(d, best)) >= 0) of_other = rest * exp(d->log_probs[other]);
        alternative[depth] = {other == EOD ? -1 : other, of_other, way.at};
      }
    } else if (d->trees && depth < MOST_HEADS) {
      alternative[depth].id = -1;
    }
    q->candidates++;
    path = node->path_probability;
    if (adaptive && (path < LEAST_PATH || path <= least)) break;  // it never pays, but it is counted
    go_on(&way, d, node->id, guess);
  }
  if (d->trees) add_branches(d, q, alternative, limit, rate * least_row_cost(d->costs, seconds, rows));
}

// Planner -------------------------------------------------------------------------------------------------------------

// Candidates by path_probability; parents stay before their children, which are never likelier.
static void rank_candidates(Sequence* q) {
  for (int i = 0; i < q->candidates; i++) {
    int at = i;
    for (; at > 0 && q->nodes[q->order[at - 1]].path_probability < q->nodes[i].path_probability; at--)
      q->order[at] = q->order[at - 1];
    q->order[at] = i;
  }
}

// Takes the first so many of the ranked candidates; rows have the order of the candidates: chain first.
static void take_candidates(Sequence* q, int count) {
  bool taken[MOST_CANDIDATES] = {false};
  for (int i = 0; i < count; i++) taken[q->order[i]] = true;
  q->drafted = 0;
  for (int i = 0; i < q->candidates; i++)
    if (taken[i]) q->chosen[q->drafted++] = i;
}

void plan(Decoder* d, Sequence** sequences, const int* limits, int count, int past, double rate) {
  int next[MOST_SEQUENCES];  // of the ranked candidates of a sequence
  int limit[MOST_SEQUENCES];
  int rows = count;
  for (int n = 0; n < count; n++) {
    Sequence* q = sequences[n];
    rank_candidates(q);
    limit[n] = limits[n] < q->candidates ? limits[n] : q->candidates;
    if (limit[n] > MOST_NODES) limit[n] = MOST_NODES;
    if (limit[n] < 0) limit[n] = 0;
    next[n] = 0;
    q->drafted = 0;
    if (q->chooser.settings.policy == ADAPTIVE) continue;
    take_candidates(q, limit[n]);
    rows += q->drafted;
    limit[n] = 0;
  }
  const Seconds table = seconds_at(d->costs, past);
  const double* seconds = table.of;
  uint8_t taken[MOST_SEQUENCES * MOST_NODES];  // whose candidate was taken, one after another
  static_assert(MOST_SEQUENCES <= 256, "the number of a sequence fits a byte");
  int count_taken = 0, best_count = 0;
  double expected = 0.0, best = -rate * seconds_of(d->costs, seconds, rows);
  while (true) {
    int from = -1;
    double likeliest = LEAST_PATH;
    for (int n = 0; n < count; n++) {
      if (next[n] == limit[n]) continue;
      const double path = sequences[n]->nodes[sequences[n]->order[next[n]]].path_probability;
      if (path > likeliest || (from < 0 && path == likeliest)) from = n, likeliest = path;
    }
    // All that are left are less likely than this one: if it cannot pay for its row, no number of them can.
    if (from < 0 || likeliest <= rate * least_row_cost(d->costs, seconds, rows)) break;
    next[from]++, rows++, expected += likeliest;
    taken[count_taken++] = (uint8_t)from;
    const double value = expected - rate * seconds_of(d->costs, seconds, rows);
    if (value > best + 1e-9) best = value, best_count = count_taken;
  }
  int counts[MOST_SEQUENCES] = {0};
  for (int i = 0; i < best_count; i++) counts[taken[i]]++;
  for (int n = 0; n < count; n++)
    if (counts[n]) take_candidates(sequences[n], counts[n]);
}

// What became of it ---------------------------------------------------------------------------------------------------

void observe(Decoder* d, Sequence* q, const int* path, int accepted, const int32_t* choices, int past) {
  // Candidates that were not verified count too where it is known what stands in their place.
  for (int i = 0; i < q->candidates; i++) {
    Node* node = q->nodes + i;
    if (node->depth > accepted || (node->depth > 0 && path[node->depth - 1] != node->parent)) continue;
    const int32_t chosen = choices[node->depth];
    if (node->counter) count_one(node->counter, chosen == node->id);
    if (node->guess_counter) count_one(node->guess_counter, chosen == node->guess);
    if (node->against_counter) count_one(node->against_counter, chosen == node->guess);
  }
  if (!q->asked) return;
  int helped = 0;
  for (int i = 0; i < accepted; i++) helped += q->nodes[path[i]].source > TRUNK;
  q->gain = 0.8 * q->gain + 0.2 * helped, q->spent = 0.8 * q->spent + 0.2 * q->asked * d->costs.head;
  const double worth = q->spent / cost_of(d->costs, past, 1, 1);  // ids that a plain step gives in their time
  if (q->gain < worth) {
    q->pause = 2 * q->pause + 2 < LONGEST_PAUSE ? 2 * q->pause + 2 : LONGEST_PAUSE;
    q->wait = q->pause, q->gain = 2.0 * worth;
  } else if (helped) {
    q->pause = 0;
  }
}

}  // namespace BL_NS
