/* A stand-in for collective libraries of the NCCL kind: real reductions between threads or processes of one host.
 *
 * One of STANDIN_NCCL (with -DNAME(x)=nccl##x, mccl##x, ...), STANDIN_HCCL, STANDIN_CNCL, STANDIN_BKCL chooses symbols, argument
 * orders and numbers; -DWITNESS=symbol adds a symbol that tells two vendors' libraries of one name apart; -DBF16=8 moves bfloat16.
 * Proves calling conventions, not hardware: addresses are host addresses, streams are ignored, calls are synchronous.
 * Like the originals it waits for ever for a rank that does not come, until the communicator is aborted. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define RANKS 4
#define SLOT (1 << 16)

/* what a call came to, in this file; each vendor has its own numbers */
enum { OK, BAD_ARGUMENT, GONE, FAILED };
/* element types, in this file */
enum { NONE, I8, U8, I32, I64, U64, F32, F64, B16 };
enum { SUM, PROD, MAX, MIN, AVG };

struct mailbox {
  atomic_int full;
  int32_t used;
  char data[SLOT];
};

struct room { /* shared */
  atomic_int here, round, came, aborted;
  char slot[RANKS][SLOT];
  struct mailbox mail[RANKS][RANKS]; /* [from][to] */
};

struct comm {
  struct room *room;
  int world, rank;
  atomic_int dead;
  char name[48];
};

struct message {
  struct comm *comm;
  char *at;
  size_t left;
  int peer, sends;
};

static __thread struct message queue[64];
static __thread int queued, depth;

static size_t width(int kind) {
  static const size_t sizes[] = {0, 1, 1, 4, 8, 8, 4, 8, 2};
  return sizes[kind];
}

/* ---- ranks ------------------------------------------------------------------------------------------------------------ */
static int stopped(struct comm *c) { return atomic_load(&c->dead) || atomic_load(&c->room->aborted); }

static int meet(struct comm *c) {
  struct room *r = c->room;
  int round = atomic_load(&r->round);
  if (atomic_fetch_add(&r->came, 1) + 1 == c->world) {
    atomic_store(&r->came, 0);
    atomic_fetch_add(&r->round, 1);
    return OK;
  }
  while (atomic_load(&r->round) == round) {
    if (stopped(c)) return GONE;
    usleep(50);
  }
  return OK;
}

static void make_id(void *id) {
  if (getrandom(id, 16, 0) != 16) abort();
}

