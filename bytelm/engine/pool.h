// Threads of one session. A job is a function that is told which of how many shares it has. Waiting threads spin for a
// few microseconds, as long as the next product of a pass is away, and then sleep: spinning hurts on a busy machine.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

namespace BL_NS {

constexpr int MOST_THREADS = 64;
constexpr int SPINS = 4000;

typedef void (*Job)(void* what, int share, int shares);

struct Pool {
  int wanted;                   // threads, the caller's included
  int running;                  // started beside the caller
  pid_t owner;                  // a fork copies the memory and none of the threads
  pthread_t thread[MOST_THREADS];
  pthread_mutex_t lock;
  pthread_cond_t wake;
  uint32_t ticket;              // number of the present job
  uint32_t done;                // helpers that have finished it
  int sleeping;
  bool quit;
  Job job;
  void* what;
};

static inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

struct PoolThread { Pool* pool; int share; uint32_t seen; };

static void* pool_thread(void* argument) {
  PoolThread own = *(PoolThread*)argument;
  free(argument);
  Pool* p = own.pool;
  while (true) {
    int spins = 0;
    while (__atomic_load_n(&p->ticket, __ATOMIC_ACQUIRE) == own.seen && spins < SPINS) relax(), spins++;
    if (spins == SPINS) {
      pthread_mutex_lock(&p->lock);
      __atomic_fetch_add(&p->sleeping, 1, __ATOMIC_SEQ_CST);
      while (__atomic_load_n(&p->ticket, __ATOMIC_SEQ_CST) == own.seen) pthread_cond_wait(&p->wake, &p->lock);
      __atomic_fetch_sub(&p->sleeping, 1, __ATOMIC_SEQ_CST);
      pthread_mutex_unlock(&p->lock);
    }
    own.seen++;
    if (__atomic_load_n(&p->quit, __ATOMIC_ACQUIRE)) return nullptr;
    p->job(p->what, own.share, p->running + 1);
    __atomic_fetch_add(&p->done, 1, __ATOMIC_RELEASE);
  }
}

static inline void pool_announce(Pool* p) {
  __atomic_fetch_add(&p->ticket, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&p->sleeping, __ATOMIC_SEQ_CST)) {
    pthread_mutex_lock(&p->lock);
    pthread_cond_broadcast(&p->wake);
    pthread_mutex_unlock(&p->lock);
  }
}

static inline Pool* pool_new(int threads) {
  Pool* p = (Pool*)calloc(1, sizeof(Pool));
  if (!p) return nullptr;
  p->wanted = threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads;
  p->owner = 0;
  return p;
}

// Threads start with the first job, and again in a process that was forked: there they are missing.
static inline void pool_start(Pool* p) {
  p->owner = getpid();
  p->ticket = p->done = 0, p->sleeping = 0, p->quit = false, p->running = 0;
  pthread_mutex_init(&p->lock, nullptr);
  pthread_cond_init(&p->wake, nullptr);
  // Signals belong to the caller's threads: Python must see Ctrl-C.
  sigset_t all_signals, before;
  sigfillset(&all_signals);
  pthread_sigmask(SIG_SETMASK, &all_signals, &before);
  for (int i = 1; i < p->wanted; i++) {
    PoolThread* own = (PoolThread*)malloc(sizeof(PoolThread));
    if (!own) break;
    *own = {p, i, 0};
    if (pthread_create(&p->thread[p->running], nullptr, pool_thread, own)) {
      free(own);
      break;  // a machine that gives no more threads computes with fewer
    }
    p->running++;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

// Runs a job in all threads and waits. Which share a thread has decides nothing but who computes what.
static inline void pool_run(Pool* p, Job job, void* what) {
  if (p->wanted == 1) return job(what, 0, 1);
  if (p->owner != getpid()) pool_start(p);
  if (p->running == 0) return job(what, 0, 1);
  p->job = job, p->what = what;
  __atomic_store_n(&p->done, 0, __ATOMIC_RELAXED);
  pool_announce(p);
  job(what, 0, p->running + 1);
  int spins = 0;
  while (__atomic_load_n(&p->done, __ATOMIC_ACQUIRE) != (uint32_t)p->running) {
    if (++spins > SPINS) sched_yield();  // a helper was taken off its core
    else relax();
  }
}

static inline void pool_free(Pool* p) {
  if (!p) return;
  if (p->owner == getpid() && p->running) {
    __atomic_store_n(&p->quit, true, __ATOMIC_RELEASE);
    pool_announce(p);
    for (int i = 0; i < p->running; i++) pthread_join(p->thread[i], nullptr);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->wake);
  }
  free(p);
}

}  // namespace BL_NS
