"""Wrong drivers in C: examples/inline_adapter/inline.c with a few words changed.  hal_mutants.py compiles and runs them."""
from __future__ import annotations

__all__ = ["C_ROWS"]

_GET = "return host && host->abi_major == HAL_ABI_MAJOR ? &adapter : NULL;"

_RUN = "((kernel_fn)kernel->object)(l->args, l->grid, at);"

# (name, check meant to refuse it, the mistake, ((old text, new text), ...), whether it gets a process of its own)
C_ROWS: tuple[tuple[str, int, str, tuple[tuple[str, str], ...], bool], ...] = (
    ("COtherTable", 1, "every call of hal_get_adapter gives another table",
     ((_GET, "static hal_adapter two[2]; static int n; n ^= 1; two[n] = adapter; "
             "return host && host->abi_major == HAL_ABI_MAJOR ? &two[n] : NULL;"),), False),
    ("CAnyMajor", 2, "hosts of any ABI are accepted", ((_GET, "return host ? &adapter : NULL;"),), False),
    ("CSmallHostRefused", 3, "an older host is refused for its size",
     ((_GET, "return host && host->abi_major == HAL_ABI_MAJOR && host->struct_size >= sizeof *host ? &adapter : NULL;"),), False),
    ("CLargeHostRefused", 3, "a newer host is refused for its size",
     ((_GET, "return host && host->abi_major == HAL_ABI_MAJOR && host->struct_size <= sizeof *host ? &adapter : NULL;"),), False),
    ("CReadsBehindHost", 3, "a field behind the host's struct_size is used",
     ((_GET, "if (host && host->abi_major == HAL_ABI_MAJOR && host->log) host->log(host->user, 0, \"loaded\"); " + _GET),), True),
    ("CPropsWhole", 4, "props is written whole, whatever room the caller has",
     (("p->struct_size < sizeof v ? p->struct_size : sizeof v", "sizeof v"),), False),
    ("CStreamsNotWhole", 5, "the stream group lacks destroy", (("stream_create, stream_destroy,", "stream_create, NULL,"),), False),
    ("CLeaksFiles", 6, "init opens a file and fini leaves it open", (("static hal_status nothing(void) { return HAL_OK; }",
                                                                     "static hal_status nothing(void) { return dup(1), HAL_OK; }"),), False),
    ("CUnknownBit", 11, "props claims a capability bit that does not exist",
     ((".caps = HAL_CAP_HOST_ACCESS |", ".caps = 1ull << 40 | HAL_CAP_HOST_ACCESS |"),), False),
    ("CNegativeDevice", 12, "device -1 is accepted", (("NEED((d) >= 0 && (d) < DEVICES,", "NEED((d) < DEVICES,"),), True),
    ("CSharedMessage", 13, "last_error is shared by all threads", (("static _Thread_local const char *message", "static const char *message"),), False),
    ("CMessageOverruns", 13, "last_error writes behind the caller's room",
     (("snprintf(buffer, capacity, \"%s\", message)", "strcpy(buffer, message)"),), True),
    ("CMessageNoNul", 13, "a message that is cut has no NUL",
     (("snprintf(buffer, capacity, \"%s\", message)", "strncpy(buffer, message, capacity)"),), False),
    ("CMessageLength", 13, "last_error returns what it wrote, not the whole length",
     (("return strlen(message);", "return strlen(message) < capacity ? strlen(message) : capacity;"),), False),
    ("CZeroBytes", 14, "alloc of zero bytes succeeds", (("NEED(a->bytes && !(", "NEED(!("),), False),
    ("COutLeft", 14, "a failed alloc leaves the caller's address as it was", (("*out = 0;\n  DEVICE(d);", "DEVICE(d);"),), False),
    ("CAllocZero", 16, "alloc succeeds and gives address 0", (("return *out = (uintptr_t)base, HAL_OK;", "return *out = 0, HAL_OK;"),), True),
    ("CTooLarge", 17, "max_alloc_bytes is not looked at", (("NEED(a->bytes <= TOTAL / 4,", "NEED(a->bytes <= TOTAL,"),), False),
    ("CFreeIsTotal", 18, "info says that everything is free", (("*free_bytes = TOTAL - used[d]", "*free_bytes = TOTAL"),), False),
    ("CFreesNothing", 23, "free gives no memory back", (("  free(start);\n  return HAL_OK;", "  return HAL_OK;"),), True),
    ("CCopiesNothingLarge", 27, "copies of more than 8 MiB do nothing",
     (("r < c->rows && c->bytes; r++)", "r < c->rows && c->bytes && c->bytes <= 8 << 20; r++)"),), False),
    ("CMovesNothingLarge", 27, "copies on the device of more than 1 MiB do nothing",
     (("r < c->rows && c->bytes; r++)", "r < c->rows && c->bytes && (c->kind != HAL_COPY_D2D || c->bytes <= 1 << 20); r++)"),), False),
    ("CMemcpy", 30, "overlapping copies run forwards, byte by byte", (
        ("static hal_status copy(int32_t d,", "static void forwards(char *to, const char *from, uint64_t n) { for (uint64_t i = 0; i < n; i++) "
                                              "to[i] = from[i]; }\nstatic hal_status copy(int32_t d,"),
        ("    memmove((char *)(uintptr_t)c->dst", "    forwards((char *)(uintptr_t)c->dst")), False),
    ("CPitchesSwapped", 32, "the pitches of source and destination are swapped",
     (("c->dst + r * c->dst_pitch", "c->dst + r * c->src_pitch"), ("c->src + r * c->src_pitch", "c->src + r * c->dst_pitch")), True),
    ("CFillsBytes", 33, "fill writes the first byte of each pattern", (("&pattern, size);", "&pattern, 1);"),), False),
    ("CGenerationStuck", 38, "a slot used again has its old generation", (("(slots[i].generation + 1) & 0xffffff", "1"),), False),
    ("CGenerationIgnored", 38, "a handle's generation is not looked at", ((" && s->generation == h >> 32", ""),), False),
    ("CUnrecordedHasTime", 51, "the time of an event never recorded is counted from 0",
     (("  NEED(start->ns && end->ns, HAL_NOT_READY, \"an event was never recorded\");\n", ""),), False),
    ("CMicroseconds", 54, "elapsed times are microseconds", (("(int64_t)(end->ns - start->ns)", "(int64_t)(end->ns - start->ns) / 1000"),), False),
    ("CThirtyTwoBits", 54, "elapsed times have 32 bits", (("(int64_t)(end->ns - start->ns)", "(int64_t)(uint32_t)(end->ns - start->ns)"),), False),
    ("CMixedUnits", 54, "events add microseconds to nanoseconds", (("(uint64_t)now.tv_nsec;", "(uint64_t)now.tv_nsec / 1000;"),), False),
    ("CResetKeeps", 59, "handles outlive a reset", (("slots[i].device == d) slots[i].kind = 0;", "slots[i].device == d) (void)0;"),), False),
    ("CHandleRace", 63, "two threads that create at once may get one handle",
     (("if (!atomic_compare_exchange_strong(&slots[i].kind, &unused, -1)) continue;",
       "if (slots[i].kind != unused) continue;\n    usleep(50);\n    slots[i].kind = -1;"),), False),
    ("CAnyFormat", 66, "the image's format is not looked at", (("!strcmp(format, \"so\") && ", "format && "),), False),
    ("CEmptyGrids", 66, "a grid of 0 programs is a success", (("l->grid[0] && l->grid[1] && l->grid[2] && ", ""),), False),
    ("CGridSwapped", 66, "a program's places along y and z are swapped",
     ((_RUN, "((kernel_fn)kernel->object)(l->args, l->grid, (uint32_t[]){at[0], at[2], at[1]});"),), True),
    ("CGridUntold", 66, "a kernel is told a grid of one program", ((_RUN, "((kernel_fn)kernel->object)(l->args, (uint32_t[]){1, 1, 1}, at);"),), False),
    ("CInfoAllFree", 18, "mem_info says that everything is free", (("TOTAL - used[d], HAL_OK", "TOTAL, HAL_OK"),), False),
    ("CRecordOnZero", 54, "a record on stream 0 is lost", (("  event->ns = (uint64_t)now", "  if (s) event->ns = (uint64_t)now"),), False),
    ("CFillsEnd", 33, "fills end after 66,000 bytes", (("i < bytes; i += size) memcpy", "i < bytes && i < 66000; i += size) memcpy"),), False),
    ("CRowsFold", 32, "rows are counted in five bits", (("r < c->rows && c->bytes; r++", "r < (c->rows & 31) && c->bytes; r++"),), False),
    ("CBytesFold", 27, "bytes of a copy are counted in 24 bits", (("+ r * c->src_pitch, c->bytes);", "+ r * c->src_pitch, c->bytes & 0xffffff);"),), False),
    ("CResetOthers", 59, "reset drops the handles of all devices", (("slots[i].kind > 0 && slots[i].device == d", "slots[i].kind > 0"),), False),
    ("CPeerUnchecked", 34, "the device of a copy's destination is not looked at", (("  DEVICE(c->dst_device);\n", ""),), False),
    ("CGridTransposed", 66, "programs count along y where the grid has x", (("at[0] < l->grid[0]; at[0]++", "at[0] < l->grid[1]; at[0]++"),), False),
)  # fmt: skip