static int join(void **out, int world, int rank, const void *id) {
  const unsigned char *key = id;
  struct comm *c = calloc(1, sizeof *c);
  int fd;
  if (!c || world < 1 || world > RANKS || rank < 0 || rank >= world) {
    free(c);
    return BAD_ARGUMENT;
  }
  char *end = c->name + sprintf(c->name, "/standin-");
  for (int i = 0; i < 16; ++i) end += sprintf(end, "%02x", key[i]);
  fd = shm_open(c->name, O_CREAT | O_RDWR, 0600);
  if (fd < 0 || ftruncate(fd, sizeof(struct room))) return FAILED;
  c->room = mmap(NULL, sizeof(struct room), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (c->room == MAP_FAILED) return FAILED;
  c->world = world;
  c->rank = rank;
  if (meet(c) != OK) return GONE;
  shm_unlink(c->name); /* all have it; the second unlink fails and does no harm */
  *out = c;
  return OK;
}

static int leave(struct comm *c) {
  munmap(c->room, sizeof(struct room));
  free(c);
  return OK;
}

static int stop(struct comm *c) { /* keeps the struct: another thread may be inside a call */
  atomic_store(&c->dead, 1);
  atomic_store(&c->room->aborted, 1);
  return OK;
}

/* ---- arithmetic --------------------------------------------------------------------------------------------------------- */
static float wide(uint16_t b) {
  uint32_t bits = (uint32_t)b << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

static uint16_t narrow(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#define COMBINE(a, b) \
  (op == PROD ? (a) * (b) : op == MAX ? ((a) > (b) ? (a) : (b)) : op == MIN ? ((a) < (b) ? (a) : (b)) : (a) + (b))
#define REDUCE(T)                                         \
  for (size_t i = 0; i < n; ++i) {                        \
    T total = ((const T *)c->room->slot[0])[at + i];      \
    for (int r = 1; r < c->world; ++r) {                  \
      T next = ((const T *)c->room->slot[r])[at + i];     \
      total = COMBINE(total, next);                       \
    }                                                     \
    ((T *)out)[i] = op == AVG ? total / c->world : total; \
  }                                                       \
  break

static int reduce(struct comm *c, void *out, size_t at, size_t n, int kind, int op) {
  switch (kind) {
    case I8:
      REDUCE(int8_t);
    case U8:
      REDUCE(uint8_t);
    case I32:
      REDUCE(int32_t);
    case I64:
      REDUCE(int64_t);
    case U64:
      REDUCE(uint64_t);
    case F32:
      REDUCE(float);
    case F64:
      REDUCE(double);
    case B16:
      for (size_t i = 0; i < n; ++i) {
        float total = wide(((const uint16_t *)c->room->slot[0])[at + i]);
        for (int r = 1; r < c->world; ++r) total = COMBINE(total, wide(((const uint16_t *)c->room->slot[r])[at + i]));
        ((uint16_t *)out)[i] = narrow(op == AVG ? total / c->world : total);
      }
      break;
    default:
      return BAD_ARGUMENT;
  }
  return OK;
}

/* ---- collectives ---------------------------------------------------------------------------------------------------------- */
static int all_reduce(struct comm *c, const void *send, void *recv, size_t count, int kind, int op) {
  size_t size = width(kind), most = size ? SLOT / size : 0;
  if (!size || op < SUM || op > AVG) return BAD_ARGUMENT;
  for (size_t done = 0; done < count || done == 0; done += most) {
    size_t n = count - done < most ? count - done : most;
    if (n) memcpy(c->room->slot[c->rank], (const char *)send + done * size, n * size);
    if (meet(c)) return GONE;
    if (n) reduce(c, (char *)recv + done * size, 0, n, kind, op);
    if (meet(c)) return GONE;
  }
  return OK;
}

static int all_gather(struct comm *c, const void *send, void *recv, size_t count, int kind) {
  size_t bytes = count * width(kind);
  if (!width(kind)) return BAD_ARGUMENT;
  for (size_t done = 0; done < bytes || done == 0; done += SLOT) {
    size_t n = bytes - done < SLOT ? bytes - done : SLOT;
    if (n) memcpy(c->room->slot[c->rank], (const char *)send + done, n);
    if (meet(c)) return GONE;
    for (int r = 0; n && r < c->world; ++r) memcpy((char *)recv + r * bytes + done, c->room->slot[r], n);
    if (meet(c)) return GONE;
  }
  return OK;
}

static int reduce_scatter(struct comm *c, const void *send, void *recv, size_t count, int kind, int op) {
  size_t size = width(kind), most = size ? SLOT / size / RANKS : 0;
  if (!size || op < SUM || op > AVG) return BAD_ARGUMENT;
  for (size_t done = 0; done < count || done == 0; done += most) {
    size_t n = count - done < most ? count - done : most;
    for (int r = 0; n && r < c->world; ++r)
      memcpy(c->room->slot[c->rank] + r * n * size, (const char *)send + (r * count + done) * size, n * size);
    if (meet(c)) return GONE;
    if (n) reduce(c, (char *)recv + done * size, c->rank * n, n, kind, op);
    if (meet(c)) return GONE;
  }
  return OK;
}

static int broadcast(struct comm *c, const void *send, void *recv, size_t count, int kind, int root) {
  size_t bytes = count * width(kind);
  if (!width(kind) || root < 0 || root >= c->world) return BAD_ARGUMENT;
  for (size_t done = 0; done < bytes || done == 0; done += SLOT) {
    size_t n = bytes - done < SLOT ? bytes - done : SLOT;
    if (n && c->rank == root) memcpy(c->room->slot[root], (const char *)send + done, n);
    if (meet(c)) return GONE;
    if (n) memcpy((char *)recv + done, c->room->slot[root], n);
    if (meet(c)) return GONE;
  }
  return OK;
}

/* ---- messages --------------------------------------------------------------------------------------------------------------- */
static int progress(void) {
  int open = queued;
  while (open) {
    int moved = 0;
    open = 0;
    for (int i = 0; i < queued; ++i) {
      struct message *m = &queue[i];
      struct comm *c = m->comm;
      if (!m->left) continue;
      open = 1;
      struct mailbox *box = m->sends ? &c->room->mail[c->rank][m->peer] : &c->room->mail[m->peer][c->rank];
      if (atomic_load(&box->full) == m->sends) {
        if (stopped(c)) {
          queued = 0;
          return GONE;
        }
        continue;
      }
      size_t n = m->sends ? (m->left < SLOT ? m->left : SLOT) : (size_t)box->used;
      if (n > m->left) return BAD_ARGUMENT;
      if (m->sends) {
        memcpy(box->data, m->at, n);
        box->used = (int32_t)n;
      } else {
        memcpy(m->at, box->data, n);
      }
      atomic_store(&box->full, m->sends);
      m->at += n;
      m->left -= n;
      moved = 1;
    }
    if (open && !moved) usleep(50);
  }
  queued = 0;
  return OK;
}

static int message(struct comm *c, void *at, size_t count, int kind, int peer, int sends) {
  if (!width(kind) || peer < 0 || peer >= c->world || queued == 64) return BAD_ARGUMENT;
  queue[queued++] = (struct message){c, at, count * width(kind), peer, sends};
  return depth ? OK : progress();
}

static int group_start(void) {
  ++depth;
  return OK;
}

static int group_end(void) { return --depth ? OK : progress(); }

/* ---- vendors: symbols, orders, numbers ---------------------------------------------------------------------------------------- */
#ifdef WITNESS
API int WITNESS(void *comm, int *device) {
  (void)comm;
  *device = 0;
  return 0;
}
#endif

#if defined(STANDIN_NCCL)
#ifndef BF16
#define BF16 9
#define DOUBLE 8
#else
#define DOUBLE -1
#endif
typedef struct {
  char bytes[128];
} unique_id;
static int kind(int dtype) {
  return dtype == BF16            ? B16
         : dtype == DOUBLE        ? F64
         : dtype < 0 || dtype > 7 ? NONE
                                  : (int[]){I8, U8, I32, NONE, I64, U64, NONE, F32}[dtype];
}
static int result(int code) { return (int[]){0, 4, 6, 2}[code]; }
API int NAME(GetUniqueId)(unique_id *id) { return make_id(id), 0; }
API int NAME(CommInitRank)(void **comm, int world, unique_id id, int rank) {
  return result(join(comm, world, rank, &id));
}
API int NAME(CommDestroy)(void *comm) { return result(leave(comm)); }
API int NAME(CommAbort)(void *comm) { return result(stop(comm)); }
API int NAME(CommGetAsyncError)(void *comm, int *error) { return *error = stopped(comm) ? 6 : 0, 0; }
API const char *NAME(GetErrorString)(int code) {
  return code == 6 ? "remote process exited" : code == 4 ? "invalid argument" : "unhandled error";
}
API int NAME(AllReduce)(const void *send, void *recv, size_t n, int dtype, int op, void *comm, void *stream) {
  return (void)stream, result(all_reduce(comm, send, recv, n, kind(dtype), op));
}
API int NAME(AllGather)(const void *send, void *recv, size_t n, int dtype, void *comm, void *stream) {
  return (void)stream, result(all_gather(comm, send, recv, n, kind(dtype)));
}
API int NAME(ReduceScatter)(const void *send, void *recv, size_t n, int dtype, int op, void *comm, void *stream) {
  return (void)stream, result(reduce_scatter(comm, send, recv, n, kind(dtype), op));
}
API int NAME(Broadcast)(const void *send, void *recv, size_t n, int dtype, int root, void *comm, void *stream) {
  return (void)stream, result(broadcast(comm, send, recv, n, kind(dtype), root));
}
API int NAME(Send)(const void *send, size_t n, int dtype, int peer, void *comm, void *stream) {
  return (void)stream, result(message(comm, (void *)send, n, kind(dtype), peer, 1));
}
API int NAME(Recv)(void *recv, size_t n, int dtype, int peer, void *comm, void *stream) {
  return (void)stream, result(message(comm, recv, n, kind(dtype), peer, 0));
}
API int NAME(GroupStart)(void) { return result(group_start()); }
API int NAME(GroupEnd)(void) { return result(group_end()); }

#elif defined( \
    STANDIN_HCCL) /* the root info is large and passed by address; broadcast has one buffer; no avg, no abort */
typedef struct {
  char bytes[4108];
} root_info;
static int kind(int dtype) {
  return dtype < 0 || dtype > 11 ? NONE : (int[]){I8, NONE, I32, NONE, F32, I64, U64, U8, NONE, NONE, F64, B16}[dtype];
}
static int result(int code) { return (int[]){0, 1, 9, 4}[code]; }
API int HcclGetRootInfo(root_info *id) {
  memset(id, 0x5a, sizeof *id);
  return make_id(id), 0;
}
API int HcclCommInitRootInfo(uint32_t world, const root_info *id, uint32_t rank, void **comm) {
  return id->bytes[4107] == 0x5a ? result(join(comm, (int)world, (int)rank, id)) : 1;
}
API int HcclCommDestroy(void *comm) { return result(leave(comm)); }
API int HcclGetCommAsyncError(void *comm, int *error) { return *error = stopped(comm) ? 9 : 0, 0; }
API int HcclAllReduce(void *send, void *recv, uint64_t n, int dtype, int op, void *comm, void *stream) {
  return (void)stream, op > MIN ? 1 : result(all_reduce(comm, send, recv, n, kind(dtype), op));
}
API int HcclAllGather(void *send, void *recv, uint64_t n, int dtype, void *comm, void *stream) {
  return (void)stream, result(all_gather(comm, send, recv, n, kind(dtype)));
}
API int HcclReduceScatter(void *send, void *recv, uint64_t n, int dtype, int op, void *comm, void *stream) {
  return (void)stream, op > MIN ? 1 : result(reduce_scatter(comm, send, recv, n, kind(dtype), op));
}
API int HcclBroadcast(void *buffer, uint64_t n, int dtype, uint32_t root, void *comm, void *stream) {
  return (void)stream, result(broadcast(comm, buffer, buffer, n, kind(dtype), (int)root));
}
API int HcclSend(void *send, uint64_t n, int dtype, uint32_t peer, void *comm, void *stream) {
  return (void)stream, result(message(comm, send, n, kind(dtype), (int)peer, 1));
}
API int HcclRecv(void *recv, uint64_t n, int dtype, uint32_t peer, void *comm, void *stream) {
  return (void)stream, result(message(comm, recv, n, kind(dtype), (int)peer, 0));
}
API int HcclGroupStart(void) { return result(group_start()); }
API int HcclGroupEnd(void) { return result(group_end()); }

#elif defined( \
    STANDIN_CNCL) /* many communicators a call; the id has a hash behind it; the asynchronous state is the result */
typedef struct {
  char data[128];
  uint64_t hash;
} clique;
static int kind(int dtype) {
  switch (dtype) {
    case 0x11:
      return B16;
    case 0x12:
      return F32;
    case 0x20:
      return I8;
    case 0x22:
      return I32;
    case 0x23:
      return I64;
    case 0x30:
      return U8;
    case 0x33:
      return U64;
  }
  return NONE;
}
static int result(int code) { return (int[]){0, 0x07, 0x16, 0x01}[code]; }
API int cnclGetCliqueId(clique *id) {
  make_id(id->data);
  memcpy(&id->hash, id->data + 3, 8);
  return 0;
}
API int cnclInitComms(void **comms, int number, const int *devices, const int *ranks, int world, const clique *id) {
  uint64_t hash;
  memcpy(&hash, id->data + 3, 8);
  return number != 1 || devices[0] < 0 || hash != id->hash ? 0x07 : result(join(comms, world, ranks[0], id));
}
API int cnclFreeComm(void *comm) { return result(leave(comm)); }
API int cnclAbortComm(void *comm) { return result(stop(comm)); }
API int cnclGetCommAsyncError(void *comm) { return stopped(comm) ? 0x16 : 0x06; }
API const char *cnclGetErrorStr(int code) { return code == 0x16 ? "asynchronous error" : "error"; }
API int cnclAllReduce(const void *send, void *recv, size_t n, int dtype, int op, void *comm, void *queue_) {
  return (void)queue_, op > MIN ? 0x07 : result(all_reduce(comm, send, recv, n, kind(dtype), op));
}
API int cnclAllGather(const void *send, void *recv, size_t n, int dtype, void *comm, void *queue_) {
  return (void)queue_, result(all_gather(comm, send, recv, n, kind(dtype)));
}
API int cnclReduceScatter(const void *send, void *recv, size_t n, int dtype, int op, void *comm, void *queue_) {
  return (void)queue_, op > MIN ? 0x07 : result(reduce_scatter(comm, send, recv, n, kind(dtype), op));
}
API int cnclBroadcast(const void *send, void *recv, size_t n, int dtype, int root, void *comm, void *queue_) {
  return (void)queue_, result(broadcast(comm, send, recv, n, kind(dtype), root));
}
API int cnclSend(void *buffer, size_t n, int dtype, int peer, void *comm, void *queue_) {
  return (void)queue_, result(message(comm, buffer, n, kind(dtype), peer, 1));
}
API int cnclRecv(void *buffer, size_t n, int dtype, int peer, void *comm, void *queue_) {
  return (void)queue_, result(message(comm, buffer, n, kind(dtype), peer, 0));
}
API int cnclGroupStart(void) { return result(group_start()); }
API int cnclGroupEnd(void) { return result(group_end()); }

#elif defined( \
    STANDIN_BKCL) /* context first, rank before world, numbers of this stand-in's own header (tests/test_comm.py) */
typedef struct {
  char bytes[128];
} unique_id;
static int kind(int dtype) { return dtype < 0 || dtype > 6 ? NONE : (int[]){F32, NONE, F64, B16, I32, I64, U8}[dtype]; }
static int result(int code) { return code; }
static int operation(int op) { return op < 0 || op > 4 ? -1 : (int[]){SUM, PROD, MAX, MIN, AVG}[op]; }
API int bkcl_get_unique_id(unique_id *id) { return make_id(id), 0; }
API int bkcl_init_rank(void **ctx, int rank, int world, unique_id *id) { return result(join(ctx, world, rank, id)); }
API int bkcl_destroy_context(void *ctx) { return result(leave(ctx)); }
API int bkcl_comm_abort(void *ctx) { return result(stop(ctx)); }
API int bkcl_all_reduce(void *ctx, const void *send, void *recv, size_t n, int dtype, int op, void *stream) {
  return (void)stream, result(all_reduce(ctx, send, recv, n, kind(dtype), operation(op)));
}
API int bkcl_all_gather(void *ctx, const void *send, size_t n, void *recv, int dtype, void *stream) {
  return (void)stream, result(all_gather(ctx, send, recv, n, kind(dtype)));
}
API int bkcl_reduce_scatter(void *ctx, const void *send, void *recv, size_t n, int dtype, int op, void *stream) {
  return (void)stream, result(reduce_scatter(ctx, send, recv, n, kind(dtype), operation(op)));
}
API int bkcl_broadcast(void *ctx, const void *send, void *recv, size_t n, int dtype, int root, void *stream) {
  return (void)stream, result(broadcast(ctx, send, recv, n, kind(dtype), root));
}
API int bkcl_send(void *ctx, const void *send, size_t n, int peer, int dtype, void *stream) {
  return (void)stream, result(message(ctx, (void *)send, n, kind(dtype), peer, 1));
}
API int bkcl_recv(void *ctx, void *recv, size_t n, int peer, int dtype, void *stream) {
  return (void)stream, result(message(ctx, recv, n, kind(dtype), peer, 0));
}
API int bkcl_group_start(void) { return result(group_start()); }
API int bkcl_group_end(void) { return result(group_end()); }
#else
#error "choose a stand-in: STANDIN_NCCL, STANDIN_HCCL, STANDIN_CNCL or STANDIN_BKCL"
#endif
